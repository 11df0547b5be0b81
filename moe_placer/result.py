"""What a solver returns for a layer: its placement and bound (status), and why the search ended (stop)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moe_placer.errors import MoePlacerError
from moe_placer.limits import Deadline

if TYPE_CHECKING:
    from moe_placer.bounds.bounds import Bound  # who asks for gaps alone waits for no SciPy

__all__ = ["FalseBoundError", "LayerResult", "Report", "Status", "Stop", "gap", "stop_at", "why_stopped"]


class FalseBoundError(MoePlacerError, ValueError):
    """A bound is above what was found."""

    exit_code = 70


class Status(StrEnum):
    """What is known of a layer: a proven optimum, a valid placement, a proof that there is none, or nothing."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNKNOWN = "unknown"


class Stop(StrEnum):
    """Why the search for a layer's placement ended."""

    PROVED = "proved"
    GAP = "gap reached"
    TIME = "time"  # the clock struck
    WORK = "effort spent"  # deterministic effort, before the clock struck
    INTERRUPTED = "interrupted"
    KILLED = "workers killed"  # again and again, most likely for want of memory
    FINISHED = "finished"  # the method has no more steps

    @property
    def without_gap(self) -> Stop:
        """What is left of a reason when the z or the bound behind it is another: no gap is said to be reached."""
        return Stop.FINISHED if self in {Stop.PROVED, Stop.GAP} else self


def why_stopped(deadline: Deadline) -> Stop:
    """Say why a search that is not done ends now: interrupted, out of time, or else out of effort."""
    if deadline.interrupted():
        return Stop.INTERRUPTED
    return Stop.TIME if deadline.over else Stop.WORK


OPTIMAL_GAP = 1e-6  # closer than this to its bound, a z counts as equal to it


def gap(z: float, bound: float) -> float:
    """How far z is above a bound, ``(z - bound) / bound``: 0.01 is 1%; infinite where only the bound is 0."""
    if z <= bound:
        return 0.0
    return (z - bound) / bound if bound > 0 else np.inf


def stop_at(here: float, within: float, otherwise: Stop) -> Stop:
    """Say why a search ends at a gap: proved, within the gap that was asked for, or for another reason."""
    return Stop.PROVED if here <= OPTIMAL_GAP else Stop.GAP if here <= within else otherwise


@dataclass(frozen=True, eq=False)
class LayerResult:
    """One layer's placement at node level.

    Attributes
    ----------
    node : int array [items] or None
        Node of each item.
    z : float
        Cost of its busiest link; infinite without a placement.
    bound : Bound
        Re-checkable unless its proof is ``solver``.
    stop : Stop
    solver_bound : float or None
        What only the solver's own search proved, for every choice of replicas where these are free.
    gpu : int array [items] or None
        Global GPU of each item, for methods that decide it themselves.
    replicas : int array [experts] or None
        Replicas of each expert, where the method chose others than the problem's; items are in the order these give.
    work : float
        Deterministic effort spent, about seconds.
    repaired : int
        Replicas that are not where the method puts them: replicas of one expert were too close together, a pin held
        one, or a DP group's nodes had no slot left.
    """

    node: npt.NDArray[np.int64] | None
    z: float
    bound: Bound
    stop: Stop
    solver_bound: float | None = None
    gpu: npt.NDArray[np.int64] | None = None
    replicas: npt.NDArray[np.int64] | None = None
    work: float = 0.0
    repaired: int = 0

    def __post_init__(self) -> None:
        placed = self.node is not None
        if placed != np.isfinite(self.z):
            raise ValueError(f"{'a' if placed else 'no'} placement contradicts z = {self.z}")
        if np.isnan(self.best_bound):
            raise FalseBoundError("a bound is no number")
        if placed and self.best_bound > self.z * (1 + OPTIMAL_GAP) + 1e-9:
            raise FalseBoundError(f"bound {self.best_bound} is above z = {self.z}: one of them is wrong")
        if self.stop is Stop.PROVED and self.status is Status.FEASIBLE:
            raise ValueError(f"stopped as proved, but z = {self.z} is not the bound {self.best_bound}")

    @property
    def status(self) -> Status:
        """What we have: it follows from z and the bounds; proved without a placement means that there is none."""
        if self.node is None:
            return Status.INFEASIBLE if self.stop is Stop.PROVED else Status.UNKNOWN
        return Status.OPTIMAL if gap(self.z, self.best_bound) <= OPTIMAL_GAP else Status.FEASIBLE

    @property
    def best_bound(self) -> float:
        """The larger of the re-checkable bound and the solver's own."""
        return max(self.bound.value, self.solver_bound or 0.0)

    @property
    def gap(self) -> float:
        """How far z is above the re-checkable bound."""
        return gap(self.z, self.bound.value if self.bound.proof != "solver" else 0.0)


Report = Callable[[int, LayerResult], None]  # (index of the MoE layer, a result better than the last one reported)
