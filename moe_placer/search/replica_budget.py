"""A budget of replicas that layers share: replicas go where one more saves most, from where one fewer costs least.

Every layer offers a price for one more replica and asks one for giving a replica away; while an offer beats a price
asked, the best pair deals. In the end one price separates all offers from all prices asked: that of the marginal
allocation (Fox, Discrete Optimization via Marginal Analysis, Management Science 13, 1966). Prices are in time
(`layer_time`): what the links take, there and back, and the GPU of the hottest replica. The sum of z never rises, where
a z below its target counts as at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import Bound
from moe_placer.limits import Deadline
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.replicas import could_pay, count_replicas, layer_time, with_replicas
from moe_placer.result import LayerResult, Stop, stop_at
from moe_placer.result import gap as relative_gap
from moe_placer.search.local_search import EVALUATIONS_PER_WORK, descend
from moe_placer.search.moves import CALL, Moves
from moe_placer.search.replication import State, replicate

__all__ = ["share_out"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_TRIED = 2  # changes of a layer that are followed by trades
_LISTED = 32  # replicas that could come whose effect is computed exactly
_HELPS = 1e-9
_REFINING = 0.003  # effort on other replicas in a layer that is offered one


@dataclass(frozen=True, eq=False)
class _Placed:
    """A layer with its replicas, placed; ``z`` counts as at the target where it is below."""

    layer: LayerProblem
    node: Ints
    z: float
    time: float

    @classmethod
    def at(cls, layer: LayerProblem, node: Ints, target: float) -> _Placed:
        z = max(layer.z(node), target)
        return cls(layer, node, z, layer_time(layer, z))


def share_out(
    layers: Sequence[LayerProblem],
    results: Sequence[LayerResult],
    budget: int,
    aim: float,
    gap: float,
    work: float,
    deadline: Deadline,
) -> list[LayerResult]:
    """Move replicas between layers while that saves time and the sum of z does not rise.

    Parameters
    ----------
    layers : sequence of LayerProblem
        As compiled.
    results : sequence of LayerResult
        A placement of each, with a bound for any replicas.
    budget : int
        Replicas beyond one of each expert that all layers may have together.
    aim, gap : float
        A z within ``aim`` of its bound, relative, is as good as any; within ``gap``, a layer is done.
    work : float
        Deterministic effort.
    deadline : Deadline
        When to stop, whatever has been reached.

    Returns
    -------
    list of LayerResult
        With ``replicas`` where they changed.
    """
    trade = _Market(layers, results, aim, deadline)
    left = budget - sum(int((count_replicas(now.layer) - 1).sum()) for now in trade.now)
    while trade.evaluated < work * EVALUATIONS_PER_WORK and not deadline.over:
        giver, taker = trade.best_deal(left > 0)
        if giver < 0 and taker < 0:
            break
        trade.close(giver, taker)
        left += (taker < 0) - (giver < 0)
    return [_result(before, now, gap) for before, now in zip(results, trade.now, strict=True)]


class _Market:
    """Layers, and the best z and time of each with one replica more and with one fewer."""

    def __init__(
        self, layers: Sequence[LayerProblem], results: Sequence[LayerResult], aim: float, deadline: Deadline
    ) -> None:
        self.deadline, self.evaluated = deadline, 0
        self.target = [result.bound.value * (1 + aim) for result in results]
        self.now: list[_Placed] = []
        for layer, result, target in zip(layers, results, self.target, strict=True):
            assert result.node is not None
            chosen = layer if result.replicas is None else with_replicas(layer, result.replicas)
            self.now.append(_Placed.at(chosen, result.node, target))
        self.more: list[_Placed | None] = [None] * len(self.now)
        self.fewer: list[_Placed | None] = [None] * len(self.now)
        for index in range(len(self.now)):
            self._ask(index)

    def best_deal(self, spare: bool) -> tuple[int, int]:
        """Return the layers that give and take a replica; -1 is the budget; -1 twice: no exchange pays."""
        give, take = self._changes(self.fewer), self._changes(self.more)  # [layers, (z, time)]
        bank = len(self.now)
        give = np.vstack([give, np.full(2, 0.0 if spare else np.inf)])
        take = np.vstack([take, np.zeros(2)])
        both = give[:, None] + take[None, :]
        time = np.where(both[:, :, 0] <= _HELPS * max(now.z for now in self.now), both[:, :, 1], np.inf)
        np.fill_diagonal(time, np.inf)
        giver, taker = divmod(int(time.argmin()), bank + 1)
        if not time[giver, taker] < -_HELPS * max(now.time for now in self.now):
            return -1, -1
        return (giver if giver < bank else -1), (taker if taker < bank else -1)

    def close(self, giver: int, taker: int) -> None:
        """Let one layer have a replica fewer, and another one more."""
        for index, side in ((giver, self.fewer), (taker, self.more)):
            changed = side[index] if index >= 0 else None
            if changed is not None:
                self.now[index] = changed
                self._ask(index)

    def _changes(self, side: list[_Placed | None]) -> Floats:
        nothing = (np.inf, np.inf)
        pairs = zip(self.now, side, strict=True)
        return np.array([nothing if to is None else (to.z - now.z, to.time - now.time) for now, to in pairs])

    def _ask(self, index: int) -> None:
        """Find the best that a layer can make of one replica more, and of one fewer."""
        if self.deadline.over:
            self.more[index] = self.fewer[index] = None
            return
        now, target = self.now[index], self.target[index]
        state = State(now.layer, now.node)
        self.evaluated += CALL
        self.more[index] = self._best(state, _could_come(state, target), target)
        self.fewer[index] = self._best(state, _could_go(state), target)

    def _best(self, state: State, changes: tuple[Ints, Ints, Ints], target: float) -> _Placed | None:
        """Try the changes that look best, with trades after them."""
        item, expert, node = changes
        if not len(item):
            return None
        z = np.maximum(target, state.costs(item, expert, node).max(axis=1, initial=0.0))
        time = z + state.layer.gpu_price * _hottest(state, item, expert)
        self.evaluated += CALL + len(item) * state.layer.links
        best: _Placed | None = None
        for which in np.argsort(time, kind="stable")[:_TRIED].tolist():
            layer, start = state.changed(int(item[which]), int(expert[which]), int(node[which]))
            moves = Moves(layer, start)
            descend(moves, target, self.deadline)
            self.evaluated += CALL + moves.evaluated
            placed = self._refined(layer, moves.node, target)
            if best is None or placed.time < best.time:
                best = placed
        return best

    def _refined(self, layer: LayerProblem, node: Ints, target: float) -> _Placed:
        """Let other experts have the replicas, where that could pay: what a replica is worth depends on the others."""
        if could_pay(layer, max(layer.z(node), target), target):
            found = replicate(layer, node, target, _REFINING, np.random.default_rng(0), self.deadline)
            self.evaluated += int(found.work * EVALUATIONS_PER_WORK)
            layer, node = found.layer, found.node
        return _Placed.at(layer, node, target)


def _could_go(state: State) -> tuple[Ints, Ints, Ints]:
    """List the replicas that could go: item, no expert, no node."""
    layer = state.layer
    item = np.flatnonzero((state.replicas[layer.expert] > layer.least_replicas) & (layer.pinned < 0))
    nothing = np.full(len(item), -1)
    return item, nothing, nothing


def _could_come(state: State, target: float) -> tuple[Ints, Ints, Ints]:
    """List replicas that could come: of the hottest replica's expert anywhere, of others where links gain most."""
    per_replica = np.bincount(state.layer.expert, state.layer.load) / state.replicas
    allowed = state.free[None, :] & (state.held < state.layer.together)
    expert, node = np.nonzero(allowed)
    rank = np.where(expert == per_replica.argmax(), -np.inf, state.slope_of_more(target)[expert, node])
    chosen = np.argsort(rank, kind="stable")[: _LISTED + int(np.isneginf(rank).sum())]
    return np.full(len(chosen), -1), expert[chosen], node[chosen]


def _hottest(state: State, item: Ints, expert: Ints) -> Floats:
    """Tokens of the hottest replica after each change, which is of one expert's replicas only."""
    layer, replicas = state.layer, state.replicas
    load = np.bincount(layer.expert, layer.load)
    of = np.where(item >= 0, layer.expert[item], expert)
    changed = load[of] / (replicas[of] + np.where(item >= 0, -1, 1))
    order = np.argsort(-load / replicas, kind="stable")
    second = order[1] if len(order) > 1 else order[0]
    others = np.where(of == order[0], (load / replicas)[second] if len(order) > 1 else 0.0, (load / replicas)[order[0]])
    return np.maximum(changed, others)


def _result(before: LayerResult, now: _Placed, gap: float) -> LayerResult:
    replicas = count_replicas(now.layer)
    if before.node is now.node:
        return before
    z, bound = now.layer.z(now.node), before.bound if before.bound.any_replicas else Bound(0.0, "solver")
    stop = stop_at(relative_gap(z, bound.value), gap, Stop.WORK)
    return replace(before, node=now.node, z=z, bound=bound, stop=stop, solver_bound=None, replicas=replicas)
