"""One cell of the matrix: an instance with its traffic, a solver with its limits, a seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_placer.errors import InputError, Mistake
from moe_placer.instance import Instance, load_instance
from moe_placer.instance.schema import SyntheticTraffic
from moe_placer.placement import Placement, load_placement
from moe_placer.traffic import Traffic, load_traffic
from moe_placer.traffic.synthetic import synthesize

__all__ = [
    "ROW",
    "Cell",
    "Settings",
    "count_recordings",
    "load_held_out",
    "load_left_out",
    "open_instance",
    "plan_sha256",
]

ROW = "moe-placer/row/1"


@dataclass(frozen=True)
class Settings:
    """What all runs of a comparison have alike.

    Attributes
    ----------
    time_limit_s : float
        Wall-clock seconds of each run.
    gap : float
        A layer is done within this fraction of its bound: 0.01 is 1%.
    workers : int
        Worker processes of each run.
    """

    time_limit_s: float = 60.0
    gap: float = 0.001
    workers: int = 1


@dataclass(frozen=True)
class Cell:
    """One run; it has a process of its own, so everything in it is text or a number.

    Attributes
    ----------
    path : str
        Of the instance file.
    name : str
        Of the instance.
    traces, held_out : tuple of str
        Paths of recorded traces, for trace instances: to solve for, and to measure on beside.
    instance_sha256, traffic_sha256 : str
    next_window : bool
        Whether to measure beside on the next tokens of synthetic traffic.
    held_out_sha256 : str or None
        Of the traffic to measure on beside; None without.
    current : str or None
        Path of the placement that runs today; None: the contiguous plan.
    current_sha256 : str or None
        Of what it puts where.
    solver, version : str
        Its name, and the version of what it is part of.
    seed : int
    time_limit_s, gap, workers
        As in `Settings`.
    left_out : int or None
        The recording that is measured on beside, and not among those solved for; None: none is.
    """

    path: str
    name: str
    traces: tuple[str, ...]
    held_out: tuple[str, ...]
    next_window: bool
    instance_sha256: str
    traffic_sha256: str
    held_out_sha256: str | None
    current: str | None
    current_sha256: str | None
    solver: str
    version: str
    seed: int
    time_limit_s: float
    gap: float
    workers: int
    left_out: int | None = None

    @property
    def parameters(self) -> dict[str, float | int]:
        """Limits, as rows state them."""
        return {"time_limit_s": self.time_limit_s, "gap": self.gap, "workers": self.workers}

    @property
    def key(self) -> str:
        """SHA-256 of everything that the run depends on; names and paths of files do not count."""
        content = {
            "instance": self.instance_sha256,
            "traffic": self.traffic_sha256,
            "held_out": self.held_out_sha256,
            "current": self.current_sha256,
            "solver": self.solver,
            "version": self.version,
            "seed": self.seed,
            "parameters": self.parameters,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def head(self) -> dict[str, Any]:
        """Return what its row says before it began; no paths."""
        return {
            "schema": ROW,
            "kind": "run",
            "key": self.key,
            "instance": self.name,
            "instance_sha256": self.instance_sha256,
            "solver": self.solver,
            "version": self.version,
            "parameters": self.parameters,
            "seed": self.seed,
        }

    def open(self) -> tuple[Instance, Traffic, Traffic | None, Placement | None]:
        """Read the instance, the traffic to solve for, the traffic to measure on beside, and the current plan.

        Raises
        ------
        InputError
            A file cannot be read, or has changed since the comparison began.
        """
        instance, traffic = open_instance(Path(self.path), self.traces, self.left_out)
        if self.left_out is None:
            beside = load_held_out(instance, self.held_out, self.next_window)
        else:
            beside = load_left_out(Path(self.path), self.traces, self.left_out)
        current = load_placement(self.current) if self.current else None
        found = (
            instance.sha256,
            traffic.sha256,
            beside.sha256 if beside else None,
            plan_sha256(current) if current else None,
        )
        if found != (self.instance_sha256, self.traffic_sha256, self.held_out_sha256, self.current_sha256):
            raise InputError(Mistake("files that changed during the comparison", "the same files", self.name))
        return instance, traffic, beside, current


def load_held_out(instance: Instance, traces: Sequence[str | Path], next_window: bool) -> Traffic | None:
    """Return the traffic to measure on beside what is solved for; None without."""
    if next_window and isinstance(instance.traffic, SyntheticTraffic):
        return synthesize(instance, instance.traffic.seed, window=1)
    return load_traffic(instance.with_traces(traces)) if traces else None


def plan_sha256(placement: Placement) -> str:
    """Return the hash of what a placement puts where; what it claims of itself does not count."""
    return hashlib.sha256(json.dumps(placement.gpu).encode()).hexdigest()


def open_instance(path: Path, traces: Sequence[str | Path], left_out: int | None = None) -> tuple[Instance, Traffic]:
    """Read an instance and its traffic; traces apply to instances with ``traffic.kind: trace``.

    With ``left_out`` it is the instance without that recording, whose name says so.
    """
    instance = _traced(path, traces)
    if left_out is not None:
        files = instance.trace_files
        keep = [index for index in range(len(files)) if index != left_out]
        instance = instance.with_recordings(keep, f"{instance.name} without {files[left_out].stem}")
    return instance, load_traffic(instance)


def load_left_out(path: Path, traces: Sequence[str | Path], left_out: int) -> Traffic:
    """Return the traffic of all nodes' tokens being like the recording that is left out."""
    instance = _traced(path, traces)
    return load_traffic(instance.with_recordings([left_out], instance.name))


def count_recordings(path: Path, traces: Sequence[str | Path]) -> int:
    """Return how many recorded traces an instance has; 0 where its traffic is of another kind."""
    instance = _traced(path, traces)
    return len(instance.trace_files) if instance.traffic.kind == "trace" else 0


def _traced(path: Path, traces: Sequence[str | Path]) -> Instance:
    instance = load_instance(path)
    return instance.with_traces(traces) if traces and instance.traffic.kind == "trace" else instance
