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
    "load_beside",
    "read_instance",
    "without",
]

ROW = "moe-placer/row/1"


@dataclass(frozen=True)
class Settings:
    """The settings that all runs of a comparison share.

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
        """Return the fields of its row that are known before the run; no paths."""
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
        whole = read_instance(Path(self.path), self.traces)
        instance = without(whole, self.left_out)
        traffic, beside = load_traffic(instance), load_beside(whole, self.held_out, self.next_window, self.left_out)
        current = load_placement(self.current) if self.current else None
        found = (
            instance.sha256,
            traffic.sha256,
            beside.sha256 if beside else None,
            current.gpu_sha256 if current else None,
        )
        if found != (self.instance_sha256, self.traffic_sha256, self.held_out_sha256, self.current_sha256):
            raise InputError(Mistake("files that changed during the comparison", "the same files", self.name))
        return instance, traffic, beside, current


def load_beside(
    instance: Instance, traces: Sequence[str | Path], next_window: bool, left_out: int | None
) -> Traffic | None:
    """Return the traffic to measure on beside what is solved for; None without.

    Parameters
    ----------
    instance : Instance
        With all of its recordings.
    traces : sequence of paths
        Recordings that are held out.
    next_window : bool
        Whether generated traffic has its next window instead.
    left_out : int or None
        The recording that all nodes' tokens are like, where it is left out of what is solved for.
    """
    if left_out is not None:
        return load_traffic(instance.with_recordings([left_out], instance.name))
    if next_window and isinstance(instance.traffic, SyntheticTraffic):
        return synthesize(instance, instance.traffic.seed, window=1)
    return load_traffic(instance.with_traces(traces)) if traces else None


def read_instance(path: Path, traces: Sequence[str | Path]) -> Instance:
    """Read an instance; traces apply to instances with ``traffic.kind: trace``."""
    instance = load_instance(path)
    return instance.with_traces(traces) if traces and instance.traffic.kind == "trace" else instance


def without(instance: Instance, left_out: int | None) -> Instance:
    """Return the instance without one of its recordings, whose name says so; None leaves out none."""
    if left_out is None:
        return instance
    files = instance.trace_files
    keep = [index for index in range(len(files)) if index != left_out]
    return instance.with_recordings(keep, f"{instance.name} without {files[left_out].stem}")
