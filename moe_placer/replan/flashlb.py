"""FlashLB as vllm-ascend publishes it: a plan anew only for layers whose balance is worse, placed where it moves least.

Described in vllm-ascend's `eplb/core/policy/policy_flashlb.py` (policy type 3, 2026), written anew here for all layers
at once. A layer is planned in five steps:

1. It is planned at all where nobody planned it, or where mean over peak load of GPUs is below 0.9, or below 95% of what
   it was when it was planned. (The original counts what it has not seen yet as balanced; here it does not count.)
2. Experts in order of their risk (mean load plus 0.674 standard deviations over the windows seen) are cut into four
   groups. For each group but the last, the number of its redundant replicas is searched up to eight from where a greedy
   rule has it; the others get what is left, by the same rule.
3. Replicas go one by one, those with most load each first, to the GPU whose risk is then least, with covariances.
4. GPUs of the plan are matched with GPUs that run, so that most experts stay (assignment problem).
5. What has no better balance is not used.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["FlashLB"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_RISK = 0.6744897501960817  # standard deviations: three quarters of a normal distribution are below
_GROUPS, _WIDTH = 4, 8
_BALANCED, _WORSE = 0.9, 0.95
_NONE = 1e-2  # tokens that make an empty window balanced


class FlashLB:
    """Plans window after window; it remembers what it saw and how balanced each layer was when it was planned."""

    def __init__(self) -> None:
        self.seen: list[Floats] = []
        self.planned: Floats | None = None  # mean over peak [L] when a layer was planned; 0: never

    def next_plan(self, held: Ints, load: Floats) -> Ints:
        """Return what GPUs hold next [L, D, S]: L layers, D GPUs of S slots.

        Parameters
        ----------
        held : int array [L, D, S]
            Expert in each slot now.
        load : float array [L, N]
            Tokens of each expert in the window that has ended.
        """
        self.seen.append(load)
        seen = np.stack(self.seen, axis=1)  # [L, T, N]
        planned = np.zeros(len(held)) if self.planned is None else self.planned
        now = 1 / _score(seen, _count(held, load.shape[1]), held)
        rows = np.flatnonzero((planned == 0) | (now < _BALANCED) | (now < _WORSE * planned))
        if not len(rows):
            return held
        found, replicas = _search(seen[rows], held.shape[1], held.shape[2])
        ratio = 1 / _score(seen[rows], replicas, found)
        better = (found >= 0).all(axis=(1, 2)) & (ratio > now[rows])
        after = held.copy()
        for row, plan in zip(rows[better], found[better], strict=True):
            after[row] = _matched(held[row], plan, load.shape[1])
        planned[rows[better]] = ratio[better]
        self.planned = planned
        return after


def _count(held: Ints, experts: int) -> Ints:
    """Count the replicas of each expert [L, N]."""
    return np.stack([np.bincount(row.ravel(), minlength=experts) for row in held])


def _score(seen: Floats, replicas: Ints, held: Ints) -> Floats:
    """Peak over mean load of GPUs, the mean over windows [C]; infinite where a slot is empty.

    Parameters
    ----------
    seen : float array [C, T, N]
        Tokens of every expert in every window.
    replicas : int array [C, N]
    held : int array [C, D, S]
    """
    flat = np.maximum(held, 0).reshape(len(held), 1, -1)
    each = np.take_along_axis(seen / replicas[:, None], np.broadcast_to(flat, (*seen.shape[:2], flat.shape[2])), axis=2)
    load = each.reshape(*seen.shape[:2], *held.shape[1:]).sum(axis=3)
    score = ((load.max(axis=2) * load.shape[2] + _NONE) / (load.sum(axis=2) + _NONE)).mean(axis=1)
    return np.where((held >= 0).all(axis=(1, 2)), score, np.inf)


def _greedy(weight: Floats, extra: int) -> Ints:
    """Give further replicas one by one to the expert with most per replica: [extra + 1, R, n], after each."""
    replicas = np.ones(weight.shape, dtype=np.int64)
    history = [replicas.copy()]
    for _ in range(extra):
        replicas[np.arange(len(weight)), (weight / replicas).argmax(axis=1)] += 1
        history.append(replicas.copy())
    return np.stack(history)


def _search(seen: Floats, gpus: int, slots: int) -> tuple[Ints, Ints]:
    """Plan layers from scratch [R, D, S], with the replicas of each expert [R, N]."""
    layers, experts = len(seen), seen.shape[2]
    mean, cov = seen.mean(axis=1), _covariance(seen)
    weight = mean + _RISK * np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    order, at = np.argsort(-weight, axis=1, kind="stable"), np.arange(layers)[:, None]
    replicas = np.ones((layers, experts), dtype=np.int64)
    left = np.full(layers, gpus * slots - experts)
    size = -(-experts // _GROUPS)
    for first in range(0, max(1, experts - size), size):
        own, rest = order[:, first : first + size], order[:, first + size :]
        most = int(left.max())
        both = _greedy(weight[at, order[:, first:]], most)[left, np.arange(layers)]
        mine, theirs = _greedy(weight[at, own], most), _greedy(weight[at, rest], most)
        start = both[:, : own.shape[1]].sum(axis=1) - own.shape[1]
        steps = np.array([0, *(sign * step for step in range(1, _WIDTH + 1) for sign in (-1, 1))])
        tried = start[:, None] + steps  # [R, C]
        fits = (tried >= 0) & (tried <= left[:, None])
        given = np.where(fits, tried, start[:, None])
        each = np.repeat(replicas[:, None], len(steps), axis=1)  # [R, C, N]
        rows = np.arange(layers)[:, None], np.arange(len(steps))[None, :]
        each[(*(index[..., None] for index in rows), own[:, None])] = mine[given, rows[0]]
        each[(*(index[..., None] for index in rows), rest[:, None])] = theirs[left[:, None] - given, rows[0]]
        flat, layer = each.reshape(-1, experts), np.repeat(np.arange(layers), len(steps))
        score = _score(seen[layer], flat, _packed(mean, cov, layer, flat, gpus, slots)).reshape(layers, -1)
        best = np.where(fits, score, np.inf).argmin(axis=1)
        replicas = each[np.arange(layers), best]
        left = left - given[np.arange(layers), best]
    return _packed(mean, cov, np.arange(layers), replicas, gpus, slots), replicas


def _covariance(seen: Floats) -> Floats:
    """Covariances of experts' loads over windows [R, N, N]; zeros for one window."""
    apart = seen - seen.mean(axis=1, keepdims=True)
    return np.asarray(apart.transpose(0, 2, 1) @ apart / max(1, seen.shape[1] - 1))


