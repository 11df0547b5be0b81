"""Chakra execution traces of a step's all-to-alls, one file a GPU, in the JSON form that Chakra's feeder reads.

Collectives of Chakra have one size for all ranks, which hides what a placement changes. So every transfer is a send
node on one GPU and a receive node on the other, each with its own bytes. The schema is mlcommons/chakra's: node types
4 (compute), 5 (send), 6 (receive); ``runtime`` is in whole microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.errors import UsageError
from moe_placer.files import write_atomically
from moe_placer.instance import Instance
from moe_placer.instance.sizes import combine_wire, dispatch_wire, expert_us
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier.loads import choices_per_token
from moe_placer.verifier.rules import Replica, read_replicas
from moe_placer.verifier.sending import tokens_between, views_by_row

__all__ = ["MOST_NODES", "execution_traces", "write_execution_traces"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_NODES = 500_000  # of all files together: about 100 MB
_COMPUTE, _SEND, _RECEIVE = 4, 5, 6


@dataclass
class _Rank:
    """The nodes of one GPU, and the last one that everything later waits for."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    last: list[int] = field(default_factory=list)

    def add(self, name: str, kind: int, waits_for: list[int], **more: int) -> int:
        """Append a node and return its id."""
        number = len(self.nodes)
        head = {"Id": number, "Name": name, "NodeType": kind, "is_cpu_op": False, "data_deps": waits_for}
        self.nodes.append(head | more)
        return number

    def compute(self, name: str, waits_for: list[int], us: int) -> int:
        """Append a node that computes."""
        return self.add(name, _COMPUTE, waits_for, runtime=us)

    def transfer(self, name: str, waits_for: list[int], ends: tuple[int, int], size: int, tag: int, own: int) -> int:
        """Append this GPU's end of a transfer between two GPUs."""
        source, target = ends
        kind = _SEND if own == source else _RECEIVE
        return self.add(
            f"{name} {source}->{target}", kind, waits_for,
            comm_src=source, comm_dst=target, comm_size=size, comm_tag=tag, comm_type=0, comm_priority=0,
            tensor_size=size,
        )  # fmt: skip


def write_execution_traces(
    instance: Instance, placement: Placement, traffic: Traffic, folder: Path, layer: int | None = None
) -> list[Path]:
    """Write ``step.GPU.json`` for every GPU, as ASTRA-sim looks for them with the prefix ``folder/step``.

    Parameters
    ----------
    instance, placement, traffic
        What runs where, verified; and which tokens choose which experts.
    folder : Path
        Made where it does not exist; files of these names are replaced, each whole.
    layer : int, optional
        Only this layer (dense layers counted); absent, all of them one after the other.

    Returns
    -------
    list of Path
        By GPU.

    Raises
    ------
    UsageError
        As `execution_traces`.
    """
    paths = []
    for gpu, nodes in enumerate(execution_traces(instance, placement, traffic, layer)):
        paths.append(folder / f"step.{gpu}.json")
        write_atomically(paths[-1], json.dumps({"workload_graph": nodes}, separators=(",", ":")) + "\n")
    return paths


def execution_traces(
    instance: Instance, placement: Placement, traffic: Traffic, layer: int | None = None
) -> list[list[dict[str, Any]]]:
    """Return the nodes of every GPU: in each layer dispatch, the experts, combine, and an end that the next waits for.

    Tokens start evenly on the GPUs of a node. Bytes are expected values, rounded to whole ones; what is less than half
    a byte is not sent. Attention and dense layers are left out.

    Parameters
    ----------
    instance, placement, traffic, layer
        As `write_execution_traces`.

    Raises
    ------
    UsageError
        The instance's dispatch sends a token once for several experts, the layer has no experts, or there would be more
        than `MOST_NODES` nodes.
    """
    if instance.placement.counts_tokens_once:
        unit = instance.placement.dispatch
        raise UsageError(f"execution traces have a copy per chosen expert, and placement.dispatch is {unit}")
    if layer is not None and layer not in instance.moe_layers:
        raise UsageError(f"layer {layer} has no experts, expected one of {instance.moe_layers[0]} to "
                         f"{instance.moe_layers[-1]}")  # fmt: skip
    ranks = [_Rank() for _ in range(instance.gpus)]
    out, back = dispatch_wire(instance).token_bytes, combine_wire(instance).token_bytes
    for row, number in enumerate(instance.moe_layers):
        if layer not in {None, number}:
            continue
        tokens, work = _between_gpus(instance, placement, traffic, row)
        _add_layer(instance, ranks, number, (np.rint(tokens * out), np.rint(tokens.T * back)), work)
        count = sum(len(rank.nodes) for rank in ranks)
        if count > MOST_NODES:
            raise UsageError(f"execution traces of more than {MOST_NODES:,} nodes; --layer N writes one layer")
    return [rank.nodes for rank in ranks]


def _between_gpus(instance: Instance, placement: Placement, traffic: Traffic, row: int) -> tuple[Floats, Floats]:
    """Return tokens per step from every GPU to every other one [GPUs, GPUs], and those that each computes [GPUs]."""
    layers: list[list[Replica]] = [[] for _ in instance.moe_layers]
    for one in read_replicas(instance, placement):
        layers[one.row].append(one)
    replicas, choices = layers[row], choices_per_token(instance, traffic)[:, row]
    views = views_by_row(instance, layers)[row]
    _, demand = tokens_between(instance, traffic, row, choices, replicas, views)
    size = instance.cluster.gpus_per_node
    by_node = np.zeros((instance.cluster.nodes, instance.gpus))
    work = np.zeros(instance.gpus)
    for item, replica in enumerate(replicas):
        for gpu in replica.gpus:  # every shard needs the whole token
            by_node[:, gpu] += demand[:, item]
            work[gpu] += demand[:, item].sum()
    tokens = np.repeat(by_node / size, size, axis=0)
    np.fill_diagonal(tokens, 0.0)  # what stays on its GPU is not sent
    return tokens, work


def _add_layer(instance: Instance, ranks: list[_Rank], layer: int, sizes: tuple[Floats, Floats], work: Floats) -> None:
    """Add one layer's nodes on every GPU; tags tell layers and directions apart."""
    dispatch, combine = (table.astype(np.int64) for table in sizes)
    for gpu, rank in enumerate(ranks):
        name = f"layer{layer}"
        sent = list(_transfers(rank, gpu, f"{name}/dispatch", dispatch, 2 * layer, rank.last, sends=True))
        arrived = list(_transfers(rank, gpu, f"{name}/dispatch", dispatch, 2 * layer, rank.last, sends=False))
        us = max(0, round(expert_us(instance, float(work[gpu]))))
        experts = rank.compute(f"{name}/experts", arrived or rank.last, us)
        sent += _transfers(rank, gpu, f"{name}/combine", combine, 2 * layer + 1, [experts], sends=True)
        returned = _transfers(rank, gpu, f"{name}/combine", combine, 2 * layer + 1, rank.last, sends=False)
        rank.last = [rank.compute(f"{name}/end", [experts, *sent, *returned], 0)]


def _transfers(
    rank: _Rank, gpu: int, name: str, sizes: Ints, tag: int, waits_for: list[int], *, sends: bool
) -> Iterator[int]:
    """Add this GPU's sends, or its receives, and yield their ids; the next GPUs first, so that not all meet at one."""
    count = len(sizes)
    for step in range(1, count):
        other = (gpu + step) % count if sends else (gpu - step) % count
        ends = (gpu, other) if sends else (other, gpu)
        if sizes[ends]:
            yield rank.transfer(name, list(waits_for), ends, int(sizes[ends]), tag, gpu)
