"""Lower bounds on a layer's busiest link that anyone can re-check; docs/bounds.md states and proves each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.assignment import assign, price, transport
from moe_placer.bounds.best_split import SplitProof, prove_split
from moe_placer.bounds.companions import Companions, hot_companions
from moe_placer.bounds.hot_replicas import least_cost_of_experts, least_peak
from moe_placer.bounds.largest import largest
from moe_placer.bounds.mutual_companions import MutualCompanions, mutual_companions
from moe_placer.bounds.relaxation import relax
from moe_placer.bounds.scenario_relaxation import relax_judged
from moe_placer.bounds.weighted_companions import WeightedCompanions, weighted_companions
from moe_placer.limits import Deadline
from moe_placer.placement import Proof
from moe_placer.problem.layer import LayerProblem

__all__ = [
    "SAFETY",
    "Bound",
    "any_replicas_bound",
    "best_bound",
    "cheapest",
    "companions_bound",
    "dual_bound",
    "even_weights",
    "hot_expert_bound",
    "hot_replicas_bound",
    "numbered_bound",
    "relaxed_bound",
    "split_bound",
    "threshold_bound",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Claimed bounds are this much below what was computed, so that the rounding of another summation order cannot turn a
# true claim into a false one. Sums of some thousand doubles err by about 1e-13 of their size.
SAFETY = 1e-10
SMALLEST = 2.0**-600  # smaller bounds are not claimed: products on the way to them may have lost their digits

_HOT = 100.0  # a link that costs 1% less than the worst has a third of its weight


@dataclass(frozen=True, eq=False)
class Bound:
    """A lower bound on z, and what proves it.

    Attributes
    ----------
    value : float
        Cost (tokens at node-link speed).
    proof : str
        ``dual``, ``hot-experts``, ``hot-replicas``, ``threshold``, ``companions``, ``weighted-companions``,
        ``mutual-companions``, ``best-split``, or ``solver`` where nothing re-checkable is known.
    weights : float array [K] or None
        Link weights, summing to 1; the proof of ``dual``, ``threshold``, ``weighted-companions``, ``mutual-companions``
        and ``best-split``.
    threshold : float or None
    hot : int or None
        Item for ``hot-experts`` and ``companions``.
    companions : Companions, WeightedCompanions, MutualCompanions or None
        The rest of the proof of ``companions``, ``weighted-companions`` or ``mutual-companions``.
    given_replicas : float or None
        Where how many replicas each expert has is a choice, and the proof is about those as given: what it proves
        there.
    any_replicas : bool
        Whether it holds for any number of replicas of each expert.
    split : SplitProof or None
        The rest of the proof of ``best-split``.
    """

    value: float
    proof: Proof
    weights: Floats | None = None
    threshold: float | None = None
    hot: int | None = None
    companions: Companions | WeightedCompanions | MutualCompanions | None = None
    given_replicas: float | None = None
    any_replicas: bool = False
    split: SplitProof | None = None


_of_hot_experts: WeakKeyDictionary[LayerProblem, Bound] = WeakKeyDictionary()


def best_bound(problem: LayerProblem, weights: Floats | None = None) -> Bound:
    """Return the best quick bound; with weights from `relax`, it keeps them whatever its proof.

    Where replicas are free, only bounds for any replicas count; the best weights for these are those of
    ``relax(problem, any_replicas=True)``.
    """
    if problem.coverage is not None or problem.near is not None:  # what replicas used evenly cost bounds nothing here
        return Bound(0.0, "solver")
    if problem.judge is not None:
        return _judged_bound(problem, weights)
    if problem.replicas_are_free:
        if not problem.links:
            return Bound(0.0, "solver")
        bound = Bound(0.0, "solver") if weights is None else any_replicas_bound(problem, weights)
        return largest([bound, hot_replicas_bound(problem, weights)])
    bounds = [hot_expert_bound(problem)]
    if weights is not None and problem.links:
        bounds.append(dual_bound(problem, weights))
    return replace(largest(bounds), weights=weights)


def _judged_bound(problem: LayerProblem, weights: Floats | None) -> Bound:
    """Bound a mean over scenarios: of single links nothing follows, but of weights over links of all scenarios."""
    if weights is None or problem.judge is None or not problem.links:
        return Bound(0.0, "solver")
    fitted = problem.judge.fitted(weights)
    return any_replicas_bound(problem, fitted) if problem.replicas_are_free else dual_bound(problem, fitted)


def companions_bound(problem: LayerProblem, node: Ints, deadline: Deadline, deep: bool = True) -> Bound:
    """Bound z where tokens are sent once per place, by a hot item or by link weights, and the best companions.

    Where how many replicas each expert has is a choice, the bound holds for every choice.

    Parameters
    ----------
    problem : LayerProblem
        One MoE layer.
    node : int array [I]
        A good placement: the more a link carries there, the more one of the weights tried has on it.
    deep : bool
        Whether to take the time to branch.
    deadline : Deadline
        When to stop, whatever has been reached.
    """
    weights = [*_spread_weights(problem), *_hot_weights(problem, node)]
    if problem.replicas_are_free:
        return _mutual_bound(problem, weights, deadline, deep)
    hot, bounds = hot_companions(problem, deadline, deep), []
    if hot is not None:
        bounds.append(Bound(_safe(hot.value), "companions", hot=hot.hot, companions=hot))
    if not deadline.over:
        weighted = weighted_companions(problem, weights)
        if weighted is not None:
            value = _safe(weighted.value)
            bounds.append(Bound(value, "weighted-companions", weights=weighted.weights, companions=weighted))
    if deep and not deadline.over:
        known = max((bound.value for bound in bounds), default=0.0)
        bounds.append(_mutual_bound(problem, weights, deadline, deep, known))
    return largest(bounds) if bounds else best_bound(problem)


def _mutual_bound(
    problem: LayerProblem, weights: list[Floats], deadline: Deadline, deep: bool, known: float = 0.0
) -> Bound:
    assert problem.coverage is not None
    found, drawn = mutual_companions(problem, weights, deadline, deep, known), problem.coverage.sending.drawn
    if found is None:
        return best_bound(problem)
    value = _safe(found.value)
    return Bound(value, "mutual-companions", found.weights, companions=found, any_replicas=drawn)


def _hot_weights(problem: LayerProblem, node: Ints) -> list[Floats]:
    cost = problem.cost(node)
    power = np.exp(_HOT * (cost / max(float(cost.max(initial=0.0)), 1e-300) - 1.0))
    return [power / power.sum()] if len(power) else []


def _spread_weights(problem: LayerProblem) -> list[Floats]:
    return even_weights(problem) if problem.links else []


def relaxed_bound(problem: LayerProblem, time_limit_s: float | None = None) -> Bound:
    """Return the best quick bound with the weights that the linear relaxation gives, if it is solved in time."""
    if problem.coverage is not None:
        return best_bound(problem)
    if problem.near is not None:
        return split_bound(prove_split(problem.near, time_limit_s))
    if problem.judge is not None:
        judged = relax_judged(problem, time_limit_s)
        return best_bound(problem, None if judged is None else judged.weights)
    relaxation = relax(problem, time_limit_s, any_replicas=problem.replicas_are_free)
    return best_bound(problem, None if relaxation is None else relaxation.weights)


def split_bound(proof: SplitProof | None) -> Bound:
    """Return the bound of a proof about the best split of tokens; none without a proof."""
    if proof is None or proof.value <= 0:
        return Bound(0.0, "solver")
    return Bound(_safe(proof.value), "best-split", proof.weights, any_replicas=True, split=proof)


def even_weights(problem: LayerProblem) -> list[Floats]:
    """Return link weights [K], even over one kind of link each: those of one direction that as many nodes touch.

    They need no linear program, and bound the instances in ``instances/`` to 2% to 9% below the relaxation's.
    """
    touching = np.bincount(problem.affected.ravel(), minlength=problem.links + 1)[: problem.links]
    alike = np.stack([touching, problem.base == 0])
    _, kind, count = np.unique(alike, axis=1, return_inverse=True, return_counts=True)
    kind = kind.ravel()  # NumPy 2.0 gives it a second dimension
    return [np.where(kind == one, 1 / size, 0.0) for one, size in enumerate(count.tolist())]


def any_replicas_bound(problem: LayerProblem, weights: Floats) -> Bound:
    """Bound z for any number of replicas: every expert, once, on its cheapest node."""
    _, item, replicas = np.unique(problem.expert, return_index=True, return_counts=True)
    prices = price(problem, weights)[item][:, problem.widest > 0] * replicas[:, None]
    value = float(weights @ problem.base) + float(prices.min(axis=1).sum())
    return Bound(_safe(value), "dual", weights, any_replicas=True)


def numbered_bound(problem: LayerProblem, weights: Floats) -> Bound:
    """Bound z as `any_replicas_bound` does, where an expert's replicas get unlike shares, but alike of all nodes."""
    _, of = np.unique(problem.expert, return_inverse=True)
    prices = np.zeros((int(of.max()) + 1, problem.nodes))
    np.add.at(prices, of, price(problem, weights))  # of all its replicas on one node
    value = float(weights @ problem.base) + float(prices[:, problem.widest > 0].min(axis=1).sum())
    return Bound(_safe(value), "dual", weights, any_replicas=True)


