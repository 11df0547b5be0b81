"""What a solver is: arrays, limits and a seed go in, one result per layer comes out.

A solver knows no file format. `tests/test_contract.py` runs every registered solver through the same suite.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moe_placer.errors import UsageError
from moe_placer.problem import LayerProblem, Problem
from moe_placer.result import LayerResult

__all__ = ["Deadline", "LayerSolver", "Limits", "Report", "Solver", "Start"]

Start = Sequence[npt.NDArray[np.int64] | None]  # per MoE layer, the node of each item, where there is any
Report = Callable[[int, LayerResult], None]  # (index of the MoE layer, a result better than the last one reported)

# Deterministic effort is counted in seconds of a slow machine, so that it usually runs out before the clock does
# and the same limits give the same placement.
WORK_PER_SECOND = 0.5


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Deadline:
    """When to stop: a point in time, and a question to ask now and then.

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

    @property
    def total_work(self) -> float:
        """Deterministic effort for all layers together."""
        return self.work if self.work is not None else self.time_s * self.workers * WORK_PER_SECOND


class Solver(ABC):
    """A method that places all layers.

    Attributes
    ----------
    name : str
        As in ``--solver``.
    summary : str
        One line for ``moe-placer solvers``.
    source : str
        Where the method is from.
    exact : bool
        Whether it can prove optimality, given time.
    """

    name: str
    summary: str
    source: str = ""
    exact: bool = False

    def unavailable(self) -> str | None:
        """Say why this solver cannot run here at all (a package that is missing); None where it can."""
        return None

    def refuses(self, problem: Problem) -> str | None:
        """Say why this solver cannot serve a problem; None where it can."""
        del problem
        return None

    @abstractmethod
    def solve(
        self, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
    ) -> list[LayerResult]:
        """Place all layers, reporting better results as they come; stop at ``limits.deadline`` with the best so far."""


class LayerSolver(Solver):
    """A method that places one layer at a time; layers are tasks that take arrays and return arrays.

    Attributes
    ----------
    quick : bool
        One pass of milliseconds per layer: runs in this process, once.
    """

    quick: bool = False

    @abstractmethod
    def solve_layer(
        self,
        layer: LayerProblem,
        gap: float,
        work: float,
        rng: np.random.Generator,
        start: LayerResult | None,
        deadline: Deadline,
    ) -> LayerResult:
        """Place one layer.

        Parameters
        ----------
        gap, work, deadline
            When to stop: at a relative gap, after so much deterministic effort, at a point in time.
        start : LayerResult or None
            A result to improve; the one returned is not worse. Where it has ``copies``, its items are those of these.
        """

    def solve(
        self, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
    ) -> list[LayerResult]:
        """Place all layers, over worker processes where that pays."""
        from moe_placer.layerwise import solve_layers  # it needs this class

        return solve_layers(self, problem, limits, seed, start, report)
