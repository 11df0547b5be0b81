"""Whether records carry what their proofs need, and nothing that is out of range."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from moe_placer.instance import Instance
from moe_placer.instance.schema import RedundantSlots, SharedSlots
from moe_placer.placement import AggregateRecord, LayerRecord, MemoryRecord
from moe_placer.verifier.best_split_anew import check_split
from moe_placer.verifier.nics import receives_by_gpu
from moe_placer.verifier.rules import shown
from moe_placer.verifier.sending import check_proof_fits, sends_every_choice
from moe_placer.verifier.verification import Violation

__all__ = [
    "check_aggregate_proof",
    "check_memory_prices",
    "check_memory_proof",
    "check_proof",
    "check_range",
    "most_replicas",
    "replicas_are_free",
]

WEIGHT_TOLERANCE = 1e-6
HIGHEST_MEMORY_PRICE = 1e6  # times the largest weighted cost of a replica: what docs/bounds.md allows

WEIGHTED = {"dual", "threshold", "weighted-companions", "mutual-companions", "best-split"}
WHOLE_COMPANION = 64  # the parts of one, as docs/bounds.md defines them
_ANY_REPLICAS = (
    "required is proof: dual, hot-replicas or mutual-companions, and routing by which all nodes use replicas alike"
)
_OF_ANY_REPLICAS = {"dual", "hot-replicas", "mutual-companions"}


def replicas_are_free(instance: Instance) -> bool:
    """Whether how many replicas each expert has is a choice: then a bound must hold for every choice."""
    budget = instance.placement.replicas
    if isinstance(budget, RedundantSlots):
        return budget.redundant_slots > 0
    return isinstance(budget, SharedSlots) and budget.redundant_slots_in_all > 0


def most_replicas(instance: Instance) -> int:
    """Replicas that one layer may have, whatever the others have."""
    budget, experts = instance.placement.replicas, instance.model.experts
    if isinstance(budget, RedundantSlots):
        return experts + budget.redundant_slots
    if isinstance(budget, SharedSlots):
        return experts + budget.redundant_slots_in_all
    return experts * instance.parallelism.dp


def _shares_alike(instance: Instance) -> bool:
    """Whether a replica gets the same share of every node's tokens for its expert."""
    return instance.placement.draws_evenly or instance.placement.replica_routing == "vllm-hash"


def check_proof(
    instance: Instance, record: LayerRecord, layer: int, links: tuple[str, ...], replicas: list[int] | None
) -> Iterator[Violation]:
    """Rules ``weights`` and ``proof``: the record carries what its proof needs, and nothing else in its place.

    ``replicas`` counts the replicas of each expert; None where the placement is too broken for that.

    Parameters
    ----------
    instance : Instance
    record : LayerRecord
        What the file states of the layer.
    layer : int
        Index in the model.
    links : tuple
        Names of the links of the fabric.
    replicas : list of int or None
        Replicas of each expert; None: the placement is too broken to count them.
    """
    yield from _check_weights(record, layer, links)
    yield from check_proof_fits(instance, record.proof, layer, f"proof: {record.proof}")
    if instance.objective.take == "mean" and record.proof not in {"dual", "solver"}:
        required = "required is dual or solver, since single links prove nothing of a mean"
        yield Violation("proof", f"proof: {record.proof} with objective.take: mean, {required}", layer)
    yield from _check_any_replicas(instance, record, layer)
    for_these = not record.any_copies and record.proof != "solver" and replicas_are_free(instance)
    if record.bound_given_replicas is not None and not for_these:
        required = "required are replicas that are a choice, and a proof for those as given that can be checked"
        yield Violation("proof", f"bound_given_replicas with proof: {record.proof}, {required}", layer)
    if record.proof == "threshold":
        if record.threshold is None:
            yield Violation("proof", "no threshold, required for proof: threshold", layer)
        elif not (math.isfinite(record.threshold) and record.threshold >= 0):
            yield Violation("proof", f"a threshold of {record.threshold:.9g}, required is 0 or more", layer)
    if record.proof in {"hot-experts", "companions"}:
        yield from _check_hot(record, layer, replicas)
    if record.proof in {"companions", "weighted-companions"}:
        yield from _check_companions(instance, record, layer)
    yield from _check_mutual(instance, record, layer)


