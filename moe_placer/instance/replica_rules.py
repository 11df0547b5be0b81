"""What an instance may not have under engines' rules by which a token picks one of an expert's replicas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from moe_placer.instance.schema import AnyTraffic, Cluster, Objective, Parallelism, Placement, SharedSlots

__all__ = ["check_hashed_tokens", "check_replica_rules"]

Found = tuple[tuple[str | int, ...], str, str]  # path of the field, what was found, what is expected

_AT = "placement", "replica_routing"
_COUNTED = "; `evaluate --routing` counts it"


class _Reasons(NamedTuple):
    """Why a kind of rules is not solved for: with failed GPUs, once per place, with pins, with a shared budget."""

    failed: str
    once: str
    pinned: str
    shared: str


_NEAR = _Reasons(
    "a near rule counts ranks of whole nodes",
    "what a token reaches with several experts is not solved for under this rule",
    "replicas trade places together",
    "layers are searched apart",
)
_NUMBERED = _Reasons(
    "the rule counts ranks, and these have none",
    "the experts of a token are picked by one number, and the places that a token reaches are not solved for that",
    "where a replica is decides which number it has",
    "another number of replicas changes the shares of all",
)


def check_replica_rules(
    cluster: Cluster, parallelism: Parallelism, placement: Placement, objective: Objective
) -> Iterator[Found]:
    """Require what is solved for under rules that number replicas by GPU or prefer near ones.

    A numbered replica's share must be known beforehand; under near rules an expert's shares depend on its own places.

    Parameters
    ----------
    cluster : Cluster
    parallelism : Parallelism
    placement : Placement
    objective : Objective
    """
    near, numbered = placement.prefers_near, placement.numbers_replicas
    if not near and not numbered:
        return
    why, rule, nics = _NEAR if near else _NUMBERED, placement.replica_routing, cluster.nics
    receive = nics.receive if nics else "shared"
    for wrong, found, expected in (
        (parallelism.expert_tp > 1, "parallelism.expert_tp above 1", "expert_tp: 1 (ranks hold whole experts)"),
        (placement.failed_gpus, "failed GPUs", f"a cluster without them ({why.failed})"),
        (
            placement.counts_tokens_once,
            f"placement.dispatch: {placement.dispatch}",
            f"dispatch: per-expert ({why.once}){_COUNTED}",
        ),
        (
            receive != "shared",
            f"cluster.nics.receive: {receive}",
            f"receive: shared (ranks of one node pick unlike, so that its NICs do not send alike){_COUNTED}",
        ),
        (placement.pinned, "pinned replicas", f"none ({why.pinned})"),
        (near and placement.survives != "none", f"placement.survives: {placement.survives}", "survives: none"),
        (
            near and placement.replicas_apart == "none",
            "placement.replicas_apart: none",
            "gpu or node (two replicas on one GPU would count twice)",
        ),
        (
            isinstance(placement.replicas, SharedSlots),
            "placement.replicas: redundant_slots_in_all",
            f"{{redundant_slots: n}} ({why.shared})",
        ),
        (objective.minimise != "layers", f"objective.minimise: {objective.minimise}", "minimise: layers"),
        (objective.scenarios != "mix", f"objective.scenarios: {objective.scenarios}", "scenarios: mix"),
    ):
        if wrong:
            yield _AT, f"{rule}, with {found}", expected


def check_hashed_tokens(placement: Placement, traffic: AnyTraffic) -> Iterator[Found]:
    """Require whole tokens where a rule hashes their indices."""
    rule, tokens = placement.replica_routing, traffic.tokens_per_gpu
    if rule == "vllm-hash" and tokens != int(tokens):
        expected = "whole tokens (the rule hashes the index of a token in its rank's batch)"
        yield _AT, f"{rule}, with {tokens:g} tokens per GPU", expected
