"""Puts the checks together: constraints first, then loads, then what is stated of each layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError
from moe_placer.instance import Instance
from moe_placer.placement import AggregateRecord, LayerRecord, Placement
from moe_placer.traffic import load_traffic
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier import records, rules
from moe_placer.verifier.bounds_anew import (
    any_copies_bound,
    dual_bound,
    hot_expert_bound,
    node_slots,
    priced_cost,
    threshold_bound,
)
from moe_placer.verifier.loads import Network, choices_per_token, find_traffic_mistakes, read_network
from moe_placer.verifier.rules import Copy
from moe_placer.verifier.sending import check_proofs_fit, find_dispatch_mistakes, sends_every_choice, tokens_between
from moe_placer.verifier.verification import LayerCheck, Verification, Violation

__all__ = ["verify"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def verify(instance: Instance, placement: Placement, traffic: Traffic | None = None) -> Verification:
    """Recompute everything about a placement and list every violation; a bad placement never raises.

    Parameters
    ----------
    instance : Instance
        What the placement must respect.
    placement : Placement
        As solved, or as read from a file that nobody vouches for.
    traffic : Traffic, optional
        Absent: what the instance names.

    Returns
    -------
    Verification
        Violations and recomputed figures. A layer whose replicas cannot all be located has zeros, and its stated
        figures are not checked.

    Raises
    ------
    InputError
        The traffic does not fit the instance.
    """
    if traffic is None:
        traffic = load_traffic(instance)
    mistakes = find_traffic_mistakes(instance, traffic) or find_dispatch_mistakes(instance, traffic)
    if mistakes:
        raise InputError(mistakes)

    copies = rules.read_copies(instance, placement)
    memory = rules.gpu_memory(instance, copies)
    structure = [*rules.check_counts(instance, placement), *rules.check_places(instance, copies)]
    violations = [
        *rules.check_keys(instance, placement, traffic),
        *structure,
        *rules.check_slots(instance, copies),
        *rules.check_memory(instance, memory),
        *rules.check_apart(instance, copies),
        *rules.check_failed(instance, copies),
        *rules.check_pinned(instance, copies),
        *check_proofs_fit(instance, placement),
    ]
    network = read_network(instance)
    whole = set(instance.moe_layers[: len(placement.gpu)]) - {violation.layer for violation in structure}
    layers = _read_layers(instance, network, traffic, copies, whole)
    checks = []
    for row, layer in enumerate(layers):
        record = placement.layers[row] if row < len(placement.layers) else None
        check, wrong = _check_layer(instance, network, layer, record)
        checks.append(check)
        violations += wrong
    load = np.stack([layer.load for layer in layers])
    worst_pair = np.array([layer.worst_pair for layer in layers])
    cost = load * network.scale
    aggregate_bound, wrong = _check_aggregate(instance, network, layers, placement.aggregate)
    violations += wrong
    memory_bound, wrong = _check_memory(instance, network, layers, placement)
    violations += wrong
    return Verification(
        tuple(violations),
        tuple(checks),
        cost,
        load,
        load * network.us_per_token,
        network.links,
        worst_pair,
        memory,
        aggregate_bound,
        memory_bound,
    )


@dataclass(frozen=True, eq=False)
class _Layer:
    """One MoE layer: its index in the model, and what is known of its traffic.

    ``copies`` [experts] and ``demand`` [nodes, copies in all] are None where not every replica can be located; ``load``
    and ``worst_pair`` are zero then.
    """

    layer: int
    copies: Ints | None
    demand: Floats | None
    load: Floats
    worst_pair: float


def _read_layers(
    instance: Instance, network: Network, traffic: Traffic, copies: Sequence[Copy], whole: set[int]
) -> list[_Layer]:
    choices = choices_per_token(instance, traffic)
    of_layer: list[list[Copy]] = [[] for _ in instance.moe_layers]
    for copy in copies:
        of_layer[copy.row].append(copy)
    layers = []
    for row, layer in enumerate(instance.moe_layers):
        if layer not in whole:
            layers.append(_Layer(layer, None, None, np.zeros(len(network.links)), 0.0))
            continue
        count = Counter(copy.expert for copy in of_layer[row])
        counts = np.array([count[expert] for expert in range(instance.model.experts)])
        flow, demand = tokens_between(instance, traffic, row, choices[:, row], of_layer[row])
        layers.append(_Layer(layer, counts, demand, network.load(flow), float(flow.max())))
    return layers


def _check_layer(
    instance: Instance, network: Network, layer: _Layer, record: LayerRecord | None
) -> tuple[LayerCheck, list[Violation]]:
    """Recompute a layer's figures and compare them with its record; without its demand, only what needs none."""
    cost = layer.load * network.scale
    z = float(cost.max(initial=0.0))
    at = int(cost.argmax()) if z > 0 else None
    worst = network.links[at] if at is not None else ""
    tokens = float(layer.load[at]) if at is not None else 0.0
    us = tokens * float(network.us_per_token[at]) if at is not None else 0.0
    if record is None:
        return LayerCheck(layer.layer, z, worst, 0.0, "", tokens, us), []
    copies = None if layer.copies is None else layer.copies.tolist()
    lacking = [*records.check_proof(record, layer.layer, network.links, copies, _copies_are_free(instance))]
    derivable = not lacking and record.proof != "solver"
    bound = _derive_bound(instance, network, layer, record) if derivable else 0.0
    check = LayerCheck(layer.layer, z, worst, bound, record.proof, tokens, us)
    violations = [*records.check_order(record, layer.layer), *lacking]
    if layer.demand is not None:
        violations += records.check_figures(record, check, network.links, cost, layer.load, derivable)
    return check, violations


