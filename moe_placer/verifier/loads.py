"""Links, routes, demand and loads, each straight from its definition in the placement model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.errors import Mistake
from moe_placer.instance import Instance
from moe_placer.instance.schema import Dragonfly, FatTree, RailPods, ThreeLevelTree
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.verifier.choice_counts import count_recording
from moe_placer.verifier.dragonfly import dragonfly_bandwidths, dragonfly_routes
from moe_placer.verifier.links import Network, link_speeds
from moe_placer.verifier.nics import nvlink_domains, with_nics
from moe_placer.verifier.trees import read_mesh, read_rail_pods, read_three_levels, read_tree

__all__ = ["Network", "choices_per_token", "find_traffic_mistakes", "read_network", "replica_demand"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


_READ = {FatTree: read_tree, ThreeLevelTree: read_three_levels, RailPods: read_rail_pods}


def read_network(instance: Instance) -> Network:
    """Find all shortest routes between nodes, evenly split over those of equal length, and the NICs at their ends."""
    network = _read_fabric(instance)
    domain = nvlink_domains(instance)
    crossing = domain[network.source] != domain[network.target]  # NVLink carries the others
    columns = {name: getattr(network, name)[crossing] for name in ("link", "source", "target", "share")}
    return with_nics(instance, replace(network, **columns))


def _read_fabric(instance: Instance) -> Network:
    if isinstance(instance.cluster.fabric, Dragonfly):
        return _read_dragonfly(instance)
    read = next((read for kind, read in _READ.items() if isinstance(instance.cluster.fabric, kind)), read_mesh)
    bandwidths, (link, source, target, share), alike = read(instance)
    speeds, home = link_speeds(instance, bandwidths.values()), np.arange(instance.cluster.nodes)
    return Network(tuple(bandwidths), *speeds, link, source, target, share, home, alike)


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
    return Network(tuple(bandwidths), *speeds, link, sources, targets, column[3], home, np.arange(len(bandwidths)))


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
    else:
        counted = count_recording(recording, experts)
        if counted.load is None:
            return f"expert ids from {counted.least} to {counted.most}", f"ids from 0 to {experts - 1}"
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
    load = count_recording(recording, experts).load
    assert load is not None  # `find_traffic_mistakes` has refused other ids
    return load.astype(np.float64), np.full(layers, float(tokens))


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
    if instance.placement.draws_evenly:
        return T[:, expert] / replicas[expert]
    replica = np.concatenate([np.arange(count) for count in replicas])
    group = np.arange(cluster.nodes) * instance.parallelism.dp // cluster.nodes
    demand = np.zeros((cluster.nodes, len(expert)))
    for own in np.unique(group).tolist():
        demand[np.ix_(group == own, replica == own)] = T[np.ix_(group == own, expert[replica == own])]
    return demand
