"""How long and how well to solve: wall-clock time, deterministic effort, gap, workers, and when to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from moe_placer.errors import UsageError

__all__ = ["Deadline", "Limits"]

# Deterministic effort is counted in seconds of a slow machine, so that it usually runs out before the clock does
# and the same limits give the same placement.
WORK_PER_SECOND = 0.5


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Deadline:
    """When to stop: a point in time, and a function that is asked now and then.

    Attributes
    ----------
    at : float
        `time.monotonic` seconds; infinite for none.
    interrupted : callable
        Whether somebody wants the best so far, now.
    """

    at: float = float("inf")
    interrupted: Callable[[], bool] = _never

    @property
    def left(self) -> float:
        """Seconds left, not below 0."""
        return max(0.0, self.at - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether to stop now."""
        return self.interrupted() or self.left <= 0

    def after(self, share: float) -> Deadline:
        """Return the deadline that a share of the time left ends at."""
        return replace(self, at=time.monotonic() + share * self.left)


@dataclass(frozen=True)
class Limits:
    """How long and how well to solve.

    Attributes
    ----------
    time_s : float
        Wall-clock seconds for the whole solve.
    gap : float
        A layer is done when its z is within this fraction of its bound: 0.001 is 0.1%.
    workers : int
        Worker processes; with 1, everything runs in this one.
    work : float or None
        Deterministic effort for all layers together, about seconds of one slow core; None: in proportion to ``time_s``
        and ``workers``. While the clock does not strike first, the same work gives the same placement.
    memory_bytes : float or None
        What all processes together may take; a solve whose estimate is above it is refused before it starts. None: what
        the machine has left then.
    bounds : bool
        Whether layers that the method leaves without a re-checkable bound get one from a linear relaxation, which for a
        heuristic takes most of the time. Without, their gap is not known.
    executor : str or None
        What runs layers, such as ``dask:tcp://host:8786``; None: processes of this machine, as many as ``workers``.
    deadline : Deadline
        Set by `moe_placer.solve` when it starts.

    Raises
    ------
    UsageError
        A limit makes no sense.
    """

    time_s: float = 60.0
    gap: float = 0.001
    workers: int = 1
    work: float | None = None
    memory_bytes: float | None = None
    bounds: bool = True
    executor: str | None = None
    deadline: Deadline = field(default_factory=Deadline)

    def __post_init__(self) -> None:
        if not 0 <= self.time_s < 1e9:
            raise UsageError(f"time limit is {self.time_s:g} s, expected 0 s or more")
        if not 0 <= self.gap < 1e9:
            raise UsageError(f"gap is {self.gap:g}, expected 0 or more (0.01 is 1%)")
        if not 1 <= self.workers <= 1024:
            raise UsageError(f"{self.workers} workers, expected 1 to 1,024")
        if self.work is not None and not 0 <= self.work < 1e12:
            raise UsageError(f"work limit is {self.work:g}, expected 0 or more")
        if self.memory_bytes is not None and not self.memory_bytes > 0:
            raise UsageError(f"memory limit is {self.memory_bytes / 1e9:g} GB, expected more than 0")

    @property
    def total_work(self) -> float:
        """Deterministic effort for all layers together."""
        return self.work if self.work is not None else self.time_s * self.workers * WORK_PER_SECOND

    def part(self, share: float) -> Limits:
        """Return limits with a share of the effort, and of the time left."""
        return replace(self, work=share * self.total_work, deadline=self.deadline.after(share))
