"""The curve of a layer whose tokens go once to every node that holds one of their experts.

Its costs are not linear, so trades are those of `CoverageTrades`: ranked by the gradient of the smoothed busiest link,
then computed exactly, here per move.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_placer.limits import Deadline
from moe_placer.replan.curve import Curve
from moe_placer.replan.trades import LayerState, Trade, per_move
from moe_placer.search.coverage_search import NUMBERS_PER_WORK, SAMPLE
from moe_placer.search.coverage_trades import CoverageTrades, Trades
from moe_placer.search.local_search import EVALUATIONS_PER_WORK

__all__ = ["CoverageCurve"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_STEPS = 400  # trades of one descent at most
_EVALUATED = 128  # trades that are computed exactly in each step
_SHARPNESS = (30.0, 100.0)  # of the smoothed busiest link: first all hot links count, then mostly the hottest
_HELPS = 1e-9


class CoverageCurve(Curve):
    """As `Curve`, for `LayerProblem.coverage`; only links count, and places are nodes."""

    @cached_property
    def _trades(self) -> CoverageTrades:
        return CoverageTrades(self.start.layer, self.start.place, SAMPLE)

    def _descend(self, state: LayerState, share: float, deadline: Deadline) -> LayerState | None:
        """Descend until nothing helps; return the state where it could go on beyond `reach`.

        The larger ``share``, the more links count beside the hottest.
        """
        trades, sharpness, scale = self._trades, _SHARPNESS[0 if share == 1.0 else 1], max(self.current.z, 1e-9)
        trades.reset(state.node)
        for _ in range(_STEPS):
            self.record(state)
            if deadline.over or self.inside:  # inside nodes links carry what they carried
                return None
            before, now = trades.evaluated, float(trades.smooth(trades.cost, scale, sharpness))
            found = trades.promising(scale, sharpness, _EVALUATED)
            change = trades.smooth(trades.costs_after(found), scale, sharpness) - now if len(found) else None
            self.evaluated += int((trades.evaluated - before) * EVALUATIONS_PER_WORK / NUMBERS_PER_WORK)
            if change is None:
                return None
            score = per_move(change, _moves(state, found))
            best = int(score.argmin())
            if not change[best] < -_HELPS:
                return None
            item, partner, to = int(found.item[best]), int(found.partner[best]), int(found.to[best])
            trades.apply(item, partner, to)
            state.apply(Trade(float(change[best]), 0, item, partner, to))
            if state.moves > self.reach:
                return state
        return None


def _moves(state: LayerState, trades: Trades) -> Ints:
    """Count moves more by each trade; negative where replicas come home."""
    come, go = (state.on >= state.held).astype(np.int64), (state.on > state.held).astype(np.int64)
    expert, here = state.layer.expert, state.place[trades.item]
    mine, real = expert[trades.item], trades.partner >= 0
    theirs = np.where(real, expert[trades.partner], 0)
    more = come[mine, trades.to] - go[mine, here]
    more += np.where(real, come[theirs, here] - go[theirs, trades.to], 0)
    return np.where(real & (mine == theirs), 0, more)
