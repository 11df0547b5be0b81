"""The folder of a watcher: numbered plans that are never overwritten, a journal, and which plan is in force.

    journal.jsonl     what was done and why; a plan is good once it is here
    plans/000003/     placement.json, transfers.json, instance.yaml (as it was then), load.npy (shares of load then)
    current.json      number and path of the last good plan

A plan's folder appears whole, then comes its line in the journal, then ``current.json``. So a process can be killed
between any two steps: a plan without a line is removed at the next start, and ``current.json`` is written anew.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake
from moe_placer.files import is_unfinished, unwritable, write_atomically
from moe_placer.instance import Instance
from moe_placer.instance.writer import dump_instance
from moe_placer.placement import Placement, load_placement
from moe_placer.solve.folder import replaced_folder
from moe_placer.verifier.transfer_file import Transfers
from moe_placer.watch.journal import Journal

__all__ = ["WatchStore"]

Floats = npt.NDArray[np.float64]
PLACEMENT, TRANSFERS, LOAD = "placement.json", "transfers.json", "load.npy"
INSTANCE = "instance.yaml"
_FILES = {PLACEMENT, TRANSFERS, LOAD, INSTANCE}


class WatchStore:
    """Plans and journal of a watcher; opening it removes what a killed one left unfinished, and nothing else.

    Attributes
    ----------
    journal : Journal
    version : int
        Number of the plan in force; -1 before the first.

    Raises
    ------
    InputError
        The folder cannot be written to, or what is in it is no watcher's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.plans = folder, folder / "plans"
        try:
            self.plans.mkdir(parents=True, exist_ok=True)
            self.journal = Journal(folder / "journal.jsonl")
            self.version = max((e["version"] for e in self.journal.entries if e["event"] == "plan"), default=-1)
            left_over = [*self._left_over()]
            for path in folder.iterdir():
                if is_unfinished(path.name):
                    path.unlink()
            for path in left_over:
                shutil.rmtree(path, ignore_errors=True)
        except OSError as error:
            raise unwritable(folder, error) from None
        if self.version >= 0:
            self._point()

    def _left_over(self) -> Iterator[Path]:
        """Yield what a killed watcher has left of the plan after the last; nothing else in the folder is touched.

        Raises
        ------
        InputError
            There are other plans that the journal does not name: it is gone, or the folder is no watcher's.
        """
        known = {self.plan_folder(version) for version in range(self.version + 1)}
        for path in sorted({*self.plans.iterdir()} - known):
            next_one = path == self.plan_folder(self.version + 1) and {one.name for one in path.iterdir()} <= _FILES
            if next_one or is_unfinished(path.name):
                yield path
            elif path.name.isdecimal():
                expected = "an empty folder, or a watcher's, with the journal.jsonl that names all of its plans"
                found = f"plans/{path.name}, which no line of journal.jsonl names"
                raise InputError(Mistake(found, expected, "", self.folder))

    def current(self) -> Placement:
        """Read the plan in force; it must be the one that the journal names.

        Raises
        ------
        InputError
            It is missing, damaged or another one.
        """
        path = self.plan_folder(self.version) / PLACEMENT
        placement = load_placement(path)
        entry = next(e for e in reversed(self.journal.entries) if e["event"] == "plan")
        if placement.gpu_sha256 != entry["gpu_sha256"]:
            expected = f"the plan with SHA-256 {entry['gpu_sha256']} that journal.jsonl names"
            raise InputError(Mistake(f"a plan with SHA-256 {placement.gpu_sha256}", expected, "", path))
        return placement

    def planned_load(self, shape: tuple[int, int]) -> Floats | None:
        """Return the shares of load [MoE layers, experts] that the plan in force was made for; None: not known.

        Raises
        ------
        InputError
            They are damaged, or of another model.
        """
        path = self.plan_folder(self.version) / LOAD
        if not path.exists():
            return None
        try:
            load = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            load = np.zeros(0)
        if load.shape != shape or load.dtype != np.float64 or not np.isfinite(load).all():
            expected = f"shares of load of {shape[0]} MoE layers x {shape[1]} experts, as written with the plan"
            raise InputError(Mistake("other content, or a damaged file", expected, "", path))
        return np.asarray(load, dtype=np.float64)

    def plan_folder(self, version: int) -> Path:
        """Return the folder of a plan."""
        return self.plans / f"{version:06d}"

    def put(
        self,
        placement: Placement,
        instance: Instance,
        transfers: Transfers | None,
        load: Floats | None,
        entry: Mapping[str, Any],
    ) -> None:
        """Make a plan the one in force: its folder, its line in the journal, the pointer.

        Parameters
        ----------
        placement : Placement
        instance : Instance
            What it is for.
        transfers : Transfers or None
            The way there from the plan before.
        load : float array or None
            Shares of load [MoE layers, experts] that it was made for.
        entry : dict
            What else the journal says.
        """
        version = self.version + 1
        with replaced_folder(self.plan_folder(version), PLACEMENT, lambda name: name in _FILES) as new:
            placement.write(new / PLACEMENT)
            write_atomically(new / INSTANCE, dump_instance(instance))
            if transfers is not None:
                write_atomically(new / TRANSFERS, transfers.to_json())
            if load is not None:
                with (new / LOAD).open("xb") as stream:
                    np.save(stream, load)
                    stream.flush()
                    os.fsync(stream.fileno())
        self.journal.append({**entry, "event": "plan", "version": version, "gpu_sha256": placement.gpu_sha256})
        self.version = version
        self._point()

    def _point(self) -> None:
        path = f"plans/{self.version:06d}/{PLACEMENT}"
        content = {"schema": "moe-placer/watch-current/1", "version": self.version, "placement": path}
        write_atomically(self.folder / "current.json", json.dumps(content, indent=1) + "\n")
