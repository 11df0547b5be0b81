"""What is sent: placements of real traces on small clusters, and what the simulator's network says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.netns.testbed import PAYLOAD
from moe_placer.dag.flows import Flows, LayerFlow, read_flows
from moe_placer.fabric import is_nic, link_name, receivers
from moe_placer.instance import Instance
from moe_placer.instance.sizes import GB, dispatch_wire
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.schedule.network import Network
from moe_placer.schedule.nic_ends import NicEnds
from moe_placer.solve.solve import solve
from moe_placer.traffic.recording import Recording, Traffic

__all__ = ["METHODS", "SETUPS", "TRACES", "Case", "SetUp", "bytes_between", "cases", "instance_of", "read_layers"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TRACES = ("esft_deepseek-v2-lite_intent.npz", "esft_deepseek-v2-lite_summary.npz")
METHODS: tuple[tuple[str, int], ...] = (
    ("auto", 0), ("contiguous", 0), ("eplb", 0), ("greedy", 0), ("round-robin", 0),
    ("topology-swaps", 0), ("trtllm", 0), ("random", 1), ("random", 2), ("random", 3), ("random", 4),
)  # fmt: skip
_ROWS = (0, 8, 17, 25)  # MoE layers of the model, of 26
_MODEL: dict[str, Any] = {
    "layers": 1 + len(_ROWS), "dense_layers": [0], "hidden_size": 2048, "attention_heads": 16, "head_dim": 128,
    "experts": 64, "top_k": 6, "expert_hidden_size": 1408, "expert_matrices": 3, "dtype": "bf16",
    "dense_hidden_size": 10_944, "vocab_size": 102_400,
}  # fmt: skip
_MBIT = 1 / 8000  # GB/s
# Share of a node's tokens that are like the first trace.
_MIX = (0.9, 0.8, 0.7, 0.9, 0.1, 0.2, 0.1, 0.3)


@dataclass(frozen=True)
class SetUp:
    """A network, and what is sent over it at once.

    Attributes
    ----------
    name : str
    network : "tree" or "nics"
        8 nodes on leaves of 4, twice oversubscribed over 2 spines, each node with one link; or 4 nodes of 8 GPUs, each
        GPU with a NIC of its own, on one switch that never blocks.
    uplinks : "spray" or "hashed"
        Of the tree.
    receive : "source-rail" or "destination-gpu"
        Which NIC a copy arrives at.
    both : bool
        Whether a dispatch and a combine (the same bytes on their way back) start together; else a dispatch is alone.
    """

    name: str
    network: Literal["tree", "nics"]
    uplinks: Literal["spray", "hashed"] = "spray"
    receive: Literal["source-rail", "destination-gpu"] = "source-rail"
    both: bool = False


SETUPS: tuple[SetUp, ...] = (
    SetUp("tree, sprayed", "tree"),
    SetUp("tree, hashed", "tree", uplinks="hashed"),
    SetUp("tree, sprayed, both ways", "tree", both=True),
    SetUp("tree, hashed, both ways", "tree", uplinks="hashed", both=True),
    SetUp("NICs, source-rail", "nics"),
    SetUp("NICs, destination-gpu", "nics", receive="destination-gpu"),
    SetUp("NICs, source-rail, both ways", "nics", both=True),
    SetUp("NICs, destination-gpu, both ways", "nics", receive="destination-gpu", both=True),
)


@dataclass(frozen=True, eq=False)
class Case:
    """A dispatch, or a dispatch and a combine, of one layer of a placement.

    Attributes
    ----------
    solver : str
    seed, layer : int
        Layer of the model, the dense one counted.
    transfers : tuple of int arrays [hosts, hosts]
        Bytes, each a transfer.
    network_s : float
        Until the last byte is there, by the simulator's network.
    link_s : float
        That of the link that needs longest for its bytes (z).
    node_s : float
        That of a node's links and the uplinks, NICs taken as one pipe.
    """

    solver: str
    seed: int
    layer: int
    transfers: tuple[Ints, ...]
    network_s: float
    link_s: float
    node_s: float


def instance_of(setup: SetUp, mbit: float) -> Instance:
    """Return DeepSeek-V2-Lite on the network of a set-up.

    Parameters
    ----------
    setup : SetUp
    mbit : float
        Of a host's link, in Mbit/s.
    """
    tree = setup.network == "tree"
    nodes = 8 if tree else 4
    fabric: dict[str, Any] = {
        "kind": "fat-tree", "nodes_per_leaf": 4, "spines": 2 if tree else 1, "oversubscription": 2.0 if tree else 1.0,
        "node_gb_per_s": (1 if tree else 8) * mbit * _MBIT, "link_utilization": PAYLOAD, "uplinks": setup.uplinks,
    }  # fmt: skip
    nics = {"per_node": 8, "gb_per_s": mbit * _MBIT, "receive": setup.receive}
    # Of this many tokens the links need one to three seconds.
    tokens = (mbit if tree else 7.0 * mbit) / (2.0 if setup.both else 1.0)
    return Instance.model_validate({
        "name": setup.name.replace(", ", "-").replace(" ", "-"),
        "model": _MODEL,
        "cluster": {
            "nodes": nodes, "gpus_per_node": 8, "gpu": {"memory_gb": 64.0}, "fabric": fabric,
            "nics": None if tree else nics,
        },
        "parallelism": {"dp": 1, "attention_tp": 8},
        "placement": {"slots_per_gpu": 1 if tree else 2},
        "traffic": {"kind": "trace", "tokens_per_gpu": tokens},
    })  # fmt: skip


def read_layers(folder: Path, nodes: int) -> Traffic:
    """Read some layers of the two real traces, mixed unlike on the two halves of the nodes.

    Raises
    ------
    FileNotFoundError
        A trace is not in the folder.
    """
    recordings = []
    for name in TRACES:
        with np.load(folder / name) as file:
            topk = file["topk"][:, list(_ROWS)]
        load = np.stack([np.bincount(topk[:, row].ravel(), minlength=64) for row in range(len(_ROWS))])
        recordings.append(Recording(name, load.astype(np.float64), np.full(len(_ROWS), float(len(topk))), topk))
    first = np.array(_MIX)[np.linspace(0, 7, nodes).round().astype(int)]
    return Traffic(tuple(recordings), np.stack([first, 1 - first], axis=1))


def cases(setup: SetUp, mbit: float, folder: Path, methods: Sequence[tuple[str, int]] = METHODS) -> Iterator[Case]:
    """Yield every layer of every method's placement.

    Parameters
    ----------
    setup : SetUp
    mbit : float
        Of a host's link, in Mbit/s.
    folder : Path
        Where the traces are.
    methods : sequence of (solver, seed)
    """
    instance = instance_of(setup, mbit)
    traffic = read_layers(folder, instance.cluster.nodes)
    for solver, seed in methods:
        flows = read_flows(instance, _placed(replace(setup, both=False), folder, solver, seed), traffic)
        for row, layer in enumerate(instance.moe_layers):
            flow = flows.layer(row)
            sent = bytes_between(instance, flow)
            of_links = _of_links(instance, flows, flow, setup.both)
            shared = np.array([not is_nic(name) for name in flows.links])
            yield Case(
                solver, seed, layer, (sent, sent.T) if setup.both else (sent,), _by_network(instance, flow, setup.both),
                float(of_links.max()), float(of_links[shared].max()),
            )  # fmt: skip


@cache
def _placed(setup: SetUp, folder: Path, solver: str, seed: int) -> Placement:
    """Place the experts; neither the speed of links, all alike, nor the number of tokens changes a placement."""
    instance = instance_of(setup, 1.0)
    traffic = read_layers(folder, instance.cluster.nodes)
    return solve(instance, traffic, solver=solver, seed=seed, limits=Limits(bounds=False, workers=1)).placement


def _of_links(instance: Instance, flows: Flows, flow: LayerFlow, both: bool) -> Floats:
    """Seconds that each link needs for what it carries; both ways, what came by a link goes back by its twin."""
    bandwidth = flows.bandwidth * instance.cluster.fabric.link_utilization * GB
    seconds = np.asarray(flow.load * dispatch_wire(instance).token_bytes / bandwidth)
    if not both:
        return seconds
    at = {name: number for number, name in enumerate(flows.links)}
    twin = [at[link_name(*reversed(name.split("->")))] for name in flows.links]
    return seconds + seconds[twin]


def bytes_between(instance: Instance, flow: LayerFlow) -> Ints:
    """Bytes that the dispatch sends from every host to every other: hosts are nodes, or where NICs count GPUs."""
    size, per_node = dispatch_wire(instance).token_bytes, instance.cluster.gpus_per_node
    nics = instance.cluster.nics
    sent: Floats
    if nics is None:
        sent = flow.sent.copy()
    elif nics.receive == "destination-gpu":
        sent = np.repeat(flow.arriving / per_node, per_node, axis=0)
    else:  # from the n-th GPU of a node to the n-th of each other
        sent = np.asarray(np.kron(flow.sent / per_node, np.eye(per_node)), dtype=np.float64)
    hosts = len(sent)
    node = np.arange(hosts) // (1 if nics is None else per_node)
    sent[node[:, None] == node[None, :]] = 0.0
    return np.rint(sent * size).astype(np.int64)


def _by_network(instance: Instance, flow: LayerFlow, both: bool) -> float:
    """Seconds until all transfers have ended, in the simulator's network, which has one transfer per node and way."""
    nodes = instance.cluster.nodes
    sent = flow.sent * dispatch_wire(instance).token_bytes
    np.fill_diagonal(sent, 0.0)
    network, ends, nics = Network(instance, tolerance=0.0), NicEnds.of(instance), receivers(instance)
    for home in range(nodes):
        out, back = np.zeros((nodes, nodes)), np.zeros((nodes, nodes))
        out[home], back[home] = sent[home], sent[:, home]
        if ends is None or nics is None:
            network.start(0.0, out)
            if both:
                network.start(0.0, back)
        else:
            by_port = flow.arriving.reshape(nodes, nodes, -1)
            total = by_port.sum(axis=2, keepdims=True)
            shares = np.where(total > 0, by_port / np.where(total > 0, total, 1.0), 1 / ends.ports)
            network.start(0.0, out, ends.dispatch(home, shares[home]))
            if both:
                network.start(0.0, back, ends.combine(home, shares[:, home]))
    last = 0.0
    while (coming := network.next_end()) is not None:
        last = coming[0]
        network.advance(last)
    return last / 1e6
