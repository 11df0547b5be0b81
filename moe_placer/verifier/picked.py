"""How many copies of tokens go where, and what replicas work on, under a named rule of replica choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier.network import Network
from moe_placer.verifier.nics import receives_by_gpu
from moe_placer.verifier.replica_choice import View, best_split
from moe_placer.verifier.rules import Replica
from moe_placer.verifier.sending import reached, sends_every_choice

__all__ = ["split_best", "tokens_by_views"]

Floats = npt.NDArray[np.float64]


def tokens_by_views(
    instance: Instance, traffic: Traffic, row: int, choices: Floats, replicas: Sequence[Replica], views: Sequence[View]
) -> tuple[Floats, Floats]:
    """Count as `moe_placer.verifier.sending.tokens_between` does, for tokens that pick replicas by these views.

    Parameters
    ----------
    instance, traffic
        With token sets, where a token is sent once to each place.
    row : int
        The MoE layer, in their order.
    choices : float array [recordings, experts]
        How often a token chooses each expert, in this layer.
    replicas : sequence of Replica
        All replicas of this layer, in the order of the views' chances.
    views : sequence of View
        Of this layer.

    Returns
    -------
    flow : float array [nodes, places]
        Replicas per step, those that stay in a node left out.
    demand : float array [nodes, replicas]
        Tokens per step.
    """
    expert, demand = np.array([one.expert for one in replicas]), np.zeros((instance.cluster.nodes, len(replicas)))
    size, tokens = instance.cluster.gpus_per_node, _started(instance, traffic, choices)
    for view in views:
        demand += np.outer(view.weight, view.chance) * tokens[:, expert]
    if sends_every_choice(instance):
        return _sent(instance, replicas, demand), demand
    per_gpu = instance.placement.dispatch == "per-gpu"
    places, part = instance.gpus if per_gpu else instance.cluster.nodes, 1 if per_gpu else size
    flow = np.zeros((instance.cluster.nodes, instance.gpus // (1 if receives_by_gpu(instance) else size)))
    started = instance.traffic.tokens_per_gpu * size
    for view in views:
        chance = np.zeros((instance.model.experts, places))
        for item, replica in enumerate(replicas):
            chance[replica.expert, replica.gpus[0] // part] += view.chance[item]
        for file, recording in enumerate(traffic.recordings):
            assert recording.topk is not None
            by_place = reached(recording.topk[:, row], chance).reshape(flow.shape[1], -1).sum(axis=1)
            flow += np.outer(started * traffic.mix[:, file] * view.weight, by_place)
    return _without_own(instance, flow), demand


def split_best(
    instance: Instance, traffic: Traffic, choices: Floats, replicas: Sequence[Replica], network: Network
) -> tuple[Floats, Floats]:
    """Count likewise, for tokens that are split so that the busiest link costs least.

    Parameters
    ----------
    instance, traffic
        Which send one copy for every chosen expert.
    choices : float array [recordings, experts]
        How often a token chooses each expert, in this layer.
    replicas : sequence of Replica
        All replicas of this layer.
    network : Network
        Its links.
    """
    part = 1 if receives_by_gpu(instance) else instance.cluster.gpus_per_node
    expert = np.array([one.expert for one in replicas])
    place = np.array([one.gpus[0] // part for one in replicas])
    demand = best_split(network, _started(instance, traffic, choices), expert, place)
    return _sent(instance, replicas, demand), demand


def _started(instance: Instance, traffic: Traffic, choices: Floats) -> Floats:
    """Tokens per step of each node that choose each expert [nodes, experts]."""
    return np.asarray(instance.traffic.tokens_per_gpu * instance.cluster.gpus_per_node * (traffic.mix @ choices))


def _sent(instance: Instance, replicas: Sequence[Replica], demand: Floats) -> Floats:
    """Send one copy for every chosen expert."""
    part = 1 if receives_by_gpu(instance) else instance.cluster.gpus_per_node
    flow = np.zeros((instance.cluster.nodes, instance.gpus // part))
    for item, replica in enumerate(replicas):
        flow[:, replica.gpus[0] // part] += demand[:, item]
    return _without_own(instance, flow)


def _without_own(instance: Instance, flow: Floats) -> Floats:
    """Leave out what stays in its node."""
    home = np.arange(flow.shape[1]) * instance.cluster.nodes // flow.shape[1]
    flow[home, np.arange(flow.shape[1])] = 0.0
    return flow
