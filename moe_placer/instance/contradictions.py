"""Fields that are each allowed, but not together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moe_placer.errors import Mistake
from moe_placer.instance.engine_rules import ENGINES, slots_mistake
from moe_placer.instance.pin_rules import check_pins
from moe_placer.instance.replica_rules import check_hashed_tokens, check_replica_rules
from moe_placer.instance.schema import (
    MAX_GPUS,
    AnyTraffic,
    Cluster,
    Dragonfly,
    FatTree,
    Gqa,
    LoadTraffic,
    Model,
    Objective,
    Parallelism,
    Placement,
    RailPods,
    Schedule,
    SharedSlots,
    SyntheticTraffic,
    ThreeLevelTree,
)
from moe_placer.instance.yaml_reader import dotted

__all__ = ["find_contradictions"]

Found = tuple[tuple[str | int, ...], str, str]  # path of the field, what was found, what is expected


def find_contradictions(sections: Mapping[str, Any]) -> list[Mistake]:
    """List every contradiction among the sections that are there (a section that is itself wrong may be missing)."""
    found: list[Mistake] = []
    for names, check in _CHECKS:
        if all(sections.get(name) is not None for name in names):
            found += (
                Mistake(what, expected, dotted(path)) for path, what, expected in check(*map(sections.get, names))
            )
    return found


def _layers(model: Model) -> Iterator[Found]:
    seen: set[int] = set()
    for index, layer in enumerate(model.dense_layers):
        if layer >= model.layers:
            yield ("model", "dense_layers", index), str(layer), f"an index below model.layers ({model.layers})"
        elif layer in seen:
            yield ("model", "dense_layers", index), f"{layer} a second time", "each layer once"
        seen.add(layer)
    if len(seen) >= model.layers:
        yield ("model", "dense_layers"), "only dense layers", "at least one MoE layer"


def _top_k(model: Model) -> Iterator[Found]:
    if model.top_k > model.experts:
        yield ("model", "top_k"), str(model.top_k), f"at most model.experts ({model.experts})"


def _expert_groups(model: Model) -> Iterator[Found]:
    """Require groups of equal size, and enough experts in those that a token chooses."""
    groups, top = model.expert_groups, model.top_groups
    if groups is None or top is None:
        if (groups is None) != (top is None):
            absent = "expert_groups" if groups is None else "top_groups"
            yield ("model", absent), "nothing", "both of expert_groups and top_groups, or neither"
        return
    if model.experts % groups:
        yield ("model", "expert_groups"), str(groups), f"a divisor of model.experts ({model.experts})"
    elif top > groups:
        yield ("model", "top_groups"), str(top), f"at most model.expert_groups ({groups})"
    elif top * (model.experts // groups) < model.top_k:
        found = f"{top} groups of {model.experts // groups} experts"
        yield ("model", "top_groups"), found, f"at least model.top_k ({model.top_k}) experts in them"


def _attention(model: Model) -> Iterator[Found]:
    kind = model.attention
    if isinstance(kind, Gqa) and model.attention_heads % kind.kv_heads:
        expected = f"a divisor of model.attention_heads ({model.attention_heads})"
        yield ("model", "attention", "kv_heads"), str(kind.kv_heads), expected


def _shares(schedule: Schedule) -> Iterator[Found]:
    shares = schedule.planned_shares
    if shares is None:
        return
    total = shares.computation + shares.communication + shares.synchronization + shares.overhead
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        yield ("schedule", "planned_shares"), f"shares that sum to {total:.6g}", "shares that sum to 1"


def _gpus(cluster: Cluster) -> Iterator[Found]:
    gpus = cluster.nodes * cluster.gpus_per_node
    if gpus > MAX_GPUS:
        yield ("cluster", "nodes"), f"{gpus:,} GPUs in all", f"at most {MAX_GPUS:,}"
    for gpu in cluster.gpu_memory_gb:
        if gpu >= gpus:
            yield ("cluster", "gpu_memory_gb", gpu), f"GPU {gpu}", f"a global GPU id below {gpus}"


def _fabric(cluster: Cluster) -> Iterator[Found]:
    fabric = cluster.fabric
    if isinstance(fabric, Dragonfly) and fabric.global_links > fabric.routers_per_group:
        expected = (
            f"at most cluster.fabric.routers_per_group ({fabric.routers_per_group}): each is at a router of its own"
        )
        yield ("cluster", "fabric", "global_links"), str(fabric.global_links), expected


def _rails(cluster: Cluster) -> Iterator[Found]:
    """Require as many rails as NICs, and copies that stay on the rail that they leave by."""
    fabric, nics = cluster.fabric, cluster.nics
    if not isinstance(fabric, RailPods) or nics is None:
        return
    if fabric.rails not in {None, nics.per_node}:
        yield ("cluster", "fabric", "rails"), str(fabric.rails), f"cluster.nics.per_node ({nics.per_node}), or nothing"
    if nics.receive == "destination-gpu":
        expected = (
            "source-rail or shared: with rail-pods a copy for the NIC of another rail would leave its leaf even inside "
            "a pod, and which copies do depends on single GPUs; or cluster.fabric of another kind"
        )
        yield ("cluster", "nics", "receive"), "destination-gpu", expected


def _nics(cluster: Cluster) -> Iterator[Found]:
    nics, gpus = cluster.nics, cluster.gpus_per_node
    if nics is None:
        return
    together, node = nics.per_node * nics.gb_per_s, cluster.fabric.node_gb_per_s
    if not math.isclose(together, node, rel_tol=1e-6):
        found = f"{nics.per_node} NICs of {nics.gb_per_s:g} GB/s, {together:g} GB/s together"
        expected = f"as much as cluster.fabric.node_gb_per_s ({node:g} GB/s), which is a node's NICs together"
        yield ("cluster", "nics", "gb_per_s"), found, expected
    if nics.per_node % gpus and gpus % nics.per_node:
        expected = f"a divisor or a multiple of cluster.gpus_per_node ({gpus}), so that GPUs share them evenly"
        yield ("cluster", "nics", "per_node"), str(nics.per_node), expected


def _receiving_gpus(cluster: Cluster, parallelism: Parallelism, placement: Placement) -> Iterator[Found]:
    """Require one GPU at which a copy arrives, and that nodes do not keep replicas of one expert apart."""
    if not cluster.receives_by_gpu:
        return
    path, found = ("cluster", "nics", "receive"), "destination-gpu"
    if placement.dispatch == "per-node":
        expected = (
            "source-rail or shared: one copy for all experts of a node arrives on the source's rail, and is forwarded"
        )
        yield path, f"{found}, with placement.dispatch: per-node", expected
    if parallelism.expert_tp > 1:
        expected = "source-rail or shared: an expert sharded over GPUs has no GPU at which a copy arrives"
        yield path, f"{found}, with parallelism.expert_tp above 1", expected
    if placement.replicas_apart == "node":
        expected = "gpu (replicas apart by node cannot be solved with cluster.nics.receive: destination-gpu)"
        yield ("placement", "replicas_apart"), "node", expected


def _nvlink_domain(cluster: Cluster, placement: Placement) -> Iterator[Found]:
    """Require copies that are counted one by one, and NICs that a node's copies share evenly."""
    if (cluster.nvlink_domain_nodes or 1) == 1:
        return
    path, found = ("cluster", "nvlink_domain_nodes"), f"{cluster.nvlink_domain_nodes}"
    if placement.dispatch == "per-node":
        expected = (
            "1, or placement.dispatch: per-expert or per-gpu (kernels that send a token once per NVLink domain have "
            "the domain as their node: write its GPUs as cluster.gpus_per_node)"
        )
        yield path, f"{found}, with placement.dispatch: per-node", expected
    if cluster.receives_by_gpu:
        expected = "1, or cluster.nics.receive: source-rail or shared"
        yield path, f"{found}, with cluster.nics.receive: destination-gpu", expected


