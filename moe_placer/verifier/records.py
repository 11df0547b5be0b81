"""What a placement states of a layer, against what is recomputed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from moe_placer.placement import AggregateRecord, LayerRecord, MemoryRecord
from moe_placer.verifier.rules import shown
from moe_placer.verifier.verification import LayerCheck, Violation

__all__ = [
    "check_aggregate",
    "check_aggregate_proof",
    "check_figures",
    "check_memory_bound",
    "check_memory_proof",
    "check_order",
    "check_proof",
]

Floats = npt.NDArray[np.float64]

Z_TOLERANCE = 1e-6  # relative
WEIGHT_TOLERANCE = 1e-6
ROUNDING = 1e-9  # of bounds: relative, and absolute

WEIGHTED = {"dual", "threshold"}


def check_order(record: LayerRecord, layer: int) -> Iterator[Violation]:
    """Rule ``shape``: records follow the order of the MoE layers."""
    if record.layer != layer:
        yield Violation("shape", f"its record says layer {shown(record.layer)}, required is {layer}", layer)


def check_proof(
    record: LayerRecord, layer: int, links: tuple[str, ...], copies: list[int] | None, copies_are_free: bool
) -> Iterator[Violation]:
    """Rules ``weights`` and ``proof``: the record carries what its proof needs, and nothing else in its place.

    ``copies`` counts the copies of each expert; None where the placement is too broken for that.
    """
    yield from _check_weights(record, layer, links)
    if record.any_copies and not (copies_are_free and record.proof == "dual"):
        required = "required is proof: dual, a budget of redundant slots, and even routing"
        yield Violation("proof", f"a bound for any copies with proof: {record.proof}, {required}", layer)
    if record.proof == "threshold" and record.threshold is None:
        yield Violation("proof", "no threshold, required for proof: threshold", layer)
    if record.proof != "hot-experts":
        return
    if record.hot is None:
        yield Violation("proof", "no hot replica, required for proof: hot-experts", layer)
    elif copies is not None:
        expert, replica = record.hot
        if not (0 <= expert < len(copies) and 0 <= replica < copies[expert]):
            found = f"hot names expert {shown(expert)}, replica {shown(replica)}"
            yield Violation("proof", f"{found}, required is a replica of this layer", layer)


def check_aggregate_proof(
    record: AggregateRecord, links: tuple[str, ...], copies_are_free: bool
) -> Iterator[Violation]:
    """Rules ``weights`` and ``proof`` for what is stated of all layers together."""
    yield from _check_weights(record, None, links)
    if (record.bound is None) != (record.proof is None):
        yield Violation("proof", "a bound on the aggregate needs proof: dual, and the proof a bound")
    if record.any_copies and not (copies_are_free and record.proof == "dual"):
        required = "required is proof: dual, a budget of redundant slots, and even routing"
        yield Violation("proof", f"a bound on the aggregate for any copies, {required}")


def check_aggregate(
    record: AggregateRecord, links: tuple[str, ...], totals: Floats, load: Floats, derived: float | None
) -> Iterator[Violation]:
    """Rules ``aggregate``, ``worst-link`` and ``bound`` for what is stated of all layers together.

    Parameters
    ----------
    totals, load : float array [links]
        Costs, and plain tokens, of links over all layers.
    derived : float or None
        What the proof gives, if it can be derived.
    """
    value = float(totals.max(initial=0.0))
    if not math.isclose(record.value, value, rel_tol=Z_TOLERANCE, abs_tol=ROUNDING):
        found = f"states an aggregate of {record.value:.9g} tokens"
        yield Violation("aggregate", f"{found}, required is {value:.9g} tokens, as recomputed")
    yield from _check_worst_link(record, value, None, links, totals, load)
    bound = record.bound or 0.0
    if derived is not None and bound > derived * (1 + ROUNDING) + ROUNDING:
        required = f"required are at most the {derived:.12g} tokens that its weights give"
        yield Violation("bound", f"states a bound on the aggregate of {bound:.12g} tokens, {required}")
    if bound > value * (1 + ROUNDING) + ROUNDING:
        required = f"required are at most the {value:.12g} tokens of its hottest link"
        yield Violation("bound", f"states a bound on the aggregate of {bound:.12g} tokens, {required}")


def _check_weights(
    record: LayerRecord | AggregateRecord, layer: int | None, links: tuple[str, ...]
) -> Iterator[Violation]:
    needed = record.proof in WEIGHTED
    if record.weights is None:
        if needed:
            yield Violation("weights", f"no link weights, required for proof: {record.proof}", layer)
        return
    if not needed:
        yield Violation("weights", f"link weights, required are none for proof: {record.proof}", layer)
        return
    unknown = sorted(set(record.weights) - set(links))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        message = f"a weight for {unknown[0][:60]!r}{more}, required are links of the fabric"
        yield Violation("weights", message, layer)
    negative = [name for name, weight in record.weights.items() if not weight >= 0]
    if negative:
        yield Violation("weights", f"a negative weight for {negative[0][:60]!r}, required is 0 or more", layer)
    total = sum(record.weights.values())
    if links and not abs(total - 1) <= WEIGHT_TOLERANCE:
        yield Violation("weights", f"weights sum to {total:.9g}, required is 1 within {WEIGHT_TOLERANCE:g}", layer)


def check_memory_proof(
    record: MemoryRecord, nodes: int, proofs: Sequence[Mapping[str, float] | None], copies_are_free: bool
) -> Iterator[Violation]:
    """Rule ``proof`` for a bound on the sum of z that counts memory; ``proofs`` are the layers' link weights."""
    if len(record.room_prices) != nodes:
        found = f"{len(record.room_prices)} prices of room for the bound that counts memory"
        yield Violation("proof", f"{found}, required is one per node ({nodes})")
    if any(weights is None for weights in proofs):
        yield Violation("proof", "the bound that counts memory needs link weights of every layer")
    if copies_are_free:
        yield Violation("proof", "a bound that counts memory, required is a fixed number of copies of each expert")


