"""The curves of all layers: how far each is searched, and how one budget is divided over their points."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from moe_placer.errors import NothingFoundError
from moe_placer.limits import Deadline, Limits
from moe_placer.placement import Placement
from moe_placer.replan.allocation import Allocation, allocate
from moe_placer.replan.curve import Curve, Point
from moe_placer.replan.even_gpus import can_even_gpus, even_gpus
from moe_placer.replan.task import Figures, Task
from moe_placer.traffic import Traffic

__all__ = ["Divided", "min_of", "search"]

Ints = npt.NDArray[np.int64]

_DESCENTS = 3  # of a layer beside the first, to other targets
_SHOWN = 16  # budgets of the curve
_STAGES = (0.25, 0.5, 1.0, 1.5)  # times the mean share of the budget: how far all layers are searched, in turns
_FURTHER = 1.5  # times what was searched
_FRONTIER = 0.75  # of what was searched: a layer that is given more moves is searched further


def min_of(most: int | None, items: int) -> int:
    """Return the smaller of a limit, where there is one, and a number of items."""
    return items if most is None else min(most, items)


def search(curves: Sequence[Curve], most: int | None, limits: Limits, deadline: Deadline, seed: int) -> None:
    """Descend in every layer, then disturb and improve, the layers in turns, until effort or time is spent.

    Parameters
    ----------
    curves : sequence of Curve
        One per MoE layer.
    most : int or None
        Moves that the budget allows.
    limits : Limits
        Whose deterministic effort counts.
    deadline : Deadline
        When to stop, whatever has been reached.
    seed : int
        Of the disturbances.
    """
    evened = can_even_gpus(curves)
    if evened:
        even_gpus(curves, _reach(curves, most, 1.0), partial(_worth_searching, most), deadline)
    if not evened or curves[0].goal.links or not curves[0].start.layer.replicas_are_free:
        _layer_by_layer(curves, most, deadline)
    rngs = [np.random.default_rng((seed, index)) for index in range(len(curves))]
    while sum(curve.work for curve in curves) < limits.total_work:
        before = sum(curve.evaluated for curve in curves)
        for curve, rng in zip(curves, rngs, strict=True):
            if deadline.over:
                return
            if len(curve.points) > 1:  # where no trade helps there is nothing to disturb
                curve.disturb(rng, deadline)
        if sum(curve.evaluated for curve in curves) == before:
            return


def _layer_by_layer(curves: Sequence[Curve], most: int | None, deadline: Deadline) -> None:
    """Descend towards every target in one layer after the other, with links and roles of replicas counted."""
    _first_descents(curves, most, deadline)
    for depth in range(_DESCENTS):
        for curve in curves:
            if deadline.over:
                return
            curve.descend(depth, deadline)


def _first_descents(curves: Sequence[Curve], most: int | None, deadline: Deadline) -> None:
    """Descend from what runs now, in every layer as far as it could be given moves of the budget.

    The first moves gain most. So all layers are searched in turns, up to a little beyond their mean share; then the
    budget is divided, and those that are given nearly all that was searched go on, until none is.
    """
    for stage in _STAGES if most is not None else _STAGES[-1:]:
        for curve, reach in zip(curves, _reach(curves, most, stage).tolist(), strict=True):
            if deadline.over:
                return
            curve.descend_to(reach, deadline)
    while most is not None and not deadline.over:
        reached = np.array([curve.reach for curve in curves])
        worth = _worth_searching(most, curves, reached)
        further = [(curve, to) for curve, to in zip(curves, worth.tolist(), strict=True) if to > curve.reach]
        further = [(curve, to) for curve, to in further if curve.is_paused]
        if not further:
            return
        for curve, to in further:
            curve.descend_to(to, deadline)


def _reach(curves: Sequence[Curve], most: int | None, share: float) -> Ints:
    """Return the moves [layers] up to which to search where each layer gets this share of its mean part of a budget."""
    least = np.array([curve.points[0].moves for curve in curves])
    if most is None:
        return np.array([curve.most for curve in curves])
    return np.asarray(least + int(np.ceil(share * (most - least.sum()) / len(curves))))


def _worth_searching(most: int | None, curves: Sequence[Curve], searched: Ints) -> Ints:
    """Return the moves [layers] up to which layers should be searched, where they were up to ``searched``.

    Those that are given nearly all that was searched are worth more.
    """
    if most is None:
        return searched
    points = [curve.points for curve in curves]
    allocation, spent = _allocated(points, most)
    given = np.array([row[at].moves for row, at in zip(points, allocation.choose(spent), strict=True)])
    further = np.ceil(_FURTHER * searched).astype(np.int64) + 1
    wanted = np.where(given >= _FRONTIER * searched, further, searched)
    return np.minimum(wanted, [max(curve.most, int(to)) for curve, to in zip(curves, searched, strict=True)])


def _allocated(points: Sequence[Sequence[Point]], most: int | None) -> tuple[Allocation, int]:
    """Allocate a budget to one point of each layer; return with it the moves that can be spent."""
    counted = [np.array([point.moves for point in row]) for row in points]
    values = [np.array([point.value for point in row]) for row in points]
    spent = min_of(most, sum(int(row[-1]) for row in counted))
    return allocate(counted, values, spent), spent


class Divided:
    """The budget divided over the curves of all layers."""

    def __init__(self, task: Task, curves: Sequence[Curve], most: int | None) -> None:
        self.task, self.points = task, [curve.points for curve in curves]
        self._divide(most)

    def _divide(self, most: int | None) -> None:
        self.allocation, self.spent = _allocated(self.points, most)
        self.chosen = self._choose(self.spent)

    def restrict(self, rows: Sequence[int]) -> None:
        """Leave these layers fewer moves than they have."""
        for row in rows:
            moves = self.chosen[row].moves
            self.points[row] = [point for point in self.points[row] if point.moves < moves]
            if not self.points[row]:
                layer = self.task.problem.moe_layers[row]
                raise NothingFoundError(f"layer {layer}: what has to come back takes longer than the budget allows")
        self._divide(self.spent)

    def reduce(self, share: float) -> None:
        """Leave all layers together about this share of their moves, and fewer than they have."""
        moves, least = sum(point.moves for point in self.chosen), sum(row[0].moves for row in self.points)
        if moves == least:
            raise NothingFoundError("what has to come back takes longer than the budget allows")
        self._divide(max(least, min(moves - 1, int(share * moves))))

    def _choose(self, budget: int) -> list[Point]:
        return [row[at] for row, at in zip(self.points, self.allocation.choose(budget), strict=True)]

    @cached_property
    def _along(self) -> list[tuple[Figures, list[Point]]]:
        """Points of all layers for budgets that double, up to the one that is given, with their figures."""
        least = sum(row[0].moves for row in self.points)
        more = self.spent - least
        budgets = sorted({least, self.spent, *(least + (more >> shift) for shift in range(_SHOWN))})
        found: list[tuple[Figures, list[Point]]] = []
        for budget in budgets:
            chosen = self._choose(budget)
            figures = self.task.figures(chosen)
            if not found or figures.moves > found[-1][0].moves:
                found.append((figures, chosen))
        return found

    @property
    def curve(self) -> tuple[Figures, ...]:
        """Measure the best found for budgets that double, up to the one that is given."""
        return tuple(figures for figures, _ in self._along)

    def build_curve(self, traffic: Traffic, seed: int) -> tuple[Placement, ...]:
        """Return the placement of every point of the curve."""
        return tuple(self.task.placement(traffic, chosen, seed) for _, chosen in self._along)
