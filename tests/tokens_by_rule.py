"""Every token of every rank by itself, in plain Python: what rules of replica choice are held to."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import product
from math import prod

import networkx as nx
import numpy as np

from moe_placer.fabric.graph import build_fabric, node_name
from moe_placer.instance import Instance
from moe_placer.traffic import Traffic


def scattered(instance: Instance, seed: int) -> list[list[list[int]]]:
    """Replicas anywhere: every expert one, three experts (or one three times) one more, no GPU twice."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in instance.moe_layers:
        gpus = rng.permutation(instance.gpus).tolist()
        row = [[gpus.pop()] for _ in range(instance.model.experts)]
        for gpu in gpus:
            row[int(rng.integers(len(row)))].append(gpu)
        rows.append([rng.permutation(own).tolist() for own in row])
    return rows


class Tokens:
    """Every token of every rank, each with everything that could be drawn for it."""

    def __init__(self, instance: Instance, gpu: list[list[list[int]]], traffic: Traffic, rule: str) -> None:
        self.instance, self.gpu, self.traffic, self.rule = instance, gpu, traffic, rule
        graph = build_fabric(instance)
        self.hops = {
            s: nx.single_source_shortest_path_length(graph, node_name(s)) for s in range(instance.cluster.nodes)
        }
        self.ranks = {rank: self._static(rank) for rank in range(instance.gpus)} if rule == "sglang-static" else {}

    def picks(self, row: int, expert: int, rank: int, index: int) -> list[tuple[float, int]]:
        """Chance and GPU of each replica that the index-th token of a rank may go to."""
        instance, own = self.instance, sorted(self.gpu[row][expert])
        size, tp = instance.cluster.gpus_per_node, instance.parallelism.attention_tp
        if self.rule == "trtllm-round-robin":
            return [(1 / len(own), gpu) for gpu in own]
        if self.rule == "vllm-hash":
            return [(1.0, own[((index * 2654435769) & 0xFFFFFFFF) % len(own)])]
        if self.rule == "vllm-ascend":
            number = rank if tp == 1 else rank % tp + rank // tp + expert
            return [(1.0, own[number % len(own)])]
        if self.rule == "nearest":
            way = {gpu: self.hops[rank // size][node_name(gpu // size)] for gpu in own}
            best = [gpu for gpu in own if way[gpu] == min(way.values())]
            return [(1 / len(best), gpu) for gpu in best]
        if self.rule == "sglang-static":
            return [(1.0, self.ranks[rank][instance.moe_layers[row], expert])]
        collapsed = self._collapsed(own, rank)
        return [(1 / len(collapsed), gpu) for gpu in collapsed]

    def _collapsed(self, own: list[int], rank: int) -> list[int]:
        size = self.instance.cluster.gpus_per_node
        if len(own) == 1 or rank in own:
            return [own[0] if len(own) == 1 else rank]
        node = [gpu for gpu in own if gpu // size == rank // size]
        return node[:1] if 0 < len(node) < len(own) else own

    def _static(self, rank: int) -> dict[tuple[int, int], int]:
        """The map of one rank, as that rank's process works it out: for all ranks, from its own list of replicas."""
        instance, draw, found = self.instance, random.Random(42), {}
        for layer in range(instance.model.layers):
            for expert in range(instance.model.experts):
                if layer in instance.moe_layers:
                    own = sorted(self.gpu[instance.moe_layers.index(layer)][expert])
                else:
                    slots = sum(map(len, self.gpu[0]))
                    own = [p // (slots // instance.gpus) for p in range(slots) if p % instance.model.experts == expert]
                own = self._collapsed(own, rank)
                open_ = [other for other in range(instance.gpus) if len(self._collapsed(own, other)) > 1]
                whole, rest = divmod(len(open_), len(own))
                if open_:
                    cards = own * whole + draw.sample(own, k=rest)
                    draw.shuffle(cards)
                taken = dict(zip(open_, cards, strict=True)) if open_ else {}
                found[layer, expert] = taken.get(rank) or (own[0] if len(own) == 1 else taken[rank])
        return found

    def outcomes(self, row: int) -> Iterator[tuple[float, int, list[int]]]:
        """Tokens per step, rank, and the GPUs of what is chosen: every case that there is."""
        instance, batch = self.instance, int(self.instance.traffic.tokens_per_gpu)
        indices = range(batch) if self.rule == "vllm-hash" else range(1)
        for rank, index in product(range(instance.gpus), indices):
            share = self.traffic.mix[rank // instance.cluster.gpus_per_node]
            for file, recording in enumerate(self.traffic.recordings):
                assert recording.topk is not None
                sets = Counter(tuple(sorted(token)) for token in recording.topk[:, row].tolist())
                for chosen, times in sets.items():
                    weight = batch / len(indices) * share[file] * times / len(recording.topk)
                    for drawn in product(*(self.picks(row, e, rank, index) for e in chosen)):
                        yield weight * prod(chance for chance, _ in drawn), rank, [gpu for _, gpu in drawn]

    def counted(self, row: int, unit: str) -> tuple[np.ndarray, np.ndarray]:
        """Copies between nodes, and tokens on GPUs, one by one."""
        size, nodes = self.instance.cluster.gpus_per_node, self.instance.cluster.nodes
        between, tokens = np.zeros((nodes, nodes)), np.zeros(self.instance.gpus)
        for weight, rank, gpus in self.outcomes(row):
            for gpu in gpus:
                tokens[gpu] += weight
            places = {"per-expert": [g // size for g in gpus], "per-gpu": [g // size for g in set(gpus)]}
            for node in places.get(unit, {g // size for g in gpus}):
                if node != rank // size:
                    between[rank // size, node] += weight
        return between, tokens
