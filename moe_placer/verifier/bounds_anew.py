"""Derives the bound of every kind of proof anew, as docs/bounds.md defines it, and never above what it really proves.

Costs of replicas are sums of products of numbers that are at least 0, so that the rounding of each is known relative to
itself: it is taken off (`_safely_below`). What follows is in whole numbers (`moe_placer.verifier.integer_bounds`).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from moe_placer.verifier.integer_bounds import BITS, find_unit, least_cost, on_grid, steps_up_to, value_of
from moe_placer.verifier.loads import Network
from moe_placer.verifier.placed_layers import PlacedLayer

__all__ = [
    "any_replicas_bound",
    "dual_bound",
    "hot_expert_bound",
    "hot_replicas_bound",
    "link_prices",
    "memory_bound",
    "threshold_bound",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ROUNDING = 1e-9  # what docs/bounds.md allows, relative
_ROUNDING_ERROR = 2.0**-53
_SPARE = 32  # roundings of scale, share and weight, of their products, and of what is done here
_MODERATE = 2.0**100  # costs of a token beyond this, or below its inverse, prove nothing: products may underflow


def dual_bound(network: Network, layer: PlacedLayer, slots: Ints, weights: Mapping[str, float]) -> float:
    """Bound that link weights prove: the cheapest assignment at the weighted prices.

    Parameters
    ----------
    network : Network
        Links, routes and bandwidths, as the verifier reads them.
    layer : PlacedLayer
        One MoE layer as placed.
    slots : int array [places]
        What `place_slots` says.
    weights : mapping
        Link name to weight, at least 0, of existing links; divided by their sum, which may be off 1 by rounding.
    """
    prices = link_prices(network, layer, weights)
    unit = find_unit(float(prices.max(initial=0.0)))
    if unit is None:
        return 0.0
    steps = least_cost(on_grid(prices, unit), slots)
    return 0.0 if steps is None else value_of(steps, unit)  # None: no placement at all, as rule "slots" will say


def memory_bound(prices: Sequence[Floats], slots: Ints, memory_prices: Floats, memory: Ints) -> float:
    """Bound on the sum over layers of z: cheapest assignments where memory is paid for, less what all memory is worth.

    Parameters
    ----------
    prices : sequence of float array [items, nodes]
        `link_prices` of every layer.
    slots, memory : int array [nodes]
        Replicas that each node can hold of one layer, and of all together.
    memory_prices : float array [nodes]
        At least 0.
    """
    largest = max(float(one.max(initial=0.0)) for one in prices)
    unit = find_unit(max(largest, float(memory_prices.max(initial=0.0))))
    if unit is None:
        return 0.0
    paid = on_grid(memory_prices, unit)  # whatever is rounded off: any prices prove something
    total = -sum(p * r for p, r in zip(paid.tolist(), memory.tolist(), strict=True))
    for one in prices:
        steps = least_cost(on_grid(one, unit) + paid, slots)
        if steps is None:
            return 0.0
        total += steps
    return value_of(total, unit)


def any_replicas_bound(network: Network, layer: PlacedLayer, slots: Ints, weights: Mapping[str, float]) -> float:
    """Bound that link weights prove for any number of replicas: every expert, once, at its cheapest node.

    Parameters as of `moe_placer.verifier.bounds_anew.dual_bound`.
    """
    if layer.replicas is None or not (slots > 0).any():
        return 0.0
    first = np.cumsum(layer.replicas) - layer.replicas
    own = link_prices(network, layer, weights)
    # Replicas may get unlike shares of an expert's tokens: together they cost on one node what a single one would.
    prices = np.add.reduceat(own, first) * (1 - 2 * float(layer.replicas.max()) * _ROUNDING_ERROR)
    unit = find_unit(float(prices.max(initial=0.0)))
    if unit is None:
        return 0.0
    return value_of(sum(on_grid(prices, unit)[:, slots > 0].min(axis=1).tolist()), unit)


def hot_expert_bound(network: Network, layer: PlacedLayer, slots: Ints, item: int) -> float:
    """Bound from one item that some node must hold, together with the coldest companions.

    Parameters
    ----------
    network : Network
        Links, routes and bandwidths, as the verifier reads them.
    layer : PlacedLayer
        One MoE layer as placed.
    slots : int array [places]
        Items that each place can take.
    item : int
        The hot item.
    """
    floors, unit = _floors(network, layer, slots)
    of_item = floors[item, slots > 0]
    return value_of(int(of_item.min()), unit) if len(of_item) else 0.0


def hot_replicas_bound(network: Network, layer: PlacedLayer, slots: Ints, replicas: int) -> float:
    """Bound whatever the number of replicas, ``replicas`` in all at most: what the hottest of them costs on its place.

    Of all tokens for expert e, one of c replicas gets a c-th; so z is t or more where ``ceil(cost[e] / t)``, summed
    over experts, is above ``replicas`` for everything below t.

    Parameters
    ----------
    network : Network
        Links, routes and bandwidths, as the verifier reads them.
    layer : PlacedLayer
        One MoE layer as placed.
    slots : int array [places]
        Items that each place can take.
    replicas : int
        Replicas that the layer may have in all.
    """
    routes, of_place = network.arrivals
    if layer.replicas is None or layer.demand is None or not len(routes) or not (slots > 0).any():
        return 0.0
    first = np.cumsum(layer.replicas) - layer.replicas
    whole = layer.demand[:, first] * layer.replicas  # a rounding that _SPARE counts
    cost = _safely_below(routes @ whole, network, layer)
    open_ = [rows for rows, room in zip(of_place, slots.tolist(), strict=True) if room > 0]
    least = np.min([cost[rows].max(axis=0, initial=0.0) for rows in open_], axis=0)
    # The largest share that is left when every further replica goes to the expert of the largest one.
    shares, replicas = [(-value, 1, value) for value in least.tolist()], min(replicas, int(slots.sum()))
    if replicas < len(shares):
        return 0.0
    heapq.heapify(shares)
    for _ in range(replicas - len(shares)):
        _, count, of_all = shares[0]
        heapq.heapreplace(shares, (-of_all / (count + 1), count + 1, of_all))
    return float(-shares[0][0] * (1 - _SPARE * _ROUNDING_ERROR))


def threshold_bound(
    network: Network, layer: PlacedLayer, slots: Ints, weights: Mapping[str, float], threshold: float
) -> float:
    """Bound from forbidding what no placement below the threshold can contain, then weighing the rest.

    An item where it is forbidden is priced at the threshold: an assignment without any such pair costs what it costs,
    and every other at least the threshold.

    Parameters
    ----------
    network : Network
        Links, routes and bandwidths, as the verifier reads them.
    layer : PlacedLayer
        One MoE layer as placed.
    slots : int array [places]
        Items that each place can take.
    weights : mapping
        Weight of each link by its name; they sum to 1.
    threshold : float
        z that is to be ruled out, tokens at node-link speed.
    """
    # A floor may equal the threshold but for rounding: prove a threshold that is lower by as much.
    threshold *= 1 - ROUNDING
    if threshold <= 0:
        return 0.0
    floors, floor_unit = _floors(network, layer, slots)
    forbidden = floors >= steps_up_to(threshold, floor_unit)
    prices = link_prices(network, layer, weights)
    unit = find_unit(max(float(prices.max(initial=0.0)), threshold if forbidden.any() else 0.0))
    if unit is None:
        return 0.0
    reached, price = steps_up_to(threshold, unit), on_grid(prices, unit)
    if forbidden.any():
        price[forbidden] = reached
    steps = least_cost(price, slots)
    if steps is None:
        return 0.0
    return threshold if steps >= reached else value_of(steps, unit)


def link_prices(network: Network, layer: PlacedLayer, weights: Mapping[str, float]) -> Floats:
    """Weighted cost of each item on each place [items, places], at most what it really is; zeros if out of range."""
    if layer.demand is None:
        return np.zeros((0, 0))
    per_token = network.per_token(network.normalised(weights), len(layer.demand))
    # Places that tokens reach alike cost alike, to the last bit: each kind is computed once.
    kinds: dict[bytes, int] = {}
    kind = [kinds.setdefault(column.tobytes(), len(kinds)) for column in np.ascontiguousarray(per_token.T)]
    _, first = np.unique(kind, return_index=True)
    return _safely_below(layer.demand.T @ per_token[:, first], network, layer)[:, kind]


def _safely_below(values: Floats, network: Network, layer: PlacedLayer) -> Floats:
    """Take off what rounding can have added to sums over nodes and links of demand times cost.

    Every factor and term is at least 0 and every operation rounds by at most 2**-53 of its result, so n operations on
    the way to a number make it at most (1 + 2**-53)**n times too large. Twice as much is taken off.
    """
    cheapest, dearest = network.scale.min(initial=1.0), network.scale.max(initial=1.0)
    if layer.demand is None or not (cheapest >= 1 / _MODERATE and dearest <= _MODERATE):
        return np.zeros_like(values)
    roundings = layer.roundings + len(layer.demand) + network.longest + _SPARE
    return values * (1 - 2 * roundings * _ROUNDING_ERROR)


def _floors(network: Network, layer: PlacedLayer, slots: Ints) -> tuple[Ints, int]:
    """Compute ``floor[i, n]``, what some link carries at least if item i is on node n, in steps of which unit."""
    routes, of_place = network.arrivals
    assert layer.demand is not None
    items = layer.demand.shape[1]
    floors = np.zeros((items, len(slots)), dtype=np.int64)
    if not len(routes):
        return floors, 0
    cost = _safely_below(routes @ layer.demand, network, layer)  # c[i, n, k], one row for all (n, k) that are alike
    unit = find_unit(float(cost.max(initial=0.0)), min(BITS, 62 - items.bit_length()))  # sums stay below 2**62
    if unit is None:
        return floors, 0
    steps = on_grid(cost, unit)
    least = np.maximum(0, items - (slots.sum() - slots))
    with_companions = {count: _with_companions(steps, count) for count in set(least.tolist())}
    for place, rows in enumerate(of_place):
        floors[:, place] = with_companions[int(least[place])][rows].max(axis=0)
    return floors, unit


def _with_companions(cost: Ints, least: int) -> Ints:
    """Add to each item's cost, in every row, the ``least - 1`` smallest of the other items."""
    if least <= 1:
        return cost
    # Of the `least` smallest of all, drop the item itself if it is one of them, else the largest.
    smallest = np.partition(cost, least - 1, axis=1)[:, :least]
    return np.asarray(cost + smallest.sum(axis=1, keepdims=True) - np.minimum(cost, smallest[:, -1:]))