def _derive_bound(instance: Instance, network: Network, layer: _Layer, record: LayerRecord) -> float:
    if layer.demand is None or layer.copies is None or not sends_every_choice(instance):
        return 0.0
    slots = node_slots(instance)
    if record.proof == "hot-experts" and record.hot is not None:
        expert, replica = record.hot
        return hot_expert_bound(network, layer.demand, slots, int(layer.copies[:expert].sum()) + replica)
    weights = record.weights or {}
    if record.proof == "threshold" and record.threshold is not None:
        return threshold_bound(network, layer.demand, slots, weights, record.threshold)
    return _weighted_bound(network, layer, slots, weights, record.any_copies)


def _weighted_bound(
    network: Network, layer: _Layer, slots: Ints, weights: Mapping[str, float], any_copies: bool | None
) -> float:
    if layer.demand is None or layer.copies is None:
        return 0.0
    if not any_copies:
        return dual_bound(network, layer.demand, slots, weights)
    first_copy = np.cumsum(layer.copies) - layer.copies
    single = np.add.reduceat(layer.demand, first_copy, axis=1)
    return any_copies_bound(network, single, slots, weights)


def _check_aggregate(
    instance: Instance, network: Network, layers: list[_Layer], record: AggregateRecord | None
) -> tuple[float, list[Violation]]:
    """Derive the bound on the largest link total anew; compare what is stated of it, if every layer is whole."""
    if record is None:
        return 0.0, []
    lacking = [*records.check_aggregate_proof(record, network.links, _copies_are_free(instance))]
    if any(layer.demand is None for layer in layers):
        return 0.0, lacking
    derived = None
    if record.proof is not None and not lacking and sends_every_choice(instance):
        slots, weights = node_slots(instance), record.weights or {}
        derived = sum(_weighted_bound(network, layer, slots, weights, record.any_copies) for layer in layers)
    load = np.sum([layer.load for layer in layers], axis=0)
    wrong = records.check_aggregate(record, network.links, load * network.scale, load, derived)
    return derived or 0.0, [*lacking, *wrong]


def _check_memory(
    instance: Instance, network: Network, layers: list[_Layer], placement: Placement
) -> tuple[float, list[Violation]]:
    """Derive the bound on the sum of z that counts memory over layers; compare what is stated of it."""
    record = placement.memory
    if record is None:
        return 0.0, []
    weights = [layer.weights for layer in placement.layers]
    lacking = [*records.check_memory_proof(record, instance.cluster.nodes, weights, _copies_are_free(instance))]
    if lacking or len(weights) != len(layers) or not sends_every_choice(instance):
        return 0.0, lacking
    slots, prices = node_slots(instance), np.array(record.room_prices)
    derived, total_z = -float(prices @ rules.node_room(instance)), 0.0
    for layer, own in zip(layers, weights, strict=True):
        if layer.demand is None:
            return 0.0, []
        derived += priced_cost(network, layer.demand, slots, own or {}, prices)
        total_z += float((layer.load * network.scale).max(initial=0.0))
    derived = max(0.0, derived) if np.isfinite(derived) else 0.0
    return derived, [*records.check_memory_bound(record, derived, total_z)]


def _copies_are_free(instance: Instance) -> bool:
    return instance.placement.replicas != "dp" and instance.placement.replica_routing == "even"
