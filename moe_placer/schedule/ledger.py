"""What a simulated step needs of its operations and tensors, summed while these are built, without a graph of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moe_placer.dag.flows import Flows
from moe_placer.dag.graph_builder import Exchange, GraphBuilder
from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.instance import Instance

__all__ = ["Ledger"]

Floats = npt.NDArray[np.float64]


class Ledger(GraphBuilder):
    """Operations in the order of the step, and for each the sums over its tensors.

    Attributes
    ----------
    operations : list of Operation
        What each computes, without its input tensors.
    index : dict
        Id of an operation to its place.
    fed : list of float
        Bytes of tensors that come to each.
    first_in, first_out : list of float
        Tokens of the first tensor that comes, and that is made; nan where none is.
    nvlink, network : list of float
        Bytes that come over NVLink and over the network, from other operations than sends and forwarders.
    sent : dict
        Place of a dispatch or combine send to the bytes that leave its node for each node [N].
    made : dict
        Place of a send to the copies of tokens that it sends, its own node's included.
    stays : dict
        Place of a send to the bytes that cross no link: over NVLink, and within a GPU.
    forwarded : dict
        Place of a receiver to the bytes that it hands on over NVLink to every GPU.
    after : list of list of int
        Operations that a tensor of each goes to; those of several tensors several times.
    """

    def __init__(self, instance: Instance, flows: Flows) -> None:
        super().__init__(instance, Dag(instance.name, facts={"links": {}}), flows)  # which stays empty
        self.operations: list[Operation] = []
        self.index: dict[str, int] = {}
        self.fed: list[float] = []
        self.first_in: list[float] = []
        self.first_out: list[float] = []
        self.nvlink: list[float] = []
        self.network: list[float] = []
        self.sent: dict[int, Floats] = {}
        self.made: dict[int, float] = {}
        self.stays: dict[int, tuple[float, float]] = {}
        self.forwarded: dict[int, float] = {}
        self.after: list[list[int]] = []

    def keep(self, operation: Operation) -> Operation:
        """Add an operation; its id must be new."""
        if operation.id in self.index:
            raise ValueError(f"two operations with the id {operation.id}")
        self.index[operation.id] = len(self.operations)
        self.operations.append(operation)
        self.first_in.append(np.nan)
        self.first_out.append(np.nan)
        for sums in (self.fed, self.nvlink, self.network):
            sums.append(0.0)
        self.after.append([])
        return operation

    def keep_edge(self, edge: Edge) -> None:
        """Count a tensor that is part of no exchange between nodes."""
        s, t = self.index[edge.source], self.index[edge.target]
        self.fed[t] += edge.bytes
        self.after[s].append(t)
        if self.first_out[s] != self.first_out[s]:
            self.first_out[s] = edge.shape[0]
        if self.first_in[t] != self.first_in[t]:
            self.first_in[t] = edge.shape[0]
        if edge.travel == "nvlink" and self.operations[s].kind == "dispatch_receive":
            self.forwarded[s] = self.forwarded.get(s, 0.0) + edge.bytes * len(self.operations[t].gpus)
        elif edge.travel == "nvlink":
            self.nvlink[t] += edge.bytes
        elif edge.travel == "network":
            self.network[t] += edge.bytes

    def exchange(self, senders: Mapping[int, Operation], receivers: Mapping[int, Operation], sent: Exchange) -> None:
        """Count what nodes send to nodes, all at once."""
        copies = sent.copies
        goes = ~np.isnan(copies)
        tokens = np.where(goes, copies, 0.0)
        size = tokens * sent.wire.token_bytes
        for d, receiver in receivers.items():
            r, came = self.index[receiver.id], np.flatnonzero(goes[:, d])
            self.fed[r] += float(size[:, d].cumsum()[-1])
            if len(came) and self.first_in[r] != self.first_in[r]:
                self.first_in[r] = float(copies[came[0], d])
        places = {d: self.index[receiver.id] for d, receiver in receivers.items()}
        domain = np.arange(len(copies)) // (self.instance.cluster.nvlink_domain_nodes or 1)
        for s, sender in senders.items():
            p, inside = self.index[sender.id], domain == domain[s]
            self.sent[p] = np.where(inside, 0.0, size[s])
            self.made[p] = float(tokens[s].cumsum()[-1])
            self.after[p] += [places[d] for d in np.flatnonzero(goes[s]).tolist()]
            over_nvlink, on_gpu = 0.0, 0.0
            for d in np.flatnonzero(inside & goes[s]).tolist():
                if (s != d or not sent.kept) and len({*sender.gpus, *receivers[d].gpus}) > 1:
                    over_nvlink += float(size[s, d])
                else:
                    on_gpu += float(size[s, d])
            self.stays[p] = over_nvlink, on_gpu