def _groups(cluster: Cluster, parallelism: Parallelism, placement: Placement) -> Iterator[Found]:
    group = placement.replica_routing == "group"
    if group and cluster.nodes % parallelism.dp:
        expected = f"a divisor of cluster.nodes ({cluster.nodes}) for replica_routing: group"
        yield ("parallelism", "dp"), str(parallelism.dp), expected
    if group and placement.replicas != "dp":
        expected = "even (group routing needs one replica per DP group: replicas: dp)"
        yield ("placement", "replica_routing"), "group with a budget of redundant slots", expected


def _dispatch(parallelism: Parallelism, placement: Placement, traffic: AnyTraffic) -> Iterator[Found]:
    """Dispatch once per place asks for which experts fire together, and once per GPU for places that are GPUs."""
    once = placement.counts_tokens_once
    if once and isinstance(traffic, LoadTraffic):
        expected = (
            "per-expert, or kind: trace or synthetic: how many copies of a token are saved depends on which experts it "
            "chooses together, and loads do not say"
        )
        yield ("placement", "dispatch"), f"{placement.dispatch}, with traffic of kind: load", expected
    if placement.dispatch == "per-gpu" and parallelism.expert_tp > 1:
        expected = "per-expert or per-node (an expert sharded over GPUs needs its tokens on all of them)"
        yield ("placement", "dispatch"), "per-gpu, with parallelism.expert_tp above 1", expected
    if placement.dispatch == "per-gpu" and once and placement.replicas_apart == "node":
        expected = "gpu (replicas apart by node cannot be solved with dispatch: per-gpu and several slots per GPU)"
        yield ("placement", "replicas_apart"), "node", expected