def hot_replicas_bound(problem: LayerProblem, weights: Floats | None = None) -> Bound:
    """Bound z for any number of replicas by the hottest one, where GPUs receive by NICs of their own.

    ``weights`` are kept beside it: they go with bounds that are proved otherwise.
    """
    if problem.home is None:
        return Bound(0.0, "solver", weights)
    value = least_peak(least_cost_of_experts(problem), problem.most_items)
    return Bound(_safe(value), "hot-replicas", weights, any_replicas=True)


def dual_bound(problem: LayerProblem, weights: Floats) -> Bound:
    """Bound z by a weighted mean of the link costs: an exact transportation problem."""
    cost = transport(problem, price(problem, weights))[0]
    return Bound(_safe(float(weights @ problem.base) + cost), "dual", weights)


def cheapest(problem: LayerProblem, weights: Floats) -> tuple[Bound, Ints | None]:
    """Return the `dual_bound` and the assignment [I] whose weighted cost it is, if there is any."""
    prices = price(problem, weights)
    node = assign(problem, prices)
    cost = np.inf if node is None else float(prices[np.arange(problem.items), node].sum())
    return Bound(_safe(float(weights @ problem.base) + cost), "dual", weights), node


def hot_expert_bound(problem: LayerProblem) -> Bound:
    """Bound z by what the node that holds some item must receive, for the item where this is most."""
    if problem not in _of_hot_experts:  # each heuristic asks for it
        _of_hot_experts[problem] = _hot_expert_bound(problem)
    return _of_hot_experts[problem]