def _check_any_replicas(instance: Instance, record: LayerRecord, layer: int) -> Iterator[Violation]:
    """Check that a proof for any number of replicas is one, and that one about the best split fits the instance."""
    split, rule = record.proof == "best-split", instance.placement.replica_routing
    if instance.placement.prefers_near and record.proof not in {"best-split", "solver"}:
        required = f"required is proof: best-split under replica_routing: {rule}"
        yield Violation("proof", f"proof: {record.proof}, {required}", layer)
    if split and (not sends_every_choice(instance) or receives_by_gpu(instance) or instance.parallelism.expert_tp > 1):
        required = "required are whole experts, a copy for every chosen one, and nodes as places"
        yield Violation("proof", f"proof: best-split, {required}", layer)
    if split:
        yield from check_split(instance, record, layer)
    elif record.any_copies and not (record.proof in _OF_ANY_REPLICAS and _shares_alike(instance)):
        yield Violation("proof", f"a bound for any replicas with proof: {record.proof}, {_ANY_REPLICAS}", layer)
    if record.proof == "hot-replicas" and not record.any_copies:
        required = "required is that it holds for any replicas"
        yield Violation("proof", f"proof: hot-replicas without any_copies, {required}", layer)


def _check_hot(record: LayerRecord, layer: int, replicas: list[int] | None) -> Iterator[Violation]:
    if record.hot is None:
        yield Violation("proof", f"no hot replica, required for proof: {record.proof}", layer)
    elif replicas is not None:
        expert, replica = record.hot
        if not (0 <= expert < len(replicas) and 0 <= replica < replicas[expert]):
            found = f"hot names expert {shown(expert)}, replica {shown(replica)}"
            yield Violation("proof", f"{found}, required is a replica of this layer", layer)


def _check_companions(instance: Instance, record: LayerRecord, layer: int) -> Iterator[Violation]:
    """Check that the order names every expert once, and that all guesses are of experts."""
    if record.companions is None:
        yield Violation("proof", f"no companions, required for proof: {record.proof}", layer)
        return
    experts = instance.model.experts
    if sorted(record.companions.order) != list(range(experts)):
        yield Violation("proof", f"an order of companions, required is every expert below {experts} once", layer)
    views = 1 if instance.placement.draws_evenly else instance.parallelism.dp
    guess = record.companions.guess
    if len(guess) != views or any(len(table) != experts for table in guess):
        required = f"required are guesses for {views} views of {experts} experts"
        yield Violation("proof", f"companions of another shape, {required}", layer)
    elif not all(0 <= fellow < experts for table in guess for row in table for fellow in row):
        yield Violation("proof", f"a companion that is no expert, required are experts below {experts}", layer)


def _check_mutual(instance: Instance, record: LayerRecord, layer: int) -> Iterator[Violation]:
    """Check that every expert of every view has a price and companions, all in range, where the proof needs them."""
    if record.proof != "mutual-companions":
        return
    found = record.mutual
    if found is None:
        yield Violation("proof", f"no mutual companions, required for proof: {record.proof}", layer)
        return
    experts = instance.model.experts
    views = 1 if instance.placement.draws_evenly else instance.parallelism.dp
    if [len(table) for table in found.near] != [experts] * views or [len(row) for row in found.prices] != [
        experts
    ] * views:
        required = f"required are companions and prices for {views} views of {experts} experts"
        yield Violation("proof", f"mutual companions of another shape, {required}", layer)
        return
    pairs = [(expert, *pair) for table in found.near for expert, row in enumerate(table) for pair in row]
    if not all(expert < other < experts and 0 <= part <= WHOLE_COMPANION for expert, other, part in pairs):
        required = f"required are experts of a higher index, below {experts}, and 0 to {WHOLE_COMPANION} parts"
        yield Violation("proof", f"a mutual companion out of range, {required}", layer)
    if not all(0 <= price <= 1 for row in found.prices for price in row):
        yield Violation("proof", "a price of a companion out of range, required is 0 to 1", layer)


