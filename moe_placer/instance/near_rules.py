"""What an instance may not have where tokens prefer near replicas, whose shares depend on each other's places."""

from __future__ import annotations

from collections.abc import Iterator

from moe_placer.instance.schema import Cluster, Objective, Parallelism, Placement, SharedSlots

__all__ = ["check_near"]

Found = tuple[tuple[str | int, ...], str, str]  # path of the field, what was found, what is expected

_COUNTED = "; `evaluate --routing` counts it"


def check_near(
    cluster: Cluster, parallelism: Parallelism, placement: Placement, objective: Objective
) -> Iterator[Found]:
    """Require what is searched under rules that prefer near replicas: whole experts, one copy each, pooled NICs.

    Parameters
    ----------
    cluster : Cluster
    parallelism : Parallelism
    placement : Placement
    objective : Objective
    """
    if not placement.prefers_near:
        return
    at, rule, nics = ("placement", "replica_routing"), placement.replica_routing, cluster.nics
    for wrong, found, expected in (
        (parallelism.expert_tp > 1, "parallelism.expert_tp above 1", "expert_tp: 1 (ranks hold whole experts)"),
        (placement.failed_gpus, "failed GPUs", "a cluster without them (a near rule counts ranks of whole nodes)"),
        (
            placement.counts_tokens_once,
            f"placement.dispatch: {placement.dispatch}",
            "dispatch: per-expert (what a token reaches with several experts is not solved for under this rule)"
            + _COUNTED,
        ),
        (
            nics is not None and nics.receive != "shared",
            f"cluster.nics.receive: {nics.receive if nics else ''}",
            "receive: shared (ranks of one node pick unlike, so that its NICs do not send alike)" + _COUNTED,
        ),
        (placement.pinned, "pinned replicas", "none (replicas trade places together)"),
        (placement.survives != "none", f"placement.survives: {placement.survives}", "survives: none"),
        (
            placement.replicas_apart == "none",
            "placement.replicas_apart: none",
            "gpu or node (two replicas on one GPU would count twice)",
        ),
        (
            isinstance(placement.replicas, SharedSlots),
            "placement.replicas: redundant_slots_in_all",
            "{redundant_slots: n} (layers are searched apart)",
        ),
        (objective.minimise != "layers", f"objective.minimise: {objective.minimise}", "minimise: layers"),
        (objective.scenarios != "mix", f"objective.scenarios: {objective.scenarios}", "scenarios: mix"),
    ):
        if wrong:
            yield at, f"{rule}, with {found}", expected
