"""The NICs at both ends of every route, straight from the definition in the placement model.

Tokens start evenly on a node's GPUs, and so leave evenly by its NICs. ``source-rail``: they arrive by the NIC of equal
index. ``destination-gpu``: at the NICs of the GPU that holds the replica; GPUs share a node's NICs evenly, in order.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.verifier.capacity import gpu_slots, node_slots
from moe_placer.verifier.links import Network, link_speeds

__all__ = ["nic_load", "nvlink_domains", "place_slots", "receives_by_gpu", "with_nics"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def receives_by_gpu(instance: Instance) -> bool:
    """Whether what is sent to a node arrives at the NIC of a single GPU."""
    nics = instance.cluster.nics
    return nics is not None and nics.receive == "destination-gpu" and instance.cluster.nodes > 1


def nvlink_domains(instance: Instance) -> Ints:
    """Return which nodes NVLink joins: the domain of each [nodes]."""
    return np.arange(instance.cluster.nodes) // (instance.cluster.nvlink_domain_nodes or 1)


def place_slots(instance: Instance) -> Ints:
    """Replicas of one layer that each place can hold [places]: a node, or a GPU that receives by NICs of its own."""
    return gpu_slots(instance) if receives_by_gpu(instance) else node_slots(instance)


def with_nics(instance: Instance, fabric: Network) -> Network:
    """Add NICs as links: all that send, then all that receive; places are GPUs where these receive by their own."""
    nics, nodes, size = instance.cluster.nics, instance.cluster.nodes, instance.cluster.gpus_per_node
    if nics is None or nics.receive == "shared" or nodes == 1:
        return fabric
    each, known = nics.per_node, len(fabric.links)
    network = _to_gpus(fabric, size) if receives_by_gpu(instance) else fabric
    domain = nvlink_domains(instance)
    link: list[Ints] = [network.link]
    source: list[Ints] = [network.source]
    target: list[Ints] = [network.target]
    share: list[npt.NDArray[np.float64]] = [network.share]
    for place, node in enumerate(network.home.tolist()):
        at = range(each)
        if receives_by_gpu(instance):
            at = _nics_of(place % size, each, size)
        others = np.flatnonzero(domain != domain[node])
        for first, ends, used in ((known, others, range(each)), (known + nodes * each, np.full(len(others), node), at)):
            for nic in used:
                link.append(first + ends * each + nic)
                source.append(others)
                target.append(np.full(len(others), place))
                share.append(np.full(len(others), 1 / len(used)))
    names = [f"node{node}->node{node}/nic{nic}" for node in range(nodes) for nic in range(each)]
    names += [f"node{node}/nic{nic}->node{node}" for node in range(nodes) for nic in range(each)]
    bandwidths = [*network.bandwidth.tolist(), *[nics.gb_per_s] * len(names)]
    bandwidth, scale, us_per_token = link_speeds(instance, bandwidths)
    return replace(
        network,
        links=(*network.links, *names),
        bandwidth=bandwidth,
        scale=scale,
        us_per_token=us_per_token,
        link=np.concatenate(link),
        source=np.concatenate(source),
        target=np.concatenate(target),
        share=np.concatenate(share),
        alike=np.concatenate([network.alike, known + np.arange(len(names))]),
    )


def nic_load(instance: Instance, sent: Floats, start: Floats) -> Floats:
    """Tokens per step on every NIC [2, nodes, NICs of a node], sent and received; no columns where none is a link.

    Parameters
    ----------
    instance : Instance
    sent : float array [nodes, places]
        What each node would send to places of other nodes if all of its tokens were like these.
    start : float array [nodes, GPUs of a node]
        Which share of each node's tokens are like these, by the GPU where they start: they leave by its NICs.
    """
    nics, nodes, size = instance.cluster.nics, instance.cluster.nodes, instance.cluster.gpus_per_node
    if nics is None or nics.receive == "shared" or nodes == 1:
        return np.zeros((2, nodes, 0))
    uses = np.zeros((size, nics.per_node))  # share of a GPU's tokens on each NIC
    for gpu in range(size):
        own = _nics_of(gpu, nics.per_node, size)
        uses[gpu, own] = 1 / len(own)
    leaves, domain = start @ uses, nvlink_domains(instance)
    if not receives_by_gpu(instance):
        sent = np.where(domain[:, None] != domain[None, :], sent, 0.0)
    sends = sent.sum(axis=1)[:, None] * leaves
    arrives = (start.sum(axis=1) @ sent).reshape(nodes, size) @ uses if receives_by_gpu(instance) else sent.T @ leaves
    return np.stack([sends, arrives])


def _nics_of(gpu: int, each: int, size: int) -> range:
    """Return the NICs of a GPU, both counted in its node: NIC i with g / size and i / each in the same part."""
    return range(gpu * each // size, max(gpu * each // size + 1, (gpu + 1) * each // size))


def _to_gpus(fabric: Network, size: int) -> Network:
    """Let what goes to a node go to any of its GPUs: the links on the way are the same."""
    gpus = (fabric.target[:, None] * size + np.arange(size)).ravel()
    return replace(
        fabric,
        link=np.repeat(fabric.link, size),
        source=np.repeat(fabric.source, size),
        target=gpus,
        share=np.repeat(fabric.share, size),
        home=np.repeat(fabric.home, size),
    )
