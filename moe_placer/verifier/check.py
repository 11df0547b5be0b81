"""Puts the checks together: constraints first, then loads, then what is stated of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic import load_traffic
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier import rules
from moe_placer.verifier.capacity import gpu_slots, wire_bytes
from moe_placer.verifier.derive import Checker
from moe_placer.verifier.facts import check_facts
from moe_placer.verifier.layer_time import busiest_gpu, check_layer_time, expert_token_us, least_busiest
from moe_placer.verifier.loads import Network, find_traffic_mistakes, read_network
from moe_placer.verifier.migration import check_migration
from moe_placer.verifier.placed_layers import PlacedLayer, read_layers
from moe_placer.verifier.scenarios import count_scenarios, judge, most_over_busiest
from moe_placer.verifier.sending import find_dispatch_mistakes
from moe_placer.verifier.serving import check_serving
from moe_placer.verifier.transfer_file import Transfers
from moe_placer.verifier.verification import CONSTRAINTS, Verification, Violation

__all__ = ["verify"]


def verify(
    instance: Instance,
    placement: Placement,
    traffic: Traffic | None = None,
    current: Placement | None = None,
    transfers: Transfers | None = None,
    *,
    bounds: bool = True,
) -> Verification:
    """Recompute everything about a placement and list every violation; a bad placement never raises.

    Parameters
    ----------
    instance : Instance
        What the placement must respect.
    placement : Placement
        As solved, or as read from a file that nobody vouches for.
    traffic : Traffic, optional
        Absent: what the instance names.
    current : Placement, optional
        What ran before: moves from it, their budget and the bound within that are checked.
    transfers : Transfers, optional
        The way from there to here, which is replayed.
    bounds : bool
        Whether to derive bounds anew; otherwise there are none, and stated ones are held against loads only.

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
    traffic = _fitting_traffic(instance, traffic)
    replicas = rules.read_replicas(instance, placement)
    memory = rules.gpu_memory(instance, replicas)
    structure = [*rules.check_counts(instance, placement), *rules.check_places(instance, replicas)]
    violations = [
        *rules.check_keys(instance, placement, traffic),
        *structure,
        *_check_constraints(instance, replicas, memory),
    ]
    valid = not any(violation.rule in CONSTRAINTS for violation in violations)
    network = read_network(instance)
    facts = check_facts(instance, traffic, network, placement)
    violations += facts.violations
    whole = set(instance.moe_layers[: len(placement.gpu)]) - {violation.layer for violation in structure}
    of_mix = read_layers(instance, network, traffic, replicas, whole)
    network, layers = judge(instance, network, traffic, replicas, whole, of_mix)
    checker = Checker(instance, network, traffic, layers, valid, violations, bounds)
    stated = [*placement.layers[: len(layers)], *[None] * (len(layers) - len(placement.layers))]
    checks = tuple(checker.check_layer(layer, record) for layer, record in zip(layers, stated, strict=True))
    aggregate_bound = checker.check_aggregate(placement.aggregate)
    total_z = sum(check.z for check in checks)
    memory_bound = checker.check_memory(placement, total_z)
    budget_bound = checker.check_replan(placement, current, total_z) if current is not None else 0.0
    if transfers is not None and current is not None and valid:
        violations += check_migration(instance, current, placement, transfers) or [
            *check_serving(instance, traffic, current, placement, transfers)
        ]
    load, model, slots = np.stack([layer.load for layer in layers]), instance.model, gpu_slots(instance)
    found = Verification(
        violations=tuple(violations),
        layers=checks,
        cost=load * network.scale,
        load=load,
        us=load * network.us_per_token,
        links=network.links,
        worst_pair=np.array([layer.worst_pair for layer in layers]),
        memory=memory,
        aggregate_bound=aggregate_bound,
        memory_bound=memory_bound,
        budget_bound=budget_bound,
        back=wire_bytes(model, instance.placement.combine_dtype) / wire_bytes(model, instance.placement.dispatch_dtype),
        busiest_gpu=_busiest_gpus(of_mix, replicas),
        least_busiest=np.array([least_busiest(instance, layer, slots) for layer in of_mix]),
        expert_token_us=expert_token_us(instance),
        cost_us=_least_us(network) / most_over_busiest(instance, count_scenarios(instance, traffic)),
        facts_checked=facts.checked,
        facts_not_checked=(*facts.not_checked, *_unchecked(placement, current)),
    )
    times = tuple(check_layer_time(placement.layer_time, found, bounds)) if len(whole) == len(layers) else ()
    return replace(found, violations=(*found.violations, *times))


def _unchecked(placement: Placement, current: Placement | None) -> tuple[str, ...]:
    return ("replan",) if placement.replan is not None and current is None else ()


def _fitting_traffic(instance: Instance, traffic: Traffic | None) -> Traffic:
    """Return the traffic, or where there is none that of the instance; refuse what does not fit the instance."""
    if traffic is None:
        traffic = load_traffic(instance)
    mistakes = find_traffic_mistakes(instance, traffic) or find_dispatch_mistakes(instance, traffic)
    if mistakes:
        raise InputError(mistakes)
    return traffic


def _busiest_gpus(layers: Sequence[PlacedLayer], replicas: Sequence[rules.Replica]) -> npt.NDArray[np.float64]:
    """Tokens of the busiest GPU of each layer [layers]."""
    of_layer: list[list[rules.Replica]] = [[] for _ in layers]
    for replica in replicas:
        of_layer[replica.row].append(replica)
    return np.array([busiest_gpu(*pair) for pair in zip(layers, of_layer, strict=True)])


def _least_us(network: Network) -> float:
    """Return the microseconds that a cost of 1 takes on any link, at least."""
    return float((network.us_per_token / network.scale).min()) if network.links else 0.0


def _check_constraints(
    instance: Instance, replicas: Sequence[rules.Replica], memory: npt.NDArray[np.float64]
) -> Iterator[Violation]:
    """List what replicas break of slots, memory, spreading, failed GPUs and pins."""
    yield from rules.check_slots(instance, replicas)
    yield from rules.check_memory(instance, memory)
    yield from rules.check_apart(instance, replicas)
    yield from rules.check_survives(instance, replicas)
    yield from rules.check_failed(instance, replicas)
    yield from rules.check_pinned(instance, replicas)
