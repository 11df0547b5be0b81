"""Adds operations and tensors to a graph, and says of each tensor how it travels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.dag.flows import Flows
from moe_placer.dag.groups import TpGroup, ring
from moe_placer.dag.operation import Dag, Edge, Kind, Operation, Shape, Travel, value_bytes
from moe_placer.instance import Instance
from moe_placer.instance.model_parts import Part, attention_weights, dtype_of, part_bytes
from moe_placer.instance.sizes import Wire

__all__ = ["DASHED", "Exchange", "GraphBuilder"]

Floats = npt.NDArray[np.float64]

DASHED = frozenset({"attention_reduce", "latent_gather", "gate_scatter"})  # communication of MHA and gating


@dataclass(frozen=True, eq=False)
class Exchange:
    """Hidden states of tokens on their way between nodes, in dispatch or in combine.

    Attributes
    ----------
    name : str
        Of the tensors, before the nodes.
    copies : float array [nodes, nodes]
        Tokens from node s to node d; nan where none may go there.
    hot : float array [nodes, nodes]
        Cost of the costliest link from s to d over the busiest link's.
    wire : Wire
        Format in which they travel.
    kept : bool
        Whether what stays in a node stays where it is.
    """

    name: str
    copies: Floats
    hot: Floats
    wire: Wire
    kept: bool


class GraphBuilder:
    """What every part of the builder needs: the instance, the graph so far, token flows and routes.

    Attributes
    ----------
    precision : float
        Bytes of one value of a hidden state.
    dtype : str
        Its dtype.
    """

    def __init__(self, instance: Instance, dag: Dag, flows: Flows) -> None:
        self.instance, self.dag, self.flows = instance, dag, flows
        self.dtype = dtype_of(instance.model, "activations")
        self.precision = part_bytes(instance.model, "activations")
        self._links: dict[tuple[int, int], dict[str, float]] = {}
        self._crossed: sparse.csc_array | None = None  # links, pair by pair

    def add(
        self, name: str, kind: Kind, gpus: Iterable[int], layer: int | None = None, group: int | None = None
    ) -> Operation:
        """Add an operation on some GPUs.

        Parameters
        ----------
        name : str
            Id of the operation.
        kind : Kind
            Kind of the operation.
        gpus : iterable of int
            GPUs that do it.
        layer : int or None
            Index in the model; None: of no layer.
        group : int or None
            DP group; None: none in particular.
        """
        return self.keep(Operation(name, kind, tuple(sorted(gpus)), layer, group))

    def keep(self, operation: Operation) -> Operation:
        """Add an operation to the graph."""
        return self.dag.add(operation)

    def keep_edge(self, edge: Edge) -> None:
        """Add an edge to the graph, with the links of its routes."""
        self.dag.routes.update((pair, self.links(pair)) for pair in edge.routes if pair not in self.dag.routes)
        self.dag.connect(edge)

    def connect(
        self,
        source: Operation,
        target: Operation,
        tensor: str,
        shape: Shape,
        *,
        dtype: str = "",
        wire: Wire | None = None,
        moves: bool = False,
        pairs: Collection[tuple[int, int]] = (),
        hot: float = 0.0,
    ) -> None:
        """Send a tensor from one operation to another.

        ``wire`` is the form in which tokens travel, if it may differ from the model's. ``moves`` says that it leaves
        its GPU, ``pairs`` between which nodes; pairs that NVLink joins take it.

        Parameters
        ----------
        source : Operation
            Where the tensor comes from.
        target : Operation
            Where it goes.
        tensor : str
            Its name.
        shape : Shape
            Its size in each dimension; fractions of tokens are fine.
        dtype : str
            "tokens" for token ids; else the type of activations.
        wire : Wire or None
            Format in which it travels; None: as it is.
        moves : bool
            Whether it leaves its GPU.
        pairs : collection of pairs of int
            Nodes from and to, of every part that moves.
        hot : float
            Cost of its costliest link over the busiest link's.
        """
        apart = {(s, d) for s, d in pairs if s != d} if pairs else ()
        routes = tuple(sorted((s, d) for s, d in apart if not self.instance.cluster.joined(s, d))) if apart else ()
        travel: Travel = "same-gpu"
        if routes:
            travel = "network"
        elif (moves or apart) and len({*source.gpus, *target.gpus}) > 1:
            travel = "nvlink"
        dtype = wire.dtype if wire is not None else dtype or self.dtype
        size = value_bytes(dtype, self.precision)
        for length in shape:
            size *= length
        if wire is not None:
            size = shape[0] * wire.token_bytes
        dashed = source.kind in DASHED or target.kind in DASHED
        edge = Edge(source.id, target.id, tensor, shape, dtype, size, travel, routes, dashed, hot)
        self.keep_edge(edge)

    def exchange(self, senders: Mapping[int, Operation], receivers: Mapping[int, Operation], sent: Exchange) -> None:
        """Send hidden states of tokens from nodes to nodes; of every node, what sends and what receives."""
        width = self.instance.model.hidden_size
        for d, receiver in receivers.items():
            for s, sender in senders.items():
                if not np.isnan(sent.copies[s, d]):
                    shape, moves, pairs = (float(sent.copies[s, d]), width), s != d or not sent.kept, [(s, d)]
                    tensor, hot = f"{sent.name}.n{s}.n{d}", float(sent.hot[s, d])
                    self.connect(sender, receiver, tensor, shape, wire=sent.wire, moves=moves, pairs=pairs, hot=hot)

    def costliest(self, cost: Floats) -> Floats:
        """Return the cost of the costliest link between every two nodes [nodes, nodes], of costs [links]."""
        if self._crossed is None:
            self._crossed = self.flows.routes.shares.tocsc()
        nodes, (start, link) = self.instance.cluster.nodes, (self._crossed.indptr, self._crossed.indices)
        most, some = np.zeros(nodes * nodes), np.diff(start) > 0
        if some.any():
            most[some] = np.maximum.reduceat(cost[link], start[:-1][some])
        return most.reshape(nodes, nodes)

    def links(self, pair: tuple[int, int]) -> dict[str, float]:
        """Links on the way from node s to node d, each with the share of the traffic that crosses it."""
        if not self._links:
            routes, nodes = self.flows.routes, self.instance.cluster.nodes
            table = routes.shares.tocoo()
            for link, column, share in zip(table.row.tolist(), table.col.tolist(), table.data.tolist(), strict=True):
                self._links.setdefault(divmod(column, nodes), {})[routes.links[link]] = share
        return self._links[pair]

    def attend(self, tp_group: TpGroup, before: Operation, layer: int) -> Operation:
        """Add attention, of whichever kind, and the sum over its tensor-parallel shards."""
        model = self.instance.model
        attention = self.add(f"L{layer}.attention.g{tp_group.index}", "attention", tp_group.gpus, layer, tp_group.group)
        self.multiply(attention, tp_group.total, attention_weights(model), "attention")
        self.connect(before, attention, f"hidden.g{tp_group.index}", (tp_group.total, model.hidden_size))
        return self.reduce(attention, tp_group, "attention_reduce", "attention", layer)

    def multiply(self, op: Operation, tokens: float, weights: int, part: Part) -> None:
        """Have an operation take 2 FLOPs for every token and weight, and read the weights.

        Parameters
        ----------
        op : Operation
        tokens : float
            Tokens that it works on.
        weights : int
            Values of its matrices.
        part : Part
            Part of the model whose precision they have.
        """
        op.flops, op.bytes_read = 2 * tokens * weights, weights * part_bytes(self.instance.model, part)

    def reduce(self, op: Operation, tp_group: TpGroup, kind: Kind, what: str, layer: int | None = None) -> Operation:
        """Add the all-reduce of what a TP group's GPUs computed in part; without tensor parallelism there is none.

        A TP group that has one GPU left sums what it alone has: all TP groups are alike, so that merged ones are too.

        Parameters
        ----------
        op : Operation
            What computed in part.
        tp_group : TpGroup
            The group whose parts are summed.
        kind : Kind
            Kind of the operation that is added.
        what : str
            Name of the tensor.
        layer : int or None
            Index in the model; None: before or behind all layers.
        """
        if not tp_group.shares:
            return op
        name = f"{kind}.g{tp_group.index}" if layer is None else f"L{layer}.{kind}.g{tp_group.index}"
        total = self.add(name, kind, tp_group.gpus, layer, tp_group.group)
        shape = (tp_group.total, self.instance.model.hidden_size)
        self.connect(op, total, f"{what}_parts.g{tp_group.index}", shape, moves=True, pairs=ring(tp_group.tokens))
        return total

    def finish(self) -> None:
        """Count what every operation reads of its input tensors, on top of weights."""
        for edge in self.dag.edges():
            self.dag.operation(edge.target).bytes_read += edge.bytes
