"""Descents towards an even load of GPUs, a step in all layers at once.

In every step, every layer makes those trades of its busiest GPUs that lower the excess over its target most per move,
and do not touch each other's GPUs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.limits import Deadline
from moe_placer.replan.gpu_trades import Offers, find_trades
from moe_placer.replan.slot_tables import SlotTable, Snapshot, Step
from moe_placer.search.local_search import HELPS

__all__ = ["GpuDescents"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_BUSY = 3  # GPUs of a layer that give something away in a step
_CALL = 2_000  # changes that could be looked at in the time that the calls of numpy take in each layer
_TOGETHER = 0.5  # of what a change would do alone: less means that its parts meet somewhere, and it is taken back


class GpuDescents:
    """Descents of L layers that go on from where they are.

    Attributes
    ----------
    snapshots : list of Snapshot
        What was met on the way.
    ended : bool array [L]
        Where nothing helps any more.
    evaluated : int array [L]
        Changes looked at: deterministic effort.
    """

    def __init__(self, table: SlotTable, lowest: Floats, share: float, inside: bool) -> None:
        busiest = table.load.max(axis=1)
        self.table, self.inside = table, inside
        self.target = busiest - share * np.maximum(0.0, busiest - lowest)
        self.least = table.starts[0].layer.least_replicas
        self.ended = np.zeros(len(busiest), dtype=bool)
        self.evaluated = np.zeros(len(busiest), dtype=np.int64)
        self.snapshots: list[Snapshot] = []

    @property
    def excess(self) -> Floats:
        """Sum of squares [L] of what GPUs have above the target of their layer."""
        return np.asarray((np.maximum(0.0, self.table.load - self.target[:, None]) ** 2).sum(axis=1))

    def run(self, reach: Ints, deadline: Deadline) -> None:
        """Descend until nothing helps, or layers have more moves than ``reach`` [L]."""
        while not deadline.over:
            rows = np.flatnonzero(~self.ended & (self.table.moves <= reach) & (self.excess > 0))
            if not len(rows):
                break
            self.evaluated[rows] += _CALL + _BUSY * self.table.kind[0].size * self.table.kind.shape[2]
            offers = find_trades(self.table, rows, self.target, _BUSY, self.least, self.inside)
            self.ended[rows[~self._make(rows, offers)]] = True

    def _make(self, rows: Ints, offers: Offers) -> Bools:
        """Make the offers of each layer that do not touch each other, the best first; return where any was made."""
        table = self.table
        touched = np.zeros((len(rows), table.load.shape[1]), dtype=bool)
        before, made = self.excess[rows], np.zeros(len(rows), dtype=bool)
        order, on = np.argsort(offers.score, axis=1, kind="stable"), table.on[rows] > 0
        for which in order.T:
            step, score, change = offers.step(rows, which)
            touches = self._touches(step, on)
            can = np.isfinite(score) & (change < -HELPS * before) & ~(touched & touches).any(axis=1)
            if not can.any():
                continue
            touched |= touches & can[:, None]
            excess, done = self.excess[rows], step.only(can)
            back = table.apply(done)
            worse = (self.excess[rows] > excess + _TOGETHER * change)[can]
            if worse.any():
                table.apply(back.only(worse))
            self._keep(done.rows[~worse])
            made[np.flatnonzero(can)[~worse]] = True
        return made

    def _touches(self, step: Step, on: Bools) -> Bools:
        """Mask [R, G] of GPUs whose load a change touches; ``on`` [R, E, G] is where experts are before the step."""
        at, table = np.arange(len(step.rows)), self.table
        touches = np.zeros((len(at), table.load.shape[1]), dtype=bool)
        touches[at, step.hot] = touches[at, step.gpu] = True
        changes = step.new >= 0
        for kind in (step.new, table.kind[step.rows, step.gpu, step.other]):
            touches[changes] |= on[at[changes], kind[changes]]
        return touches

    def _keep(self, rows: Ints) -> None:
        moves, busiest = self.table.moves, self.table.load.max(axis=1)
        self.snapshots += [self.table.snapshot(row, int(moves[row]), float(busiest[row])) for row in rows.tolist()]
