"""How many copies of tokens go where, and what replicas work on, under a named rule of replica choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier.links import Network
from moe_placer.verifier.nics import nic_load, receives_by_gpu
from moe_placer.verifier.replica_choice import View, best_split
from moe_placer.verifier.rules import Replica
from moe_placer.verifier.sending import reached, sends_every_choice

__all__ = ["split_best", "tokens_by_views"]

Floats = npt.NDArray[np.float64]


def tokens_by_views(
    instance: Instance, traffic: Traffic, row: int, choices: Floats, replicas: Sequence[Replica], views: Sequence[View]
) -> tuple[Floats, Floats, Floats]:
    """Count as `moe_placer.verifier.sending.tokens_between` does, for tokens that pick replicas by these views.

    Parameters
    ----------
    instance : Instance
        The deployment.
    traffic : Traffic
        What tokens choose; all their choices, unless every chosen expert gets a copy of its own.
    row : int
        The MoE layer, in their order.
    choices : float array [recordings, experts]
        How often a token chooses each expert, in this layer.
    replicas : sequence of Replica
        All replicas of this layer, expert by expert.
    views : sequence of View
        Where tokens start, and by what chance these pick each replica.

    Returns
    -------
    flow : float array [nodes, nodes or GPUs]
        Tokens per step from every node to every other place.
    demand : float array [nodes, replicas]
        Tokens per step from every node that each replica works on.
    on_nics : float array [2, nodes, NICs of a node]
        Tokens per step that every NIC sends and receives, since ranks that pick unlike send unlike; without columns
        where no NIC is a link.
    """
    expert, demand = np.array([one.expert for one in replicas]), np.zeros((instance.cluster.nodes, len(replicas)))
    size, tokens = instance.cluster.gpus_per_node, _started(instance, traffic, choices)
    every, per_gpu = sends_every_choice(instance), instance.placement.dispatch == "per-gpu"
    places, part = instance.gpus if per_gpu else instance.cluster.nodes, 1 if per_gpu else size
    flow = np.zeros((instance.cluster.nodes, instance.gpus // (1 if receives_by_gpu(instance) else size)))
    on_nics = nic_load(instance, flow, np.zeros((instance.cluster.nodes, size)))
    for view in views:
        asked = view.chance * tokens[:, expert]
        demand += view.weight[:, None] * asked
        if every:
            sent = _sent(instance, replicas, asked)
        else:
            chance = np.zeros((instance.model.experts, places))
            for item, replica in enumerate(replicas):
                chance[replica.expert, replica.gpus[0] // part] += view.chance[item]
            sent = _without_own(instance, _reached(instance, traffic, row, chance, flow.shape[1]))
        flow += view.weight[:, None] * sent
        on_nics += nic_load(instance, sent, view.start)
    return flow, demand, on_nics


def _reached(instance: Instance, traffic: Traffic, row: int, chance: Floats, places: int) -> Floats:
    """Send every token of every node once to what it reaches with these chances [nodes, places]."""
    flow = np.zeros((instance.cluster.nodes, places))
    started = instance.traffic.tokens_per_gpu * instance.cluster.gpus_per_node
    for file, recording in enumerate(traffic.recordings):
        by_place = reached(recording.choices_in(row), chance).reshape(places, -1).sum(axis=1)
        flow += np.outer(started * traffic.mix[:, file], by_place)
    return flow


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
