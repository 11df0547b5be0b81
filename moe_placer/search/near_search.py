"""Local search under rules that prefer near replicas: the busiest link first, then the busiest GPU.

Trades are ranked by what they save at prices of links, and the best of them counted exactly. Prices are the gradient of
a norm of all links, whose power rises until little but the busiest counts; from there small kicks, each searched on.
Then GPUs are cooled by the like norm of theirs, by trades that leave every link within a limit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.limits import Deadline
from moe_placer.search.near_trades import NearState

__all__ = ["cool_near", "search_near"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_POWERS = (8.0, 32.0, 128.0)  # of the norm of links
_HOT = 48.0  # of the norm of GPUs
_COUNTED, _BEST = 96, 24  # trades that are counted exactly in a step; those that prices rank first among them
_MOST_RANKED = 1_500_000  # moves in a table; in larger layers a drawn part of the experts is looked at in a step,
_MOST_ITEMS = 600  # and so it is of more replicas than these
_MOST_COOLING, _MISSES = 1_000, 8  # trades counted at once to cool the busiest GPU; how often without a better one
_DRAWS = 4  # of such a part without anything better, until a search ends
_KICKS = 3  # trades made blindly before searching on
_TIRED = 60  # kicks in a row that led to nothing better, until the search ends
_HELPS = 1e-9  # smaller relative changes are rounding


def search_near(
    state: NearState, rng: np.random.Generator, work: float, target: float, deadline: Deadline
) -> tuple[NearState, bool]:
    """Bring the busiest link down; return the best placement, and whether more effort would hardly help.

    Parameters
    ----------
    state : NearState
        Where to start from; left as it is.
    rng : numpy.random.Generator
    work : float
        Effort, about seconds.
    target : float
        Cost of the busiest link that is good enough.
    deadline : Deadline
    """
    best, now = state.copy(), state.copy()
    for power in _POWERS:
        _descend(now, power, rng, work, deadline)
        if now.z < best.z:
            best = now.copy()
    spent, tired = now.spent, 0
    while spent < work and tired < _TIRED and best.z > target and not deadline.over:
        now = best.copy()
        blind = now.trades(_drawn(now, rng), None, rng)
        for at in rng.integers(len(blind), size=_KICKS).tolist() if len(blind) else ():
            if now.allows(blind, at):
                now.make(blind, at)
        _descend(now, _POWERS[-1], rng, work - spent, deadline)
        spent += now.spent
        tired += 1
        if now.z < best.z * (1 - _HELPS):
            best, tired = now.copy(), 0
    best.spent = spent
    return best, tired >= _TIRED


def _descend(state: NearState, power: float, rng: np.random.Generator, work: float, deadline: Deadline) -> None:
    """Make the trade that lowers the norm of links most, until none does."""
    missed = 0
    while missed < (_DRAWS if _too_many(state) else 1) and state.spent < work and not deadline.over:
        z = state.z
        if z <= 0:
            return
        weights = (np.maximum(state.cost, 0.0) / z) ** (power - 1)
        trades = state.trades(_drawn(state, rng), None, rng)
        missed += 1
        if not len(trades):
            continue
        ranked = state.savings(trades, weights)
        trades = trades.some(_chosen(ranked))
        if not len(trades):
            continue
        norms = _norm(state.after(trades)[0], power)
        at = int(norms.argmin())
        if norms[at] < float(_norm(state.cost, power)) * (1 - _HELPS):
            state.make(trades, at)
            missed = 0


def _chosen(ranked: Floats) -> Ints:
    """Choose trades to count of those that save something: the best, and from all ranks, since large ones overshoot."""
    saving = np.flatnonzero(ranked < 0)
    if len(saving) <= _COUNTED:
        return saving
    order = saving[np.argsort(ranked[saving], kind="stable")]
    spread = np.linspace(_BEST, len(order) - 1, _COUNTED - _BEST).astype(np.int64)
    return np.asarray(order[np.concatenate([np.arange(_BEST), spread])])


def cool_near(state: NearState, rng: np.random.Generator, limit: float, deadline: Deadline) -> NearState:
    """Cool the busiest GPU by trades that leave every link within ``limit``, or within what the busiest has.

    Parameters
    ----------
    state : NearState
        Where to start from; left as it is.
    rng : numpy.random.Generator
    limit : float
        Cost of a link.
    deadline : Deadline
    """
    now, limit = state.copy(), max(limit, state.z) * (1 + 1e-12)
    best, missed = state.copy(), 0
    while missed < _MISSES and not deadline.over:
        hot = int(now.load.argmax())
        experts = np.flatnonzero(now.on[:, hot])
        trades = now.trades(experts, _MOST_COOLING, rng, among=np.arange(len(now.on)))
        missed += 1
        if not len(trades):
            break
        cost, load = now.after(trades)
        norms = np.where(cost.max(axis=1, initial=0.0) <= limit, _norm(load, _HOT), np.inf)
        at = int(norms.argmin())
        if norms[at] < float(_norm(now.load, _HOT)) * (1 - _HELPS):
            now.make(trades, at)
            missed = 0
            if now.busiest < best.busiest:
                best = now.copy()
    best.spent = now.spent
    return best


def _norm(values: Floats, power: float) -> Floats:
    """Norm over the last axis, of numbers of 0 or more."""
    top = np.maximum(values.max(axis=-1, keepdims=True, initial=0.0), 1e-300)
    return np.asarray(top[..., 0] * ((np.maximum(values, 0.0) / top) ** power).sum(axis=-1) ** (1 / power))


def _too_many(state: NearState) -> bool:
    return _most_experts(state) < len(state.on)


def _most_experts(state: NearState) -> int:
    """Count the experts whose trades are ranked in one step."""
    by_items = len(state.on) * _MOST_ITEMS // max(1, int(state.on.sum()))
    return max(4, min(by_items, _MOST_RANKED // (state.near.nodes + 1) ** 2))


def _drawn(state: NearState, rng: np.random.Generator) -> Ints:
    experts, most = len(state.on), _most_experts(state)
    if most >= experts:
        return np.arange(experts)
    return np.sort(rng.choice(experts, most, replace=False))