def check_memory_bound(record: MemoryRecord, derived: float, total_z: float) -> Iterator[Violation]:
    """Rule ``bound`` for a bound on the sum of z that counts memory."""
    slack = ROUNDING * max(derived, total_z) + ROUNDING
    if record.bound > derived + slack:
        required = f"required are at most the {derived:.12g} tokens that weights and prices of room give"
        yield Violation("bound", f"states a bound that counts memory of {record.bound:.12g} tokens, {required}")
    if record.bound > total_z + slack:
        required = f"required are at most the {total_z:.12g} tokens of the sum of worst links"
        yield Violation("bound", f"states a bound that counts memory of {record.bound:.12g} tokens, {required}")


def check_figures(
    record: LayerRecord, check: LayerCheck, links: tuple[str, ...], cost: Floats, load: Floats, derived: bool
) -> Iterator[Violation]:
    """Rules ``z``, ``worst-link``, ``bound`` and ``solver-bound``: stated figures are what they really are.

    Parameters
    ----------
    cost, load : float array [links]
        Cost, and plain tokens, of each link.
    derived : bool
        Whether the bound could be derived from what the record carries.
    """
    z, layer = check.z, check.layer
    if not math.isclose(record.z, z, rel_tol=Z_TOLERANCE, abs_tol=ROUNDING):
        yield Violation("z", f"states a z of {record.z:.9g} tokens, required is {z:.9g} tokens, as recomputed", layer)
    yield from _check_worst_link(record, z, layer, links, cost, load)
    if derived and record.bound > check.bound * (1 + ROUNDING) + ROUNDING:
        required = f"required are at most the {check.bound:.12g} tokens that its proof ({record.proof}) gives"
        yield Violation("bound", f"states a bound of {record.bound:.12g} tokens, {required}", layer)
    if record.bound > z * (1 + ROUNDING) + ROUNDING:
        required = f"required are at most the {z:.12g} tokens of its worst link"
        yield Violation("bound", f"states a bound of {record.bound:.12g} tokens, {required}", layer)
    solver_bound = record.solver_bound
    if solver_bound is None:
        return
    if solver_bound > z * (1 + ROUNDING) + ROUNDING:
        required = f"required are at most the {z:.12g} tokens of its worst link"
        yield Violation("solver-bound", f"states {solver_bound:.12g} tokens, {required}", layer)
    if solver_bound < record.bound * (1 - ROUNDING) - ROUNDING:
        required = f"required is at least the bound, {record.bound:.12g} tokens"
        yield Violation("solver-bound", f"states {solver_bound:.12g} tokens, {required}", layer)


def _check_worst_link(
    record: LayerRecord | AggregateRecord,
    z: float,
    layer: int | None,
    links: tuple[str, ...],
    cost: Floats,
    load: Floats,
) -> Iterator[Violation]:
    """Check that a link of the largest cost is named, and the plain tokens stated beside it, where they are."""
    name, tokens = record.worst_link, 0.0
    if not name:
        if z > ROUNDING:
            yield Violation("worst-link", f"names no worst link, required is one that costs {z:.9g} tokens", layer)
            return
    elif name not in links:
        yield Violation("worst-link", f"names {name[:60]!r}, required is a link of the fabric", layer)
        return
    else:
        at = links.index(name)
        tokens = float(load[at])
        if not math.isclose(cost[at], z, rel_tol=Z_TOLERANCE, abs_tol=ROUNDING):
            found = f"names {name}, which costs {cost[at]:.9g} tokens"
            yield Violation("worst-link", f"{found}, required is a link that costs {z:.9g} tokens", layer)
            return
    stated = record.worst_link_tokens
    if stated is not None and not math.isclose(stated, tokens, rel_tol=Z_TOLERANCE, abs_tol=ROUNDING):
        found = f"states {stated:.9g} plain tokens on its worst link ({name or 'none'})"
        yield Violation("worst-link", f"{found}, required are {tokens:.9g}, as recomputed", layer)
