"""Derives the bound of ``proof: mutual-companions`` anew, as docs/bounds.md defines it, and never above what it proves.

What every expert adds is rounded down and what every pair saves is rounded up; what follows is in whole numbers, where
any division of a pair's saving among its two experts is lawful. So prices are not trusted: they only divide.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.placement import MutualRecord
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier.companions_anew import Companions
from moe_placer.verifier.integer_bounds import BITS, find_unit, least_cost, on_grid, value_of
from moe_placer.verifier.loads import Network
from moe_placer.verifier.proofs import WHOLE_COMPANION

__all__ = ["mutual_bound"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def mutual_bound(
    instance: Instance,
    network: Network,
    traffic: Traffic,
    row: int,
    weights: Mapping[str, float],
    record: MutualRecord,
) -> float:
    """Bound from link weights and pairs of companions: one replica of every expert in each view, whatever there are.

    Where tokens draw replicas, links cost a mean over draws of what they cost with one replica of each expert, all of
    which fit in the slots; so the least of these bounds every number of replicas.

    Parameters
    ----------
    instance : Instance
    network : Network
        Links, routes and bandwidths, as the verifier reads them.
    traffic : Traffic
    row : int
        The MoE layer, in their order.
    weights : mapping
        Link name to weight, in range (`moe_placer.verifier.proofs`).
    record : MutualRecord
        In range, too.
    """
    experts = instance.model.experts
    views = 1 if instance.placement.draws_evenly else instance.parallelism.dp
    layer = Companions(instance, network, traffic, row, np.full(experts, views))
    slots, node = layer.slots
    weight = network.normalised(weights)
    lines = [_lines(layer, pairs) for pairs in record.near]
    of_node = [layer.prices(n, weight).sum(axis=0) for n in range(len(network.home))]
    largest = max(float((p[v] @ lines[v][0]).max(initial=0.0)) for p in of_node for v in range(views))
    # Of an expert's share at most so many savings are taken off, none of them above the largest that anybody adds.
    room = (experts + 1).bit_length() + (views * experts).bit_length() + 1
    unit = find_unit(largest * (1 + layer.slack), min(BITS, 60 - room))
    if unit is None or not (slots > 0).any():
        return 0.0
    share = np.zeros((views * experts, len(slots)), dtype=np.int64)
    known: dict[tuple[bytes, int], Ints] = {}
    for place in np.flatnonzero(slots > 0).tolist():
        price, fellows = of_node[int(node[place])], int(slots[place]) - 1
        kind = (price.tobytes(), fellows)
        if kind not in known:
            known[kind] = np.concatenate(
                [
                    _least_shares(price[v], fellows, lines[v], np.array(record.prices[v]), unit, layer.slack)
                    for v in range(views)
                ]
            )
        share[:, place] = known[kind]
    raised = -min(0, int(share[:, slots > 0].min()))  # every one is paid once, so that much is paid back
    steps = least_cost(share + raised, slots)
    return 0.0 if steps is None else value_of(steps - raised * len(share), unit)


def _lines(layer: Companions, pairs: tuple[tuple[tuple[int, int], ...], ...]) -> tuple[Floats, Floats]:
    """Shares of each file's tokens that experts add, and that pairs save on one place: lines below 1 / (1 + x).

    Returns
    -------
    alone : float array [files, experts]
    saved : float array [files, experts, experts]
    """
    experts = len(pairs)
    near = np.zeros((experts, experts), dtype=np.int64)
    for one, others in enumerate(pairs):
        for other, parts in others:
            near[one, other] = near[other, one] = parts
    alone, saved = np.zeros((len(layer.files), experts)), np.zeros((len(layer.files), experts, experts))
    for file, (chosen, times) in enumerate(layer.files):
        share = times / times.sum()
        for own in chosen.T:
            a = near[own[:, None], chosen].sum(axis=1) // WHOLE_COMPANION
            np.add.at(alone[file], own, share * 2 / (a + 2))
            for fellow in chosen.T:
                other = fellow != own
                less = share / ((a + 1) * (a + 2))
                np.add.at(saved[file], (own[other], fellow[other]), less[other])
    return alone, saved


def _least_shares(
    price: Floats, fellows: int, lines: tuple[Floats, Floats], worth: Floats, unit: int, slack: float
) -> Ints:
    """Return the least that each expert's share of a place's price can be [experts], in steps; it may be below 0.

    Parameters
    ----------
    price : float array [files]
        Cost of all tokens of a file on the place.
    fellows : int
        How many others the place takes.
    lines : tuple
        What `_lines` says.
    worth : float array [experts]
        Prices of companions, 0 to 1 of all tokens.
    unit : int
        The step is 2**unit.
    slack : float
        What rounding can have done, relative.
    """
    alone = on_grid((price @ lines[0]) * (1 - slack), unit)
    one_way = np.tensordot(price, lines[1], axes=1) * (1 + slack)
    both_ways = -np.floor(np.ldexp(-(one_way + one_way.T), -unit)).astype(np.int64)
    first = np.triu(_divided(both_ways, np.ldexp(worth * float(price.sum()), -unit)), 1)
    parts = first + (np.triu(both_ways, 1) - first).T
    fellows = min(fellows, len(parts) - 1)
    if fellows <= 0:
        return alone
    return np.asarray(alone - np.partition(parts, len(parts) - fellows, axis=1)[:, len(parts) - fellows :].sum(axis=1))


def _divided(saved: Ints, worth: Floats) -> Ints:
    """Say how many steps of each pair's saving are booked to the first of it: any number from none to all is lawful."""
    own, other = worth[:, None], worth[None, :]
    both = own + other
    with np.errstate(invalid="ignore", over="ignore"):
        share = np.where(both > 0, own / np.where(both > 0, both, 1.0), 0.5)
        wanted = np.where(saved <= both, saved * share, (saved + own - other) / 2)
    wanted = np.floor(np.nan_to_num(wanted, nan=0.0, posinf=0.0, neginf=0.0))
    return np.asarray(np.minimum(np.maximum(wanted, 0.0).astype(np.int64), saved))