def _survives(model: Model, cluster: Cluster, parallelism: Parallelism, placement: Placement) -> Iterator[Found]:
    """Require a second replica of every expert, and parts that can fail one without the other."""
    kind, fabric = placement.survives, cluster.fabric
    if kind == "none":
        return
    at = ("placement", "survives")
    yield from (
        (at, f"{kind}, with {found}", expected) for found, expected in _one_replica(model, parallelism, placement)
    )
    if kind == "leaf" and not (isinstance(fabric, FatTree | ThreeLevelTree) and fabric.nodes_per_leaf < cluster.nodes):
        expected = "node or gpu, or cluster.fabric of kind fat-tree or fat-tree-3"
        yield at, f"{kind}, on a fabric without two leaves", expected
    if kind == "node" and cluster.nodes < 2:
        yield at, f"{kind}, with one node", "gpu"
    if kind == "gpu" and placement.replicas_apart == "none":
        yield at, f"{kind}, with placement.replicas_apart: none", "replicas_apart: gpu or node"


def _scenarios(cluster: Cluster, placement: Placement, traffic: AnyTraffic, objective: Objective) -> Iterator[Found]:
    """Require costs that are linear in the placement, and recordings that every node can be like."""
    yield from _windows(traffic, objective)
    if objective.scenarios == "mix":
        if objective.take != "worst":
            yield ("objective", "take"), f"{objective.take}, with scenarios: mix", "scenarios: recordings beside it"
        return
    if objective.sigmas and objective.take == "worst":
        yield ("objective", "sigmas"), f"{objective.sigmas:g}, with take: worst", "0, or take: mean"
    if objective.take == "mean" and isinstance(placement.replicas, SharedSlots):
        expected = "worst, or a number of replicas that layers do not share"
        yield ("objective", "take"), "mean, with placement.replicas: redundant_slots_in_all", expected
    at, of = ("objective", "scenarios"), objective.scenarios
    if objective.minimise != "layers":
        yield at, f"{of}, with objective.minimise: {objective.minimise}", "mix, or minimise: layers"
    if placement.counts_tokens_once:
        yield at, f"{of}, with placement.dispatch: {placement.dispatch}", "mix, or dispatch: per-expert"
    if cluster.receives_by_gpu:
        yield at, f"{of}, with cluster.nics.receive: destination-gpu", "mix, or receive: source-rail or shared"
    if getattr(traffic, "sources", "mix") == "recorded":
        yield at, f"{of}, with traffic.sources: recorded", "mix, or sources: mix"


