"""Links, routes, demand and loads, each straight from its definition in the placement model."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from moe_placer.errors import Mistake
from moe_placer.fabric.graph import build_fabric, link_name, node_name
from moe_placer.instance import Instance
from moe_placer.instance.schema import Dragonfly
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.verifier.dragonfly import dragonfly_bandwidths, dragonfly_routes
from moe_placer.verifier.network import Network, link_speeds
from moe_placer.verifier.nics import with_nics

__all__ = ["Network", "choices_per_token", "find_traffic_mistakes", "read_network", "replica_demand"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def read_network(instance: Instance) -> Network:
    """Find all shortest routes between nodes, evenly split over those of equal length, and the NICs at their ends."""
    return with_nics(instance, _read_fabric(instance))


def _read_fabric(instance: Instance) -> Network:
    if isinstance(instance.cluster.fabric, Dragonfly):
        return _read_dragonfly(instance)
    graph, nodes = build_fabric(instance), instance.cluster.nodes
    vertices = [node_name(node) for node in range(nodes)]
    vertices += [vertex for vertex in graph if graph.nodes[vertex]["role"] != "node"]
    place = {vertex: index for index, vertex in enumerate(vertices)}
    adjacency = np.zeros((len(vertices), len(vertices)))
    for tail, head in graph.edges:
        adjacency[place[tail], place[head]] = 1
    hops, paths = _shortest_paths(adjacency)

    links: list[str] = []
    bandwidths: list[float] = []
    entries: list[tuple[Ints, Ints, Ints, Floats]] = []
    for index, (tail, head) in enumerate(graph.edges):
        links.append(link_name(tail, head))
        bandwidths.append(graph.edges[tail, head]["bandwidth"])
        u, v = place[tail], place[head]
        # Which nodes have the link on a shortest route at all: keeps the pairs to look at few.
        sources = np.flatnonzero(hops[:nodes, u] + 1 == hops[:nodes, v])
        targets = np.flatnonzero(hops[u, :nodes] == 1 + hops[v, :nodes])
        s, d = (grid.ravel() for grid in np.meshgrid(sources, targets, indexing="ij"))
        crosses = np.isfinite(hops[s, d]) & (hops[s, u] + 1 + hops[v, d] == hops[s, d])
        s, d = s[crosses], d[crosses]
        entries.append((np.full(len(s), index), s, d, paths[s, u] * paths[v, d] / paths[s, d]))

    empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    link, source, target, share = (np.concatenate(column) for column in zip(empty, *entries, strict=True))
    return Network(tuple(links), *link_speeds(instance, bandwidths), link, source, target, share, np.arange(nodes))


def _read_dragonfly(instance: Instance) -> Network:
    """Share the traffic of every two nodes evenly over their routes."""
    bandwidths = dragonfly_bandwidths(instance)
    place = {name: index for index, name in enumerate(bandwidths)}
    entries = []
    for source, target, routes in dragonfly_routes(instance):
        times = Counter(link for route in routes for link in route)  # some links are on all routes
        entries += [(place[link], source, target, count / len(routes)) for link, count in times.items()]
    column = np.array(entries, dtype=np.float64).reshape(-1, 4).T
    link, sources, targets = column[:3].astype(np.int64)
    speeds, home = link_speeds(instance, bandwidths.values()), np.arange(instance.cluster.nodes)
    return Network(tuple(bandwidths), *speeds, link, sources, targets, column[3], home)


def _shortest_paths(adjacency: Floats) -> tuple[Floats, Floats]:
    """Hops of, and number of, the shortest paths between all vertices.

    The h-th power of the adjacency matrix counts walks of h hops; where it is the first power that is not zero, these
    walks are the shortest paths.
    """
    hops = np.where(np.eye(len(adjacency)) > 0, 0.0, np.inf)
    paths = np.eye(len(adjacency))
    walks, length = adjacency, 1
    while True:
        new = np.isinf(hops) & (walks > 0)
        if not new.any():
            return hops, paths
        hops[new] = length
        paths[new] = walks[new]
        if np.isfinite(hops).all():
            return hops, paths
        walks, length = walks @ adjacency, length + 1


def find_traffic_mistakes(instance: Instance, traffic: Traffic) -> list[Mistake]:
    """List where traffic does not fit the instance, so that no figure is computed from it."""
    mistakes: list[Mistake] = []
    if not traffic.recordings:
        mistakes.append(Mistake("none", "at least one recording", "traffic.recordings"))
    mix = (instance.cluster.nodes, len(traffic.recordings))
    if traffic.mix.shape != mix:
        mistakes.append(Mistake(f"a mix of shape {traffic.mix.shape}", f"{mix} [nodes, recordings]", "traffic.mix"))
    elif not _are_shares(traffic.mix):
        mistakes.append(Mistake("a mix with numbers that are no shares", "finite numbers, 0 or more", "traffic.mix"))
    for index, recording in enumerate(traffic.recordings):
        found = _find_mistake(instance, recording)
        if found:
            mistakes.append(Mistake(*found, f"traffic.recordings[{index}]"))
    return mistakes


def _find_mistake(instance: Instance, recording: Recording) -> tuple[str, str] | None:
    """Say what is found of a recording, and what is expected, where these differ."""
    layers, experts, topk = len(instance.moe_layers), instance.model.experts, recording.topk
    if topk is None:
        shapes = (recording.load.shape, recording.tokens.shape)
        if shapes != ((layers, experts), (layers,)):
            return f"loads and tokens of shapes {shapes}", f"{((layers, experts), (layers,))} [MoE layers, experts]"
        if not (recording.tokens > 0).all():
            return "a layer with no tokens", "tokens in every layer"
        if not (_are_shares(recording.load) and np.isfinite(recording.tokens).all()):
            return "loads that are no counts", "finite numbers, 0 or more"
    elif topk.ndim != 3 or topk.shape[1] != layers or not topk.size:
        return f"topk of shape {topk.shape}", f"[tokens, {layers} MoE layers, top_k]"
    elif topk.min() < 0 or topk.max() >= experts:
        return f"expert ids from {topk.min()} to {topk.max()}", f"ids from 0 to {experts - 1}"
    return None


def _are_shares(numbers: Floats) -> bool:
    """Whether all are finite and at least 0: what bounds are proved by."""
    return bool((np.isfinite(numbers) & (numbers >= 0)).all())


def choices_per_token(instance: Instance, traffic: Traffic) -> Floats:
    """Count how often a token of each recording chooses each expert, on average: [recordings, MoE layers, experts]."""
    counts = [_count(recording, instance.model.experts) for recording in traffic.recordings]
    return np.stack([load / tokens[:, None] for load, tokens in counts])


def _count(recording: Recording, experts: int) -> tuple[Floats, Floats]:
    """Return loads and tokens, recounted where every token's choice is there."""
    if recording.topk is None:
        return recording.load, recording.tokens
    tokens, layers = recording.topk.shape[:2]
    load = [np.bincount(recording.topk[:, layer].ravel(), minlength=experts) for layer in range(layers)]
    return np.stack(load).astype(np.float64), np.full(layers, float(tokens))


def replica_demand(instance: Instance, traffic: Traffic, choices: Floats, replicas: Ints) -> Floats:
    """Tokens per step from every node to every replica of one MoE layer's experts: [nodes, replicas in all].

    Parameters
    ----------
    instance : Instance
    traffic : Traffic
        Routing statistics of the instance's sources.
    choices : float array [recordings, experts]
        The layer's part of `choices_per_token`.
    replicas : int array [experts]
        How many replicas each expert has; the columns are these, expert by expert, in replica order.
    """
    cluster = instance.cluster
    tokens = instance.traffic.tokens_per_gpu * cluster.gpus_per_node  # of failed GPUs too: their users are still there
    T = tokens * (traffic.mix @ choices)
    expert = np.repeat(np.arange(len(replicas)), replicas)
    if instance.placement.replica_routing == "even":
        return T[:, expert] / replicas[expert]
    replica = np.concatenate([np.arange(count) for count in replicas])
    group = np.arange(cluster.nodes) * instance.parallelism.dp // cluster.nodes
    return np.where(group[:, None] == replica[None, :], T[:, expert], 0.0)
