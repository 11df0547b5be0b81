"""Compares what a placement states of a layer with what is recomputed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from moe_placer.placement import AggregateRecord, LayerRecord, MemoryRecord
from moe_placer.verifier.rules import shown
from moe_placer.verifier.verification import LayerCheck, Violation

__all__ = [
    "check_aggregate",
    "check_budget_bound",
    "check_contradiction",
    "check_figures",
    "check_given_replicas",
    "check_memory_bound",
    "check_order",
]

Floats = npt.NDArray[np.float64]

Z_TOLERANCE = 1e-6  # relative
ROUNDING = 1e-9  # of bounds: relative; and absolute, in tokens or in all that is sent, whichever is less


def check_order(record: LayerRecord, layer: int) -> Iterator[Violation]:
    """Rule ``shape``: records follow the order of the MoE layers."""
    if record.layer != layer:
        yield Violation("shape", f"its record says layer {shown(record.layer)}, required is {layer}", layer)


def _within(figure: float, limit: float, sent: float) -> bool:
    """Whether a figure is at most the limit, but for rounding; ``sent`` is what all traffic could cost on one link."""
    return figure <= limit + ROUNDING * limit + ROUNDING * min(1.0, sent)


def check_contradiction(derived: float, z: float, sent: float, layer: int | None, what: str) -> Iterator[Violation]:
    """Rule ``contradiction``: what a proof gives is not above what the valid placement beside it has.

    Parameters
    ----------
    derived : float
        What the proof gives, tokens at node-link speed.
    z : float
        Cost of the busiest link, tokens at node-link speed.
    sent : float
        Tokens per step that cross between nodes in all: what roundings are measured by.
    layer : int or None
        Index in the model; None: of no layer.
    what : str
        What is bounded, for the message.
    """
    if not _within(derived, z, sent):
        message = f"its proof gives {derived:.12g} tokens, but {what} is {z:.12g}: one of them is wrong"
        yield Violation("contradiction", message, layer)


def check_aggregate(
    record: AggregateRecord,
    links: tuple[str, ...],
    totals: Floats,
    load: Floats,
    derived: float | None,
    sent: float,
) -> Iterator[Violation]:
    """Rules ``aggregate``, ``worst-link`` and ``bound`` for what is stated of all layers together.

    Parameters
    ----------
    record : AggregateRecord
        What the file states of all layers together.
    links : tuple
        Names of the links of the fabric.
    totals, load : float array [links]
        Costs, and plain tokens, of links over all layers.
    derived : float or None
        What the proof gives, if it can be derived.
    sent : float
        What the traffic of all layers could cost on one link.
    """
    value = float(totals.max(initial=0.0))
    if not math.isclose(record.value, value, rel_tol=Z_TOLERANCE, abs_tol=ROUNDING):
        found = f"states an aggregate of {record.value:.9g} tokens"
        yield Violation("aggregate", f"{found}, required is {value:.9g} tokens, as recomputed")
    yield from _check_worst_link(record, value, None, links, totals, load)
    bound = record.bound or 0.0
    stated = f"a bound on the aggregate of {bound:.12g} tokens"
    if derived is not None and not _within(bound, derived, sent):
        yield _too_high(stated, derived, "that its weights give")
    if not _within(bound, value, sent):
        yield _too_high(stated, value, "of its busiest link")


def check_memory_bound(record: MemoryRecord, derived: float, total_z: float, sent: float) -> Iterator[Violation]:
    """Rule ``bound`` for a bound on the sum of z that counts memory.

    Parameters
    ----------
    record : MemoryRecord
        What the file states of the bound that counts memory.
    derived : float
        What the proof gives, tokens at node-link speed.
    total_z : float
        Sum over layers of z, tokens at node-link speed.
    sent : float
        Tokens per step that cross between nodes in all: what roundings are measured by.
    """
    yield from _check_sum("a bound that counts memory", record.bound, derived, total_z, sent, "prices of memory")


def check_budget_bound(bound: float, derived: float, total_z: float, sent: float) -> Iterator[Violation]:
    """Rule ``bound`` for a bound on the sum of z within a budget of moves.

    Parameters
    ----------
    bound : float
        What the file states, tokens at node-link speed.
    derived : float
        What the proof gives, tokens at node-link speed.
    total_z : float
        Sum over layers of z, tokens at node-link speed.
    sent : float
        Tokens per step that cross between nodes in all: what roundings are measured by.
    """
    yield from _check_sum("a bound within its budget", bound, derived, total_z, sent, "the price of a move")


def _check_sum(
    what: str, bound: float, derived: float, total_z: float, sent: float, prices: str
) -> Iterator[Violation]:
    """Check a bound on the sum of z: a difference of sums of about total_z, so roundings are measured by that too."""
    stated = f"{what} of {bound:.12g} tokens"
    if not _within(bound, derived + ROUNDING * total_z, sent):
        yield _too_high(stated, derived, f"that weights and {prices} give")
    if not _within(bound, total_z, sent):
        yield _too_high(stated, total_z, "of the sum of busiest links")


def _too_high(stated: str, limit: float, whose: str, layer: int | None = None, rule: str = "bound") -> Violation:
    return Violation(rule, f"states {stated}, required are at most the {limit:.12g} tokens {whose}", layer)


def check_figures(
    record: LayerRecord,
    check: LayerCheck,
    links: tuple[str, ...],
    cost: Floats,
    load: Floats,
    derived: bool,
    sent: float,
) -> Iterator[Violation]:
    """Rules ``z``, ``worst-link``, ``bound`` and ``solver-bound``: stated figures are what they really are.

    Parameters
    ----------
    record : LayerRecord
        What the file states of the layer.
    check : LayerCheck
        The same, recomputed.
    links : tuple
        Names of the links of the fabric.
    cost, load : float array [links]
        Cost, and plain tokens, of each link.
    derived : bool
        Whether ``check.bound`` is what the record's proof gives for the instance.
    sent : float
        What the layer's traffic could cost on one link.
    """
    z, layer = check.z, check.layer
    if not math.isclose(record.z, z, rel_tol=Z_TOLERANCE, abs_tol=ROUNDING):
        yield Violation("z", f"states a z of {record.z:.9g} tokens, required is {z:.9g} tokens, as recomputed", layer)
    yield from _check_worst_link(record, float(cost.max(initial=0.0)), layer, links, cost, load)
    stated = f"a bound of {record.bound:.12g} tokens"
    if derived and not _within(record.bound, check.bound, sent):
        yield _too_high(stated, check.bound, f"that its proof ({record.proof}) gives", layer)
    if not _within(record.bound, z, sent):
        yield _too_high(stated, z, "of its busiest link", layer)
    solver_bound = record.solver_bound
    if solver_bound is None:
        return
    if not _within(solver_bound, z, sent):
        yield _too_high(f"{solver_bound:.12g} tokens", z, "of its busiest link", layer, "solver-bound")
    if not _within(record.bound, solver_bound, sent):
        required = f"required is at least the bound, {record.bound:.12g} tokens"
        yield Violation("solver-bound", f"states {solver_bound:.12g} tokens, {required}", layer)


def check_given_replicas(record: LayerRecord, check: LayerCheck, sent: float) -> Iterator[Violation]:
    """Rule ``bound`` where replicas are a choice, but the proof holds only for those as given."""
    stated, given, layer = record.bound_given_replicas, check.bound_given_replicas, check.layer
    if given is None:
        return
    if record.bound > 0:
        found = f"states a bound of {record.bound:.12g} tokens by a proof ({record.proof}) for the replicas as given"
        required = "required is 0 or any_copies, since how many replicas each expert has is a choice: what holds for"
        yield Violation("bound", f"{found}, {required} these replicas is bound_given_replicas", layer)
    if stated is not None and not _within(stated, given, sent):
        found = f"{stated:.12g} tokens for the replicas as given"
        yield _too_high(found, given, f"that its proof ({record.proof}) gives", layer)


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
            yield Violation("worst-link", f"names no busiest link, required is one that costs {z:.9g} tokens", layer)
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
        found = f"states {stated:.9g} plain tokens on its busiest link ({name or 'none'})"
        yield Violation("worst-link", f"{found}, required are {tokens:.9g}, as recomputed", layer)