def _windows(traffic: AnyTraffic, objective: Objective) -> Iterator[Found]:
    """Require windows where these are scenarios, and there only, of tokens in an order."""
    given = objective.windows is not None
    if given != (objective.scenarios == "windows"):
        found = f"{objective.windows} with scenarios: {objective.scenarios}" if given else "none"
        yield ("objective", "windows"), found, "a number of windows beside scenarios: windows, and only there"
    if given and traffic.kind == "load":
        yield ("objective", "windows"), "windows, with traffic.kind: load", "kind: trace, whose tokens have an order"


def _one_replica(model: Model, parallelism: Parallelism, placement: Placement) -> Iterator[tuple[str, str]]:
    """Say where experts cannot all have a second replica: what was found, what is expected."""
    replicas = placement.replicas
    if isinstance(replicas, str):
        if parallelism.dp < 2:
            yield "one replica of every expert", "parallelism.dp of 2 or more, or redundant slots"
        return
    name, there, layers = "redundant_slots", 0, 1
    if isinstance(replicas, SharedSlots):
        name, there = "redundant_slots_in_all", replicas.redundant_slots_in_all
        layers = model.layers - len(set(model.dense_layers))
    else:
        there = replicas.redundant_slots
    if there < model.experts * layers:
        expected = f"at least {model.experts * layers:,} in placement.replicas.{name}: a second replica of every expert"
        yield f"{there:,} redundant slots", expected


def _layer_time(parallelism: Parallelism, placement: Placement, objective: Objective) -> Iterator[Found]:
    """Have links count as time, and every expert on one GPU, where times of layers are minimised."""
    if objective.minimise != "layer-time":
        return
    at = ("objective", "minimise")
    if objective.metric != "time":
        yield at, "layer-time, with objective.metric: tokens", "metric: time (plain tokens are no time)"
    if placement.counts_tokens_once:
        yield at, f"layer-time, with placement.dispatch: {placement.dispatch}", "layers, or dispatch: per-expert"
    if parallelism.expert_tp > 1:
        yield at, "layer-time, with parallelism.expert_tp above 1", "layers, or expert_tp: 1 (shards do not trade GPUs)"


def _expert_tp(cluster: Cluster, parallelism: Parallelism) -> Iterator[Found]:
    if parallelism.expert_tp > cluster.gpus_per_node:
        expected = f"at most cluster.gpus_per_node ({cluster.gpus_per_node}): shards stay in one node"
        yield ("parallelism", "expert_tp"), str(parallelism.expert_tp), expected


def _failed(cluster: Cluster, placement: Placement) -> Iterator[Found]:
    gpus = cluster.nodes * cluster.gpus_per_node
    seen: set[int] = set()
    for index, gpu in enumerate(placement.failed_gpus):
        if gpu >= gpus:
            yield ("placement", "failed_gpus", index), str(gpu), f"a global GPU id below {gpus}"
        elif gpu in seen:
            yield ("placement", "failed_gpus", index), f"{gpu} a second time", "each GPU once"
        seen.add(gpu)
    for index, gpu in enumerate(placement.drained_gpus):
        if gpu not in seen:
            yield ("placement", "drained_gpus", index), str(gpu), "a GPU that placement.failed_gpus lists, too"


