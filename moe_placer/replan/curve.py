"""What one layer gains with how many moves: the best placements found for every number of moves.

Descents start from the current placement. Each makes the trade that lowers the excess over a target most per move,
until the target is reached or nothing helps; every placement on the way is a point of the curve. Low targets spread
moves over all busy links, high ones stop early: several are tried. While effort is left, a placement of the curve is
disturbed by random trades and improved again (iterated local search).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_placer.limits import Deadline
from moe_placer.problem.layer import LayerProblem
from moe_placer.replan.replica_changes import best_change, changed
from moe_placer.replan.trades import LISTED, Goal, LayerState, Trade
from moe_placer.search.local_search import EVALUATIONS_PER_WORK, HELPS

__all__ = ["TARGETS", "Curve", "LayerStart", "Point"]

Ints = npt.NDArray[np.int64]

_STEPS = 400  # trades of one descent at most
TARGETS = (1.0, 0.5, 0.75, 0.25)  # of the way from the current value to the lower bound, in the order tried
_KICKS = 2
_TOGETHER = 0.5  # of what a trade would do alone: it is made after others
_CALL = 10_000  # link costs that could be looked at in the time that one small numpy call takes


@dataclass(frozen=True, eq=False)
class Point:
    """One placement of a layer: its moves and its value.

    Attributes
    ----------
    moves : int
    value, z, busiest_gpu : float
    build : callable
        Returns the layer, with the replicas of each expert, and the place of each item; few points are ever asked.
    """

    moves: int
    value: float
    z: float
    busiest_gpu: float
    build: Callable[[], tuple[LayerProblem, Ints]]

    @cached_property
    def _built(self) -> tuple[LayerProblem, Ints]:
        return self.build()

    @property
    def layer(self) -> LayerProblem:
        """The layer, with the replicas of each expert."""
        return self._built[0]

    @property
    def place(self) -> Ints:
        """Place of each item."""
        return self._built[1]


@dataclass(frozen=True, eq=False)
class LayerStart:
    """A layer as it is now, and what it could reach.

    Attributes
    ----------
    layer : LayerProblem
        With the replicas that run now.
    place : int array [items]
    held : int array [experts, places]
    slots : int array [places]
    lowest_z, lowest_gpu : float
        Bounds on the busiest link and the busiest GPU.
    """

    layer: LayerProblem
    place: Ints
    held: Ints
    slots: Ints
    lowest_z: float
    lowest_gpu: float


class Curve:
    """The points of a layer, none of which has both as many moves and no smaller value than another."""

    def __init__(self, start: LayerStart, goal: Goal, inside: bool, most: int) -> None:
        self.start, self.goal, self.inside, self.most = start, goal, inside, most
        self.evaluated = 0
        self.reach = most  # moves that are worth looking at so far
        self._paused: LayerState | None = None
        self._begun = False
        self._points: dict[int, Point] = {}
        state = self._state(start.layer, start.place)
        self.record(state)
        (self.current,) = self._points.values()  # what runs now; a point without moves may be better: roles change free

    @property
    def points(self) -> list[Point]:
        """By moves, each better than those before."""
        found: list[Point] = []
        for moves in sorted(self._points):
            point = self._points[moves]
            if not found or point.value < found[-1].value * (1 - HELPS):
                found.append(point)
        return found

    @property
    def work(self) -> float:
        """Deterministic effort so far, about seconds of a slow core."""
        return self.evaluated / EVALUATIONS_PER_WORK

    def record(self, state: LayerState) -> None:
        """Keep a placement if it is the best with so many moves, and not more than allowed."""
        moves, value = state.moves, state.value
        if self._improves(moves, value):
            found = state.layer, state.place.copy()
            self._points[moves] = Point(moves, value, state.links.z, state.busiest_gpu, lambda: found)

    def offer(self, point: Point) -> None:
        """Keep a point that was found elsewhere, if `record` would keep it."""
        if self._improves(point.moves, point.value):
            self._points[point.moves] = point

    def _improves(self, moves: int, value: float) -> bool:
        known = self._points.get(moves)
        return moves <= self.most and (known is None or value < known.value)

    def descend(self, depth: int, deadline: Deadline) -> None:
        """Descend from the current placement towards the next target but ``depth``, as far as `reach` goes."""
        if depth + 1 < len(TARGETS):
            self._descend(self._state(self.start.layer, self.start.place), TARGETS[depth + 1], deadline)

    def descend_to(self, reach: int, deadline: Deadline) -> None:
        """Descend towards the first target, or go on where that ended, up to so many moves."""
        self.reach = min(self.most, reach)
        if not self._begun or self._paused is not None:
            state = self._paused or self._state(self.start.layer, self.start.place)
            self._begun = True
            self._paused = self._descend(state, TARGETS[0], deadline)

    @property
    def is_paused(self) -> bool:
        """Whether the first descent ended at `reach` only, short of what is allowed."""
        return self._paused is not None and self.reach < self.most

    def disturb(self, rng: np.random.Generator, deadline: Deadline) -> None:
        """Disturb a placement of the curve, and improve it."""
        points = self.points
        point = points[int(rng.integers(len(points)))]
        state = self._state(point.layer, point.place)
        for _ in range(_KICKS):
            items = state.at_worst()
            trade = state.random_trade(int(rng.choice(items)), rng, self.inside) if len(items) else None
            if trade is not None:
                state.apply(trade)
        self._descend(state, float(rng.choice(TARGETS)), deadline)

    def _apply_more(self, state: LayerState, trades: Sequence[Trade], target_z: float, target_gpu: float) -> None:
        """Make further trades while they do together what each would do alone, or nearly."""
        excess = state.excess(target_z, target_gpu)
        for trade in trades:
            self.record(state)
            here, held = int(state.place[trade.item]), state.moves
            state.apply(trade)
            after = state.excess(target_z, target_gpu)
            if after > excess + _TOGETHER * trade.change or state.moves > held + trade.moves:
                state.apply(Trade(0.0, 0, trade.item, trade.partner, here))
                return
            excess = after

    def _state(self, layer: LayerProblem, place: Ints) -> LayerState:
        return LayerState(layer, place, self.start.held, self.start.slots, self.goal)

    def _descend(self, state: LayerState, share: float, deadline: Deadline) -> LayerState | None:
        """Descend until nothing helps; return the state where it could go on beyond `reach`."""
        z, gpu = self.current.z, self.current.busiest_gpu
        target_z = z - share * max(0.0, z - self.start.lowest_z)
        target_gpu = gpu - share * max(0.0, gpu - self.start.lowest_gpu)
        for _ in range(_STEPS):
            excess = state.excess(target_z, target_gpu)
            self.record(state)
            if excess <= 0 or deadline.over:
                return None
            items = state.at_worst()
            self.evaluated += _CALL + len(items) * state.layer.items + LISTED * state.layer.links
            trades = state.best_trades(items, target_z, target_gpu, self.inside)
            trade, other = next(iter(trades), None), None
            if state.layer.replicas_are_free:
                self.evaluated += _CALL
                other = best_change(state, target_z, target_gpu, self.inside)
            helps = -HELPS * excess
            if other is not None and other.change < helps and (trade is None or other.score < trade.score):
                state = changed(state, other)
            elif trade is not None and trade.change < helps:
                state.apply(trade)
                self._apply_more(state, trades[1:], target_z, target_gpu)
            else:
                return None
            if state.moves > self.reach:
                return state
        return None
