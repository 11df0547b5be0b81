"""What an instance may not have where an engine's rule numbers an expert's replicas by GPU."""

from __future__ import annotations

from collections.abc import Iterator

from moe_placer.instance.schema import AnyTraffic, Cluster, Objective, Parallelism, Placement, SharedSlots

__all__ = ["check_numbered"]

Found = tuple[tuple[str | int, ...], str, str]  # path of the field, what was found, what is expected


def check_numbered(
    cluster: Cluster, parallelism: Parallelism, placement: Placement, traffic: AnyTraffic, objective: Objective
) -> Iterator[Found]:
    """Require that the share of each replica is known beforehand, where a rule numbers an expert's replicas by GPU.

    Parameters
    ----------
    cluster : Cluster
    parallelism : Parallelism
    placement : Placement
    traffic : AnyTraffic
    objective : Objective
    """
    if not placement.numbers_replicas:
        return
    at, rule, tokens = ("placement", "replica_routing"), placement.replica_routing, traffic.tokens_per_gpu
    for wrong, found, expected in (
        (parallelism.expert_tp > 1, "parallelism.expert_tp above 1", "expert_tp: 1 (ranks hold whole experts)"),
        (placement.failed_gpus, "failed GPUs", "a cluster without them (the rule counts ranks, and these have none)"),
        (
            placement.counts_tokens_once,
            f"placement.dispatch: {placement.dispatch}",
            "dispatch: per-expert (the experts of a token are picked by one number, and the places that a token "
            "reaches are not solved for that); `evaluate --routing` counts it",
        ),
        (
            cluster.nics is not None and cluster.nics.receive != "shared",
            f"cluster.nics.receive: {cluster.nics.receive if cluster.nics else ''}",
            "receive: shared (ranks of one node pick unlike, so that its NICs do not send alike); "
            "`evaluate --routing` counts it",
        ),
        (placement.pinned, "pinned replicas", "none (where a replica is decides which number it has)"),
        (
            isinstance(placement.replicas, SharedSlots),
            "placement.replicas: redundant_slots_in_all",
            "{redundant_slots: n} (another number of replicas changes the shares of all)",
        ),
        (objective.minimise != "layers", f"objective.minimise: {objective.minimise}", "minimise: layers"),
        (objective.scenarios != "mix", f"objective.scenarios: {objective.scenarios}", "scenarios: mix"),
        (
            rule == "vllm-hash" and tokens != int(tokens),
            f"{tokens:g} tokens per GPU",
            "whole tokens (the rule hashes the index of a token in its rank's batch)",
        ),
    ):
        if wrong:
            yield at, f"{rule}, with {found}", expected