def _hot_expert_bound(problem: LayerProblem) -> Bound:
    per_item = _floor(problem)[:, problem.widest > 0].min(axis=1)
    hot = int(per_item.argmax())
    return Bound(_safe(float(per_item[hot])), "hot-experts", hot=hot)


def threshold_bound(problem: LayerProblem, weights: Floats, threshold: float) -> Bound:
    """Bound z by ``threshold``, or by the transportation problem that is left without what the threshold forbids."""
    prices = price(problem, weights)
    cost, possible = transport(problem, np.where(beyond(problem, threshold), np.inf, prices))
    value = threshold if not possible else min(threshold, float(weights @ problem.base) + cost)
    return Bound(_safe(value), "threshold", weights, threshold=threshold)


def beyond(problem: LayerProblem, threshold: float) -> npt.NDArray[np.bool_]:
    """Mask [I, N] of what no placement with z below ``threshold`` has: item i on node n alone makes a link that hot."""
    return _floor(problem) >= threshold * (1 + SAFETY)


def _floor(problem: LayerProblem) -> Floats:
    """``floor[i, n]``: what some link carries at least if item i is on node n (docs/bounds.md)."""
    items, nodes = problem.items, problem.nodes
    widest = problem.widest
    others = np.maximum(0, items - (widest.sum() - widest)) - 1
    floor = np.zeros((nodes, items))
    for m in range(problem.affected.shape[1]):
        for count in np.unique(others[problem.incoming[:, m]]).tolist():
            at = np.flatnonzero(problem.incoming[:, m] & (others == count))
            cost = np.ascontiguousarray(problem.delta[:, at, m].T)
            if count > 0:
                order = np.sort(np.partition(cost, count, axis=1)[:, : count + 1], axis=1)
                # The cheapest others; an item that is itself among them makes room for the next.
                among = np.where(cost <= order[:, count - 1 : count], order[:, count:] - cost, 0.0)
                cost = cost + (order[:, :count].sum(axis=1, keepdims=True) + among)
            floor[at] = np.maximum(floor[at], cost)
    return floor.T


def _safe(value: float) -> float:
    return value * (1 - SAFETY) if value >= SMALLEST else 0.0
