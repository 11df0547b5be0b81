"""Whether a placement keeps to its budget of moves from another one, and what none within that budget is below."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.placement import Placement, ReplanRecord
from moe_placer.verifier.bounds_anew import link_prices
from moe_placer.verifier.integer_bounds import find_unit, least_cost, on_grid, value_of
from moe_placer.verifier.links import Network
from moe_placer.verifier.placed_layers import PlacedLayer
from moe_placer.verifier.proofs import check_range, replicas_are_free
from moe_placer.verifier.sending import check_proof_fits
from moe_placer.verifier.verification import Violation

__all__ = ["budget_bound", "check_budget_proof", "check_current", "check_moves", "count_moves"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

HIGHEST_PRICE = 1e6  # times the largest weighted cost of a replica


def check_current(instance: Instance, record: ReplanRecord | None, current: Placement) -> Iterator[Violation]:
    """Rule ``current``: the other placement is of this model and cluster, and the one that the record names."""
    layers, experts = len(instance.moe_layers), instance.model.experts
    if len(current.gpu) != layers or any(len(row) != experts for row in current.gpu):
        required = f"required are {layers} MoE layers of {experts} experts"
        yield Violation("current", f"the placement that ran before is of another model, {required}")
    elif any(gpu >= instance.gpus for held in _held(current) for _, gpu in held):
        yield Violation("current", f"the placement that ran before is on GPUs beyond {instance.gpus - 1}")
    if record is not None and record.current_sha256 != current.gpu_sha256:
        found = f"made from a placement with SHA-256 {record.current_sha256[:64]!r}"
        yield Violation("current", f"{found}, the one that is given has {current.gpu_sha256!r}")


def count_moves(current: Placement, placement: Placement) -> int:
    """Count (layer, expert, GPU) of a placement, shard by shard, that the current one does not have."""
    pairs = zip(_held(current), _held(placement), strict=True)
    return sum((after - before).total() for before, after in pairs)


def check_moves(
    instance: Instance, record: ReplanRecord, current: Placement, placement: Placement
) -> Iterator[Violation]:
    """Rule ``moves``: as many as stated, no more than the budget, and inside nodes where that is stated.

    Parameters
    ----------
    instance : Instance
    record : ReplanRecord
        What the file states of the moves.
    current : Placement
        The placement before them.
    placement : Placement
    """
    found = count_moves(current, placement)
    if found != record.moves:
        yield Violation("moves", f"states {record.moves:,} moves, there are {found:,}")
    if record.max_moves is not None and found > record.max_moves:
        yield Violation("moves", f"{found:,} moves, required are at most max_moves ({record.max_moves:,})")
    if not record.inside_nodes:
        return
    per_node = instance.cluster.gpus_per_node
    for layer, before, after in zip(instance.moe_layers, _held(current), _held(placement), strict=True):
        near = {(expert, gpu // per_node) for expert, gpu in before}
        for expert, gpu in (after - before).elements():
            if (expert, gpu // per_node) not in near:
                message = "comes from another node, required are moves inside nodes"
                yield Violation("moves", message, layer, expert, gpu=gpu)


def check_budget_proof(instance: Instance, record: ReplanRecord, links: tuple[str, ...]) -> Iterator[Violation]:
    """Rules ``weights`` and ``proof`` for a bound within a budget; nothing is required where none is stated."""
    if record.bound is None:
        return
    yield from check_proof_fits(instance, "dual", None, "a bound within a budget of moves")
    if record.max_moves is None or record.price is None or record.weights is None:
        required = "required are max_moves, a price of a move and link weights of every layer"
        yield Violation("proof", f"a bound within a budget of moves that lacks a part, {required}")
        return
    if not math.isfinite(record.price):
        yield Violation("proof", f"a price of a move of {record.price:.9g}, required is 0 or more")
    if len(record.weights) != len(instance.moe_layers):
        found = f"link weights of {len(record.weights)} layers for the bound within a budget of moves"
        yield Violation("weights", f"{found}, required is one per MoE layer ({len(instance.moe_layers)})")
    for layer, weights in zip(instance.moe_layers, record.weights, strict=False):
        yield from check_range(weights, layer, links)


def budget_bound(
    instance: Instance,
    network: Network,
    layers: Sequence[PlacedLayer],
    slots: Ints,
    record: ReplanRecord,
    current: Placement,
) -> float:
    """Bound on the sum over layers of z within ``max_moves`` moves: cheapest assignments where moves are paid for.

    Prices are rounded down to a grid, that of a move likewise; what follows is in whole numbers.

    Parameters
    ----------
    instance : Instance
    network : Network
        Links, routes and bandwidths, as the verifier reads them.
    layers : sequence of PlacedLayer
        As placed now, all whole.
    slots : int array [places]
        What `place_slots` says.
    record : ReplanRecord
        With every part of the proof.
    current : Placement
        The placement before the moves.
    """
    assert record.max_moves is not None
    assert record.weights is not None
    rows = zip(layers, record.weights, strict=True)
    prices = [_prices(instance, network, layer, weights) for layer, weights in rows]
    largest = max((float(one.max(initial=0.0)) for one in prices), default=0.0)
    price = min(record.price or 0.0, HIGHEST_PRICE * largest)  # any price proves something
    unit = find_unit(largest + price)
    if unit is None:
        return 0.0
    move = int(on_grid(np.array([price]), unit)[0])
    total, free = -move * record.max_moves, replicas_are_free(instance)
    failed = set(instance.placement.failed_gpus)  # what these hold helps nobody: it has to come to another GPU
    for layer, own, held in zip(layers, prices, _held(current), strict=True):
        assert layer.replicas is not None
        away = _away(instance, network, Counter(one for one in held if one[1] not in failed))
        expert = np.arange(len(away)) if free else np.repeat(np.arange(len(away)), layer.replicas)
        paid = on_grid(own, unit) + move * away[expert]
        if free:
            total += sum(paid[:, slots > 0].min(axis=1).tolist()) if (slots > 0).any() else 0
            continue
        steps = least_cost(paid, slots)
        if steps is None:
            return 0.0
        total += steps
    return value_of(total, unit)


def _prices(instance: Instance, network: Network, layer: PlacedLayer, weights: Mapping[str, float]) -> Floats:
    """Weighted cost of each replica on each place; where their number is free, of each expert in one replica."""
    prices = link_prices(network, layer, weights)
    if not replicas_are_free(instance) or layer.replicas is None:
        return prices
    first = np.cumsum(layer.replicas) - layer.replicas
    return np.asarray(prices[first] * layer.replicas[:, None])  # a rounding that link_prices has taken off


def _away(instance: Instance, network: Network, held: Counter[tuple[int, int]]) -> Ints:
    """1 where a place holds no replica of an expert now [experts, places]."""
    away = np.ones((instance.model.experts, len(network.home)), dtype=np.int64)
    per_place = instance.gpus // len(network.home)
    for expert, gpu in held:
        away[expert, gpu // per_place] = 0
    return away


def _held(placement: Placement) -> list[Counter[tuple[int, int]]]:
    """Count, per layer, how often an expert (or a shard of it) is on a GPU."""
    return [
        Counter((e, gpu) for e in range(len(row)) for replica in placement.shards(layer, e) for gpu in replica)
        for layer, row in enumerate(placement.gpu)
    ]