def check_aggregate_proof(instance: Instance, record: AggregateRecord, links: tuple[str, ...]) -> Iterator[Violation]:
    """Rules ``weights`` and ``proof`` for what is stated of all layers together."""
    yield from _check_weights(record, None, links)
    yield from check_proof_fits(instance, record.proof, None, "a bound on the aggregate")
    if (record.bound is None) != (record.proof is None):
        yield Violation("proof", "a bound on the aggregate needs proof: dual, and the proof a bound")
    if record.any_copies and not (record.proof == "dual" and _shares_alike(instance)):
        yield Violation("proof", f"a bound on the aggregate for any replicas, {_ANY_REPLICAS}")
    if record.proof is not None and not record.any_copies and replicas_are_free(instance):
        required = "required is any_copies, since how many replicas each expert has is a choice"
        yield Violation("proof", f"a bound on the aggregate for the replicas as given, {required}")


def check_memory_proof(
    instance: Instance, record: MemoryRecord, proofs: Sequence[Mapping[str, float] | None], links: tuple[str, ...]
) -> Iterator[Violation]:
    """Rules ``weights`` and ``proof`` for a bound on the sum of z that counts memory.

    Parameters
    ----------
    instance : Instance
    record : MemoryRecord
        What the file states of the bound that counts memory.
    proofs : sequence of mapping or None
        Per layer, the link weights that the bound rests on: the record's own, or those of the layers' records.
    links : tuple of str
    """
    nodes = instance.cluster.nodes
    yield from check_proof_fits(instance, "dual", None, "a bound that counts memory")
    if receives_by_gpu(instance):
        found = "a bound that counts memory, with cluster.nics.receive: destination-gpu"
        yield Violation("proof", f"{found}, required are nodes as places")
    if len(record.room_prices) != nodes:
        found = f"{len(record.room_prices)} prices of memory for the bound that counts memory"
        yield Violation("proof", f"{found}, required is one per node ({nodes})")
    for node, price in enumerate(record.room_prices):
        if not (math.isfinite(price) and price >= 0):
            yield Violation("proof", f"a price of memory of {price:.9g} on node {node}, required is 0 or more")
    if any(weights is None for weights in proofs):
        yield Violation("proof", "the bound that counts memory needs link weights of every layer")
    if record.weights is not None:
        if len(record.weights) != len(instance.moe_layers):
            found = f"link weights of {len(record.weights)} layers for the bound that counts memory"
            yield Violation("weights", f"{found}, required is one per MoE layer ({len(instance.moe_layers)})")
        for layer, weights in zip(instance.moe_layers, record.weights, strict=False):
            yield from check_range(weights, layer, links)
    if replicas_are_free(instance):
        yield Violation("proof", "a bound that counts memory, required is a fixed number of replicas of each expert")


def check_memory_prices(record: MemoryRecord, largest: float) -> Iterator[Violation]:
    """Rule ``proof``: prices of memory are in range, given the ``largest`` weighted cost of a replica on a node."""
    highest = HIGHEST_MEMORY_PRICE * largest
    beyond = [node for node, price in enumerate(record.room_prices) if price > highest]
    if beyond:
        found = f"a price of memory of {record.room_prices[beyond[0]]:.9g} tokens on node {beyond[0]}"
        required = f"required are at most {highest:.9g}, {HIGHEST_MEMORY_PRICE:,.0f} times the largest weighted cost"
        yield Violation("proof", f"{found}, {required} of a replica")


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
    yield from check_range(record.weights, layer, links)


def check_range(weights: Mapping[str, float], layer: int | None, links: tuple[str, ...]) -> Iterator[Violation]:
    """Rule ``weights``: they are of links that exist, from 0 to 1, and sum to 1."""
    unknown = sorted(set(weights) - set(links))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        message = f"a weight for {unknown[0][:60]!r}{more}, required are links of the fabric"
        yield Violation("weights", message, layer)
    wrong = [name for name, weight in weights.items() if not 0 <= weight <= 1 + WEIGHT_TOLERANCE]
    if wrong:
        found = f"a weight of {weights[wrong[0]]:.9g} for {wrong[0][:60]!r}"
        yield Violation("weights", f"{found}, required is 0 to 1", layer)
    total = sum(weights.values())
    if links and not abs(total - 1) <= WEIGHT_TOLERANCE:
        yield Violation("weights", f"weights sum to {total:.9g}, required is 1 within {WEIGHT_TOLERANCE:g}", layer)
