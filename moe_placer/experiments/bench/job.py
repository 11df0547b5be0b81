"""One run to measure: an instance, a solver and its limits."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """One run; it has a process of its own, so everything in it is text or a number.

    Attributes
    ----------
    instance : str
        Path of the instance file.
    name : str
        Name of the instance.
    traces : tuple of str
        Paths of recorded traces, for trace instances.
    solver : str
    time_limit_s : float
    gap : float
    workers : int
    seed : int
    repeat : int
        Counted from 1.
    """

    instance: str
    name: str
    traces: tuple[str, ...]
    solver: str
    time_limit_s: float
    gap: float = 0.001
    workers: int = 1
    seed: int = 0
    repeat: int = 1

    def settings(self) -> dict[str, object]:
        """Return what a row says of the run before it began; no paths."""
        return {
            "instance": self.name,
            "solver": self.solver,
            "time_limit_s": self.time_limit_s,
            "gap": self.gap,
            "workers": self.workers,
            "seed": self.seed,
            "repeat": self.repeat,
        }
