"""Describes an instance in plain words and in figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from moe_placer.fabric import COST, kinds_in
from moe_placer.instance import Instance
from moe_placer.instance.engine_rules import ENGINES
from moe_placer.instance.model_parts import kv_shards, kv_values, part_bytes
from moe_placer.instance.schema import Gpu, SharedSlots
from moe_placer.instance.sizes import (
    GB,
    combine_wire,
    dispatch_wire,
    expert_bytes,
    expert_us,
    gpu_memory_bytes,
    memory_parts,
    token_us,
)
from moe_placer.problem.advice import Advice, advise, memory_binds
from moe_placer.problem.capacity import why_infeasible
from moe_placer.problem.demand import demand
from moe_placer.problem.shortage import slots_of_layer
from moe_placer.solve.estimate import Estimate, estimate, useful_workers
from moe_placer.solve.nic_words import floors_of, nic_facts, nic_lines
from moe_placer.traffic import Traffic
from moe_placer.traffic.statistics import log_spread, skew

__all__ = ["Description", "Skew", "describe"]

OBJECTIVES = {
    "layers": "the sum over layers of each one's busiest link, as layers run one after the other",
    "layer-time": "the sum over layers of dispatch, slowest GPU and combine",
    "aggregate": "the largest total of any link over all layers, whichever layer is worst",
}


@dataclass(frozen=True)
class Skew:
    """How uneven the demand is.

    Attributes
    ----------
    least, median, most : float
        Over MoE layers, the largest over the mean load of a layer's experts.
    log_sigma : float
        Median over layers of the standard deviation of ln load.
    sources_differ : float
        Mean over layers of half the sum over experts of the difference between a node's shares and the mean node's: 0
        where all nodes want the same experts, towards 1 where they want different ones.
    busiest_gpu_tokens : float
        Largest, over layers, number of tokens per step that one replica of the hottest expert computes.
    """

    least: float
    median: float
    most: float
    log_sigma: float
    sources_differ: float
    busiest_gpu_tokens: float


@dataclass(frozen=True)
class Description:
    """The description of an instance; sizes in the units of their names.

    Attributes
    ----------
    moe_layers, experts, top_k : int
        MoE layers, experts of each, and how many of them a token chooses.
    nodes, nvlink_domain_nodes, gpus, failed_gpus : int
        Nodes, how many of them NVLink joins, GPUs in all, and those of them that failed.
    gpu : str
        What ``cluster.gpu.name`` calls a GPU.
    slots_per_layer : int
        Slots for experts of one layer on all working GPUs.
    redundant_slots_in_all : int or None
        The budget of redundant replicas that layers share, where they do.
    expert_mb : float
        MB of one expert on a GPU.
    token_bytes, result_bytes : float
        Bytes of a token on the wire.
    memory_gb : dict
        Per GPU: ``capacity``, ``experts`` (if spread evenly), ``attention``, ``dense``, ``embeddings``,
        ``kv_cache_reserved`` and ``left``.
    kv_cache_tokens : int
        Tokens of context whose keys and values fit what is reserved and left, on the GPUs that share attention.
    replicas_per_layer : int
        Expert replicas of one layer; where layers share a budget, with equal shares of it as far as slots go.
    links : dict
        Kind of link to number of links and GB/s of each.
    engine : str or None
        Name of the inference engine that is to load the placement.
    replica_routing : str
        ``placement.replica_routing``: by which rule a token picks one of an expert's replicas.
    metric, minimise : str
        ``objective.metric``, ``objective.minimise``.
    us_per_1000_tokens : float
        Microseconds that 1,000 tokens take on a node's link, one way.
    nics : dict or None
        Which NICs nodes have and which of them receives; ``floors`` of a NIC per MoE layer, where GPUs receive.
    nic_lines : list of str
        The same in words.
    traces_missing : bool
        Whether recorded traffic is asked for, and no file named.
    skew : Skew or None
        None where no traffic was given.
    hottest_compute_us, wire_us : float or None
        Microseconds per layer: the hottest replica's matrices; a node's link, if experts sat anywhere.
    infeasible : str or None
        Why no placement can exist.
    expert_tp : int
        GPUs that share one expert.
    survives : str
        ``placement.survives``: the kind of failure after which every expert has a replica.
    second_replica_gb : float
        What a second replica of every expert takes on a GPU, if spread evenly, where ``survives`` asks for it; else 0.
    memory_binds : bool
        Whether a working GPU has memory for fewer replicas than its slots over all layers.
    advice : Advice or None
        Where no placement can exist, or memory binds: single changes that suffice, and those that do not.
    schema : str
        Name and version of the JSON that this becomes.
    """

    name: str
    moe_layers: int
    experts: int
    top_k: int
    nodes: int
    nvlink_domain_nodes: int
    gpus: int
    gpu: str
    failed_gpus: int
    slots_per_layer: int
    replicas_per_layer: int
    redundant_slots_in_all: int | None
    expert_mb: float
    token_bytes: float
    result_bytes: float
    memory_gb: dict[str, float]
    kv_cache_tokens: int
    links: dict[str, dict[str, float]]
    engine: str | None
    replica_routing: str
    metric: str
    minimise: str
    us_per_1000_tokens: float
    nics: dict[str, Any] | None
    nic_lines: list[str]
    traces_missing: bool
    skew: Skew | None
    hottest_compute_us: float | None
    wire_us: float | None
    estimate: Estimate
    infeasible: str | None
    expert_tp: int
    survives: Literal["none", "gpu", "node", "leaf"]
    second_replica_gb: float
    memory_binds: bool
    advice: Advice | None
    schema: Literal["moe-placer/description/1"] = "moe-placer/description/1"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """Return plain words, one fact a line."""
        parts = (_size_lines, _engine_lines, _network_lines, _demand_lines, _verdict_lines)
        return "\n".join(line for part in parts for line in part(self))


def describe(instance: Instance, traffic: Traffic | None) -> Description:
    """Describe an instance; without traffic, nothing is said of the demand."""
    failed = len(instance.placement.failed_gpus)
    per_token, budget = token_us(instance), instance.placement.replicas
    memory = _memory(instance)
    tokens, floors = None if traffic is None else _skew(instance, traffic), floors_of(instance, traffic)
    return Description(
        name=instance.name,
        moe_layers=len(instance.moe_layers),
        experts=instance.model.experts,
        top_k=instance.model.top_k,
        nodes=instance.cluster.nodes,
        nvlink_domain_nodes=instance.cluster.nvlink_domain_nodes or 1,
        gpus=instance.gpus,
        gpu=instance.cluster.gpu.name,
        failed_gpus=failed,
        slots_per_layer=slots_of_layer(instance),
        replicas_per_layer=max(_replicas(instance)),
        redundant_slots_in_all=budget.redundant_slots_in_all if isinstance(budget, SharedSlots) else None,
        expert_mb=expert_bytes(instance) / 1e6,
        token_bytes=dispatch_wire(instance).token_bytes,
        result_bytes=combine_wire(instance).token_bytes,
        memory_gb=memory,
        kv_cache_tokens=_kv_tokens(instance, memory["left"] + memory["kv_cache_reserved"]),
        links=kinds_in(instance),
        engine=instance.engine,
        replica_routing=instance.placement.replica_routing,
        metric=instance.objective.metric,
        minimise=instance.objective.minimise,
        us_per_1000_tokens=1e3 * per_token,
        nics=nic_facts(instance, floors),
        nic_lines=nic_lines(instance, floors),
        traces_missing=getattr(instance.traffic, "files", None) == (),
        skew=tokens,
        hottest_compute_us=None if tokens is None else expert_us(instance, tokens.busiest_gpu_tokens),
        wire_us=None if tokens is None else per_token * _tokens_leaving(instance),
        estimate=estimate(instance, useful_workers(instance), dags=True),
        infeasible=why_infeasible(instance),
        expert_tp=instance.parallelism.expert_tp,
        survives=instance.placement.survives,
        second_replica_gb=_second_replica_gb(instance),
        memory_binds=memory_binds(instance),
        advice=advise(instance),
    )


def _memory(instance: Instance) -> dict[str, float]:
    """Memory of a GPU by part, in GB, when the replicas are spread evenly."""
    parts = memory_parts(instance)
    capacity = min(gpu_memory_bytes(instance, gpu) for gpu in range(instance.gpus))
    working = max(1, instance.gpus - len(instance.placement.failed_gpus))
    replicas = sum(_replicas(instance)) * instance.parallelism.expert_tp / working
    experts = np.ceil(replicas) * expert_bytes(instance)
    return {
        "capacity": capacity / GB,
        "experts": float(experts) / GB,
        "attention": parts.attention / GB,
        "dense": parts.dense / GB,
        "embeddings": parts.embeddings / GB,
        "kv_cache_reserved": parts.kv_cache / GB,
        "left": float(capacity - experts - parts.total) / GB,
    }


def _second_replica_gb(instance: Instance) -> float:
    """GB on each GPU that a second replica of every expert takes, where it is asked for."""
    if instance.placement.survives == "none":
        return 0.0
    working = max(1, instance.gpus - len(instance.placement.failed_gpus))
    replicas = instance.model.experts * len(instance.moe_layers) * instance.parallelism.expert_tp / working
    return replicas * expert_bytes(instance) / GB


def _replicas(instance: Instance) -> list[int]:
    """Expert replicas of each layer; a layer takes of a budget that all share what it has slots for, at most."""
    most = instance.gpus * instance.placement.slots_per_gpu
    if isinstance(instance.placement.replicas, SharedSlots):
        most = max(instance.model.experts, slots_of_layer(instance))
    return [min(replicas, most) for replicas in instance.replicas_by_layer]


def _kv_tokens(instance: Instance, free_gb: float) -> int:
    """Tokens whose keys and values fit, spread over the attention_tp GPUs as far as the kind of attention lets them."""
    model = instance.model
    per_token = kv_values(model) * part_bytes(model, "kv_cache") * model.layers
    return max(0, int(free_gb * GB * kv_shards(model, instance.parallelism.attention_tp) / per_token))


def _skew(instance: Instance, traffic: Traffic) -> Skew:
    tokens = demand(instance, traffic)  # [MoE layers, nodes, experts]
    load = tokens.sum(axis=1)
    ratio = skew(load)
    share = tokens / tokens.sum(axis=2, keepdims=True)
    differ = np.abs(share - share.mean(axis=1, keepdims=True)).sum(axis=2).mean() / 2
    replicas = instance.parallelism.dp if instance.placement.replicas == "dp" else 1
    sigma = float(np.median(log_spread(load)))
    return Skew(
        float(ratio.min()),
        float(np.median(ratio)),
        float(ratio.max()),
        sigma,
        float(differ),
        float(load.max() / replicas),
    )


def _tokens_leaving(instance: Instance) -> float:
    """Tokens that leave a node per step and layer when experts sit anywhere: all but one in ``nodes`` choices.

    With dispatch once per node or GPU, every other one that any choice is on.
    """
    cluster, top_k = instance.cluster, instance.model.top_k
    near = min(cluster.nvlink_domain_nodes or 1, cluster.nodes)  # nodes that NVLink joins, itself included
    started = instance.traffic.tokens_per_gpu * cluster.gpus_per_node
    if not instance.placement.counts_tokens_once:
        return started * top_k * (1 - near / cluster.nodes)
    places = cluster.nodes if instance.placement.dispatch == "per-node" else instance.gpus
    others = places - places // cluster.nodes * near
    return started * others * (1 - (1 - 1 / places) ** top_k)


def _size_lines(d: Description) -> list[str]:
    memory = d.memory_gb
    failed = f" ({d.failed_gpus} of them failed)" if d.failed_gpus else ""
    called = "" if d.gpu == Gpu.model_fields["name"].default else f" ({d.gpu})"
    joined = f", of which NVLink joins {d.nvlink_domain_nodes} each" if d.nvlink_domain_nodes > 1 else ""
    spare = d.slots_per_layer - d.replicas_per_layer
    if spare == 0:
        room = "every slot is taken"
        if d.slots_per_layer <= d.gpus - d.failed_gpus:
            room += ", so which GPU is how busy depends on the experts alone, not on where they sit"
    else:
        room = f"{spare:,} slots stay free" if spare > 0 else f"{-spare:,} slots are missing"
    parts = ", ".join(
        f"{memory[key]:.2f} GB {words}"
        for key, words in (
            ("experts", "experts"),
            ("attention", "attention"),
            ("dense", "dense layers"),
            ("embeddings", "embeddings"),
            ("kv_cache_reserved", "reserved for the KV cache"),
        )
    )
    back = f", its result {d.result_bytes:,.0f}" if d.result_bytes != d.token_bytes else ""
    has = f"each layer has {d.replicas_per_layer:,} expert replicas"
    if d.redundant_slots_in_all is not None:
        budget = f"{d.redundant_slots_in_all:,} redundant slots over all layers"
        has = f"{budget}, at most; with equal shares, a layer has {d.replicas_per_layer:,} expert replicas"
    survival = f"Survival: every expert has a replica when any {d.survives} fails; the second replicas take "
    survives = [f"{survival}{d.second_replica_gb:.2f} GB on each GPU."] if d.survives != "none" else []
    size = f"{d.expert_mb:,.2f} MB on {'a GPU' if d.expert_tp == 1 else f'each of {d.expert_tp} GPUs'}"
    return [
        f"{d.name}: {d.moe_layers} MoE layers of {d.experts} experts, top-{d.top_k}, "
        f"on {d.gpus:,} GPUs{called}{failed} in {d.nodes} nodes{joined}.",
        f"Slots: {has} for {d.slots_per_layer:,} slots; {room}.",
        f"Memory per GPU ({memory['capacity']:g} GB): {parts}; {memory['left']:.2f} GB left.",
        *survives,
        f"KV cache: what is reserved and left holds {d.kv_cache_tokens:,} tokens on the GPUs that share attention.",
        f"Sizes: an expert takes {size}, a token {d.token_bytes:,.0f} bytes on the wire{back}.",
    ]


def _engine_lines(d: Description) -> list[str]:
    if d.engine is None:
        return []
    rules = ENGINES[d.engine]
    even = "as modelled here" if rules.follows(d.replica_routing) else "a solve takes any replica with equal chance"
    if not rules.follows(d.replica_routing) and rules.routing_rule:
        even += f" (`moe-placer evaluate --routing {rules.routing_rule}` counts this rule)"
    return [
        f"Engine: {rules.label}, {d.replicas_per_layer // d.gpus} slots on each of {d.gpus:,} GPUs in every layer.",
        f"Replicas: {rules.replica_rule}; {even}.",
    ]


def _network_lines(d: Description) -> list[str]:
    if not d.links:
        return ["Network: one node, so nothing crosses it, and every placement is as good as any other."]
    kinds = ", ".join(f"{int(kind['links'])} {name} of {kind['gb_per_s']:g} GB/s" for name, kind in d.links.items())
    return [
        f"Inter-node links, one direction each: {kinds}.",
        *d.nic_lines,
        f"Minimised: {OBJECTIVES[d.minimise]}.",
        f"Cost of a link: {COST[d.metric]}. 1,000 tokens on a node's link take {d.us_per_1000_tokens:,.1f} µs.",
    ]


def _demand_lines(d: Description) -> list[str]:
    if d.skew is None or d.hottest_compute_us is None:
        if d.traces_missing:
            return ["Demand: unknown until traces are given (--trace FILE, one per domain)."]
        return ["Demand: not worked out, since it takes more memory than is left here."]
    s, wire = d.skew, d.wire_us or 0.0
    least_most = f"{s.least:.1f} to {s.most:.1f} times the mean load (median {s.median:.1f})"
    matrices = f"{d.hottest_compute_us:,.1f} µs of matrices"
    hot = f"the hottest replica gets {s.busiest_gpu_tokens:,.0f} tokens per step, {matrices}"
    if d.hottest_compute_us > wire:
        verdict = "hot experts rather than links are the bottleneck, and only more replicas of them change that"
    else:
        verdict = "links rather than hot experts are the bottleneck, and where experts sit decides"
    return [
        f"Demand: the hottest expert of a layer has {least_most}; sigma of ln load is {s.log_sigma:.2f}.",
        f"Sources: {s.sources_differ:.0%} of a node's choices differ from the mean node's.",
        f"Balance: {hot}, against about {wire:,.1f} µs on a node's link: {verdict}.",
    ]


def _verdict_lines(d: Description) -> list[str]:
    lines = [f"Estimate of a solve: {d.estimate.to_text()}."]
    if d.infeasible:
        lines.append(f"Verdict: INFEASIBLE. {d.infeasible}")
    else:
        if d.memory_binds:
            lines.append("Memory: on some GPUs it ends before the slots do, so layers compete for it.")
        lines.append("Verdict: feasible. Slots, memory, pins and the distance between replicas leave a placement.")
    if d.advice is not None:
        lines.append(f"Advice: {d.advice}")
    return lines
