"""Recordings in a folder: which are new and complete, what traffic they are, and whether they say enough."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_placer.engines.recordings import import_recording
from moe_placer.engines.recordings.recorded import write_recording
from moe_placer.errors import InputError, Mistake, NothingFoundError
from moe_placer.files import is_unfinished, temporary_folder
from moe_placer.instance import Instance
from moe_placer.instance.schema import LoadTraffic
from moe_placer.traffic import Traffic, load_traffic, make_traffic

__all__ = ["Arrival", "arrivals", "load_shares", "read_arrival"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Arrival:
    """A file or folder with a recording.

    Attributes
    ----------
    path : Path
    changed_ns : int
        When its newest file was changed last.
    fingerprint : str
        SHA-256 of names, sizes and times of its files: what was looked at once is not looked at again.
    """

    path: Path
    changed_ns: int
    fingerprint: str


def arrivals(folder: Path) -> list[Arrival]:
    """List what is in a folder, the oldest first; hidden and unfinished files are left out.

    Raises
    ------
    InputError
        The folder cannot be read.
    """
    try:
        found = [_arrival(path) for path in sorted(folder.iterdir()) if not _hidden(path)]
    except OSError as error:
        mistake = Mistake(error.strerror or "an error", "a folder of recordings", "", folder)
        raise InputError(mistake) from None
    return sorted((one for one in found if one is not None), key=lambda one: (one.changed_ns, one.path.name))


def _hidden(path: Path) -> bool:
    return path.name.startswith(".") or is_unfinished(path.name)


def _arrival(path: Path) -> Arrival | None:
    """Describe a recording; None where it goes while it is looked at, or is an empty folder."""
    rows = []
    try:
        for file in _files(path):
            state = file.stat()
            rows.append((str(file.relative_to(path.parent)), state.st_size, state.st_mtime_ns))
    except FileNotFoundError:
        return None
    if not rows:
        return None
    print_ = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return Arrival(path, max(at for _, _, at in rows), print_)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file))
    elif path.is_file():
        yield path


def read_arrival(instance: Instance, arrival: Arrival, least_choices: float) -> Traffic:
    """Read a recording of any format that ``moe-placer import`` knows, as traffic of the instance.

    Every node has the same traffic, unless the instance says ``traffic.sources: recorded``.

    Raises
    ------
    InputError
        It is damaged, of no known format, or of another model.
    NothingFoundError
        Some layer has fewer choices than ``least_choices`` for each of its experts, on average: that says too little.
    """
    recorded = import_recording([arrival.path], experts=instance.model.experts)
    layers, experts = len(instance.moe_layers), instance.model.experts
    if recorded.load.shape != (layers, experts):
        found = f"a recording of {recorded.load.shape[0]} MoE layers of {recorded.load.shape[1]} experts"
        raise InputError(Mistake(found, f"{layers} of {experts}, as {instance.name} has", "", arrival.path))
    fewest = float(recorded.load.sum(axis=1).min())
    if fewest < least_choices * experts:
        raise NothingFoundError(
            f"{arrival.path.name} says too little: a layer has {fewest:,.0f} choices, required are "
            f"{least_choices * experts:,.0f} ({least_choices:g} for each expert)"
        )
    if getattr(instance.traffic, "sources", "mix") == "recorded":
        with temporary_folder() as folder:
            write_recording(folder / "recording.npz", recorded)
            traffic = LoadTraffic(
                kind="load",
                tokens_per_gpu=instance.traffic.tokens_per_gpu,
                files=(str(folder / "recording.npz"),),
                sources="recorded",
            )
            return load_traffic(instance.model_copy(update={"traffic": traffic}))
    return make_traffic(instance, load=[recorded.load])


def load_shares(traffic: Traffic) -> Floats:
    """Return the share of each layer's choices that each expert has [MoE layers, experts]."""
    weight = traffic.mix.mean(axis=0)
    share = sum(
        w * one.load / one.load.sum(axis=1, keepdims=True) for w, one in zip(weight, traffic.recordings, strict=True)
    )
    return np.asarray(share, dtype=np.float64)
