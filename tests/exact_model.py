"""Loads and memory from the definitions of the placement model alone, in fractions.

Nothing here is shared with moe_placer but the instance and the traffic as given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import product
from typing import Any

from moe_placer.instance import Instance
from moe_placer.traffic.recording import Recording, Traffic

Route = dict[str, Fraction]  # link to its share of the traffic
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "fp4": Fraction(1, 2)}


@dataclass(frozen=True)
class Way:
    """One way to place a layer: GPUs of every replica of every expert."""

    gpus: tuple[tuple[tuple[int, ...], ...], ...]
    nodes: tuple[int, ...]
    used: tuple[int, ...]  # shards on each GPU

    @cached_property
    def replicas(self) -> tuple[int, ...]:
        return tuple(len(replicas) for replicas in self.gpus)


def sent_once(instance: Instance, traffic: Traffic, row: int, way: Way, number: Any) -> dict[tuple[int, int], Any]:
    """Copies of tokens from node to node where a token is sent once to every place that holds a chosen expert.

    ``number`` is what counts: Fraction, or float for candidates.
    """
    nodes, dp = instance.cluster.nodes, instance.parallelism.dp
    even = instance.placement.replica_routing == "even"
    per_node = instance.cluster.gpus_per_node if instance.placement.dispatch == "per-gpu" else 1
    size = instance.cluster.gpus_per_node // per_node  # GPUs of a place
    starts = number(instance.traffic.tokens_per_gpu) * instance.cluster.gpus_per_node
    views = [None if even else source * dp // nodes for source in range(nodes)]
    reached: dict[tuple[int | None, int], list[Any]] = {}  # of every recording, whichever node tokens start on
    for view, place in product(dict.fromkeys(views), range(nodes * per_node)):
        chance = [_chance(replicas, view, place, size, number) for replicas in way.gpus]
        reached[view, place] = [_reached(recording, row, chance, number) for recording in traffic.recordings]
    sent = {}
    for source, mix in enumerate(traffic.mix.tolist()):
        for target in range(nodes):
            places = range(target * per_node, (target + 1) * per_node)
            sent[source, target] = sum(
                (
                    starts * number(share) * of
                    for place in places
                    for share, of in zip(mix, reached[views[source], place], strict=True)
                ),
                number(0),
            )
    return sent


def _chance(replicas: Sequence[tuple[int, ...]], view: int | None, place: int, size: int, number: Any) -> Any:
    """Chance that a token goes to a place for an expert that it chooses: by its own replica, or by one it draws."""
    here = [gpus[0] // size == place for gpus in replicas]
    return number(sum(here)) / len(replicas) if view is None else number(int(here[view]))


def _reached(recording: Recording, row: int, chance: Sequence[Any], number: Any) -> Any:
    """Share of a recording's tokens that go to a place: of every token, one minus that all its choices miss it."""
    assert recording.topk is not None
    total = number(0)
    for token in recording.topk[:, row].tolist():
        missed = number(1)
        for expert in token:
            missed *= 1 - chance[expert]
        total += 1 - missed
    return total / len(recording.topk)


def items_of(replicas: Sequence[int]) -> list[tuple[int, int]]:
    return [(expert, replica) for expert, count in enumerate(replicas) for replica in range(count)]


def fabric_of(instance: Instance) -> tuple[dict[tuple[int, int], Route], dict[str, Fraction]]:
    """Return routes between nodes, and what a token costs on every link."""
    fabric, nodes = instance.cluster.fabric, range(instance.cluster.nodes)
    own, speed = Fraction(fabric.node_gb_per_s), {}
    routes: dict[tuple[int, int], Route] = {}
    if fabric.kind == "full-mesh":
        for s, d in product(nodes, nodes):
            routes[s, d] = {} if s == d else {f"node{s}->node{d}": Fraction(1)}
            speed |= dict.fromkeys(routes[s, d], own)
    else:
        assert fabric.kind == "fat-tree"
        up = fabric.nodes_per_leaf * own / Fraction(fabric.oversubscription) / fabric.spines
        for s, d in product(nodes, nodes):
            first, last = s // fabric.nodes_per_leaf, d // fabric.nodes_per_leaf
            route = {f"node{s}->leaf{first}": Fraction(1), f"leaf{last}->node{d}": Fraction(1)} if s != d else {}
            speed |= dict.fromkeys(route, own)
            if first != last:
                over = [f"leaf{first}->spine{k}" for k in range(fabric.spines)]
                over += [f"spine{k}->leaf{last}" for k in range(fabric.spines)]
                route |= dict.fromkeys(over, Fraction(1, fabric.spines))
                speed |= dict.fromkeys(over, up)
            routes[s, d] = route
    for s, d in product(nodes, nodes):
        if instance.cluster.joined(s, d):  # by NVLink
            routes[s, d] = {}
    by_time = instance.objective.metric == "time"
    return routes, {link: own / bandwidth if by_time else Fraction(1) for link, bandwidth in speed.items()}


def demand_of(instance: Instance, traffic: Traffic) -> list[list[list[Fraction]]]:
    """``T[l][s][e]`` of the placement model."""
    starts = Fraction(instance.traffic.tokens_per_gpu) * instance.cluster.gpus_per_node
    chosen = [
        [
            [Fraction(float(n)) / Fraction(float(recording.tokens[row])) for n in recording.load[row]]
            for recording in traffic.recordings
        ]
        for row in range(len(instance.moe_layers))
    ]
    mix = [[Fraction(float(share)) for share in row] for row in traffic.mix]
    return [
        [
            [
                starts * sum((share * of[expert] for share, of in zip(mix[s], chosen[row], strict=True)), Fraction(0))
                for expert in range(instance.model.experts)
            ]
            for s in range(instance.cluster.nodes)
        ]
        for row in range(len(instance.moe_layers))
    ]


def _chosen(recording: Recording, row: int, experts: int) -> list[Fraction]:
    """How often a token chooses each expert: counted where every token's choice is there."""
    if recording.topk is not None:
        return [
            Fraction(int((recording.topk[:, row] == expert).sum()), len(recording.topk)) for expert in range(experts)
        ]
    return [Fraction(float(load)) / Fraction(float(recording.tokens[row])) for load in recording.load[row]]


def resident_and_expert(instance: Instance) -> tuple[Fraction, Fraction]:
    """Bytes of what is resident on a GPU, and of an expert's shard."""
    model, size = instance.model, Fraction(BYTES[instance.model.dtype])
    width = model.dense_hidden_size or model.top_k * model.expert_hidden_size
    resident = 4 * model.layers * model.hidden_size * model.attention_heads * model.head_dim
    resident += len(model.dense_layers) * model.expert_matrices * model.hidden_size * width
    resident += 2 * model.vocab_size * model.hidden_size
    expert = model.expert_matrices * model.hidden_size * model.expert_hidden_size * size
    cache = Fraction(instance.placement.kv_cache_gb) * 10**9
    return resident * size / instance.parallelism.attention_tp + cache, expert / instance.parallelism.expert_tp


def memory_slots_of(instance: Instance, gpu: int) -> int:
    """Shards that a GPU can take over all layers."""
    if gpu in instance.placement.failed_gpus:
        return 0
    resident, expert = resident_and_expert(instance)
    memory = Fraction(instance.cluster.gpu_memory_gb.get(gpu, instance.cluster.gpu.memory_gb)) * 10**9
    return max(0, int((memory - resident) // expert))