def _mix(cluster: Cluster, traffic: Any) -> Iterator[Found]:
    if isinstance(traffic, SyntheticTraffic):
        return
    if traffic.sources == "recorded" and traffic.mix is not None:
        yield ("traffic", "mix"), "a mix with sources: recorded", "one or the other"
    elif traffic.sources == "recorded" and len(traffic.files) > 1:
        yield ("traffic", "files"), f"{len(traffic.files)} files", "one file for sources: recorded"
    if traffic.mix is None:
        return
    if len(traffic.mix) != cluster.nodes:
        yield ("traffic", "mix"), f"{len(traffic.mix)} rows", f"one per node ({cluster.nodes})"
    columns = len(traffic.files) or (len(traffic.mix[0]) if traffic.mix else 0)
    for node, row in enumerate(traffic.mix):
        if len(row) != columns:
            yield ("traffic", "mix", node), f"{len(row)} shares", f"one per file ({columns})"
        elif not math.isclose(sum(row), 1.0, abs_tol=1e-6):
            yield ("traffic", "mix", node), f"shares that sum to {sum(row):.6g}", "a sum of 1"


def _engine(
    model: Model, cluster: Cluster, parallelism: Parallelism, placement: Placement, engine: str
) -> Iterator[Found]:
    """Check what every engine demands: whole nodes take part, all GPUs with as many slots, and all slots are filled."""
    rules, per_node, replicas = ENGINES[engine], cluster.gpus_per_node, placement.replicas
    title = rules.label
    down = Counter(gpu // per_node for gpu in placement.failed_gpus)
    partly = [node for node in sorted(down) if down[node] < per_node]
    gpus = (cluster.nodes - len(down)) * per_node
    if parallelism.expert_tp > 1:
        yield ("parallelism", "expert_tp"), str(parallelism.expert_tp), f"1: {title} has whole experts on its ranks"
    for node in partly:
        expected = f"all GPUs of a node, or none: {title} numbers ranks node by node, equally many on each"
        yield ("placement", "failed_gpus"), f"{down[node]} of the {per_node} GPUs of node {node}", expected
    if partly or gpus <= 0:
        return
    if isinstance(replicas, SharedSlots):
        expected = f"{{redundant_slots: n}}: {title} has as many slots in every layer"
        yield ("placement", "replicas"), "a budget of slots that layers share", expected
        return
    extra = model.experts * (parallelism.dp - 1) if isinstance(replicas, str) else replicas.redundant_slots
    if extra and placement.replica_routing == "group":
        expected = f"even: in {title} a token may take any replica ({rules.replica_rule})"
        yield ("placement", "replica_routing"), "group with several replicas of experts", expected
    slots = model.experts + extra
    wrong = slots_mistake(rules, model.experts, slots, gpus)
    if wrong is not None:
        path = ("parallelism", "dp") if isinstance(replicas, str) else ("placement", "replicas", "redundant_slots")
        yield path, *wrong
    elif placement.slots_per_gpu != slots // gpus:
        expected = f"{slots // gpus}: {title} fills {slots} slots on {gpus} GPUs evenly"
        yield ("placement", "slots_per_gpu"), str(placement.slots_per_gpu), expected


_CHECKS: tuple[tuple[tuple[str, ...], Callable[..., Iterator[Found]]], ...] = (
    (("model",), _layers),
    (("model",), _top_k),
    (("model",), _attention),
    (("model",), _expert_groups),
    (("cluster",), _gpus),
    (("cluster",), _fabric),
    (("cluster",), _rails),
    (("cluster",), _nics),
    (("cluster", "parallelism", "placement"), _receiving_gpus),
    (("cluster", "placement"), _nvlink_domain),
    (("cluster", "parallelism", "placement"), _groups),
    (("cluster", "parallelism"), _expert_tp),
    (("parallelism", "placement", "objective"), _layer_time),
    (("parallelism", "placement", "traffic"), _dispatch),
    (("cluster", "parallelism", "placement", "objective"), check_replica_rules),
    (("placement", "traffic"), check_hashed_tokens),
    (("model", "cluster", "parallelism", "placement"), _survives),
    (("cluster", "placement"), _failed),
    (("model", "cluster", "parallelism", "placement"), check_pins),
    (("cluster", "traffic"), _mix),
    (("cluster", "placement", "traffic", "objective"), _scenarios),
    (("schedule",), _shares),
    (("model", "cluster", "parallelism", "placement", "engine"), _engine),
)