def _packed(mean: Floats, cov: Floats, layer: Ints, replicas: Ints, gpus: int, slots: int) -> Ints:
    """Put replicas on the GPU whose risk is least then, the hottest first: [C, D, S]; -1 where no GPU takes one.

    Parameters
    ----------
    mean : float array [R, N]
    cov : float array [R, N, N]
    layer : int array [C]
        Row of each plan that is packed.
    replicas : int array [C, N]
        Of each plan, as many as slots in all.
    gpus, slots : int
        GPUs, and slots of each.
    """
    plans, experts = replicas.shape
    at, each = np.arange(plans), mean[layer] / replicas
    order = np.argsort(-each, axis=1, kind="stable")
    counts = np.take_along_axis(replicas, order, axis=1).ravel()
    sequence = np.repeat(order.ravel(), counts).reshape(plans, -1)
    held = np.full((plans, gpus, slots), experts)  # the last stands for an empty slot
    used, load, variance = (np.zeros((plans, gpus)) for _ in range(3))
    used, has, before = used.astype(np.int64), np.zeros((plans, gpus), dtype=bool), np.full(plans, -1)
    varies = bool(cov.any())
    share = np.concatenate([1 / replicas, np.zeros((plans, 1))], axis=1)
    for expert in sequence.T:
        has[expert != before] = False
        risk = load + each[at, expert][:, None]
        if varies:
            row = np.concatenate([cov[layer, expert], np.zeros((plans, 1))], axis=1)
            row *= share * share[at, expert][:, None]
            shared = np.take_along_axis(row, held.reshape(plans, -1), axis=1).reshape(held.shape).sum(axis=2)
            risen = variance + row[at, expert][:, None] + 2 * shared
            risk = risk + _RISK * np.sqrt(np.maximum(0.0, risen))
        risk[has | (used >= slots)] = np.inf
        best = risk.argmin(axis=1)
        can = np.isfinite(risk[at, best])
        to = at[can], best[can]
        load[to] += each[at, expert][can]
        if varies:
            variance[to] = risen[to]
        held[(*to, used[to])] = expert[can]
        used[to] += 1
        has[to], before = True, expert
    return np.where(held == experts, -1, held)


def _matched(held: Ints, plan: Ints, experts: int) -> Ints:
    """Return a plan with its GPUs in the order in which most experts stay where they are, in their slots."""
    from scipy.optimize import linear_sum_assignment

    has = np.zeros((2, len(held), experts), dtype=np.int64)
    for table, rows in zip(has, (held, plan), strict=True):
        np.add.at(table, (np.arange(len(rows))[:, None], rows), 1)
    alike = np.minimum(has[0][:, None], has[1][None]).sum(axis=2)
    _, own = linear_sum_assignment(-alike)
    after = np.full_like(held, -1)
    for gpu, source in enumerate(own):
        comes = plan[source].tolist()
        for slot, expert in enumerate(held[gpu].tolist()):
            if expert in comes:
                after[gpu, slot] = expert
                comes.remove(expert)
        after[gpu, after[gpu] < 0] = comes
    return after
