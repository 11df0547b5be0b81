"""A layer's first placement and bound: its linear relaxation, rounded, and trades until none helps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import Bound, best_bound, beyond, threshold_bound
from moe_placer.bounds.largest import largest
from moe_placer.bounds.region_relaxation import weights_by_region
from moe_placer.bounds.relaxation import relax
from moe_placer.problem.regions import VAST, Region, find_regions, innermost
from moe_placer.result import LayerResult, Stop
from moe_placer.result import gap as relative_gap
from moe_placer.search.local_search import Search, round_shares, search
from moe_placer.search.moves import repair
from moe_placer.search.region_division import divide
from moe_placer.solve.layerwise import LayerTask

__all__ = ["AIM", "from_relaxation", "search_on"]

Floats = npt.NDArray[np.float64]

AIM = 0.5  # search aims at this share of the gap, so that it does not stop a hair outside
_RELAX_WORK = 3e-5  # of the relaxation, per item and node
_QUICK_RELAX_WORK = 1e-5  # of the one without slots
_LARGE = 6_000  # items * nodes from which that one bounds
_DIVIDING = 0.4  # share of the gap that division aims at
_CLOSE = 0.01  # gap of what it gives of a vast layer, up to which nothing but search goes on from there
_NOISE = (0.0, 0.5, 0.5, 0.5)  # of each rounding of a large layer's shares: descents from them end apart


def from_relaxation(task: LayerTask) -> tuple[LayerResult | None, float]:
    """Bound the layer by its relaxation's duals, and take the better of the start and of what rounding gives.

    Without slots the relaxation is several times faster and hardly weaker, so it bounds large layers; where replicas
    are free, it bounds them all. What it places overfills nodes, so that of a large layer is not rounded. But before, a
    large layer is divided among the fabric's regions, where it has any: that often suffices.
    """
    layer = task.layer
    size = layer.items * layer.nodes
    region = find_regions(layer) if size > _LARGE else None
    result, bound, spent = (task.start, best_bound(layer), 0.0) if region is None else _divided(task, region)
    close = _CLOSE if size > VAST else task.gap
    if result is not None and bound.weights is not None and relative_gap(result.z, bound.value) <= close:
        return replace(result, bound=bound), spent
    # Where single nodes are bottlenecks, weights of regions are weak; all of a vast layer is too much to relax.
    bounded = size > VAST and bound.weights is not None
    for without_slots in (True, False) if layer.replicas_are_free or size > _LARGE else (False,):
        if bounded and without_slots and size > _LARGE:
            continue
        relaxation = relax(layer, task.seconds, any_replicas=without_slots, to_round=bounded)
        spent += size * (_QUICK_RELAX_WORK if without_slots else _RELAX_WORK)
        if relaxation is None:
            break
        if not bounded:
            bound, bounded = largest([best_bound(layer, relaxation.weights), bound]), True
        if not (without_slots and size > _LARGE):
            noises = _NOISE if size > _LARGE else (0.0,)
            result, used = _best_rounded(task, relaxation.share, noises, result, bound)
            spent += used
        if result is not None and relative_gap(result.z, bound.value) <= AIM * task.gap:
            break
    if result is None:
        return None, spent
    return replace(result, bound=_with_threshold(task, bound, result.z)), spent


def search_on(task: LayerTask, result: LayerResult, target: float, work: float) -> tuple[LayerResult, Search]:
    """Search from a result's placement and near what its bound's weights ask for; return the better, and the search.

    Parameters
    ----------
    task : LayerTask
        Its layer, source of randomness and deadline count.
    result : LayerResult
        With a placement of that layer.
    target : float
        Stop when z is at this or below.
    work : float
        Deterministic effort.
    """
    assert result.node is not None
    found = search(task.layer, result.node, target, work, task.rng, task.deadline, result.bound.weights)
    return (replace(result, node=found.node, z=found.z) if found.z < result.z else result), found


def _divided(task: LayerTask, region: Region) -> tuple[LayerResult | None, Bound, float]:
    """Bound a layer by weights that leaves give, and divide its items among leaves, then nodes; also say what it took.

    What a threshold would add is not looked for: of so many nodes each holds too little to be a bottleneck alone.
    """
    layer = task.layer
    spent = layer.items * len(innermost(region)) * _QUICK_RELAX_WORK
    weights = weights_by_region(layer, region, task.seconds)
    bound = best_bound(layer, weights)
    if weights is None:
        return task.start, bound, spent
    divided = divide(layer, region, bound.value * (1 + _DIVIDING * task.gap), task.rng, task.deadline)
    if divided is None:
        return task.start, bound, spent
    node, z, spent = repair(layer, divided.node, task.rng), np.inf, spent + divided.work
    if node is not None:
        z = layer.z(node)
    better = node is not None and (task.start is None or z < task.start.z)
    return (LayerResult(node, z, bound, Stop.WORK) if better else task.start), bound, spent


def _best_rounded(
    task: LayerTask, share: Floats, noises: tuple[float, ...], result: LayerResult | None, bound: Bound
) -> tuple[LayerResult | None, float]:
    """Round shares with each of some noises until that is good enough; return the best result, and the effort."""
    spent = 0.0
    for noise in noises:
        found = _rounded(task, share, noise, bound.value)
        spent += 0.0 if found is None else found.work
        if found is not None and (result is None or found.z < result.z):
            result = LayerResult(found.node, found.z, bound, Stop.WORK)
        if result is not None and relative_gap(result.z, bound.value) <= AIM * task.gap:
            break
    return result, spent


def _rounded(task: LayerTask, share: Floats, noise: float, target: float) -> Search | None:
    """Round shares [I, N], those that are split with some noise, and descend from there; None if repair fails."""
    if noise:
        share = share + noise * task.rng.random(share.shape) * (share > 0)
    node = round_shares(task.layer, share, task.rng)
    return None if node is None else search(task.layer, node, target, 0.0, task.rng, task.deadline)


def _with_threshold(task: LayerTask, bound: Bound, z: float) -> Bound:
    """Raise the bound by what a placement better than z may not contain, where that is anything."""
    layer = task.layer
    if layer.replicas_are_free:
        return bound
    forbidden = beyond(layer, z)
    if not forbidden[:, layer.widest > 0].any() or task.deadline.over:
        return bound
    relaxation = relax(layer, task.seconds, forbidden)
    weights = relaxation.weights if relaxation is not None else bound.weights
    if weights is None:
        return bound
    return largest([bound, threshold_bound(layer, weights, z)])
