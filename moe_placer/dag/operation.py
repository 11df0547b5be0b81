"""Operations, tensors between them, and the typed graph of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import networkx as nx

__all__ = [
    "ALL_TO_ALL",
    "COMMUNICATION",
    "ROUTING",
    "Dag",
    "Edge",
    "Kind",
    "Operation",
    "Role",
    "Shape",
    "role_of",
    "value_bytes",
]

Role = Literal["computation", "communication", "routing"]
Shape = tuple[float, ...]
Kind = Literal[
    "input",
    "split",
    "embedding",
    "embedding_reduce",
    "attention",
    "attention_reduce",
    "mlp",
    "mlp_reduce",
    "gate",
    "gate_scatter",
    "dispatch_send",
    "dispatch_receive",
    "expert",
    "expert_reduce",
    "combine_send",
    "combine_receive",
    "dispatch",
    "combine",
    "aggregate",
    "norm",
    "head",
    "sample",
    "sample_reduce",
    "gather",
    "output",
    # Operators, into which the others are refined.
    "input_layernorm",
    "linear_qkv",
    "linear_qkv_down_proj",
    "latent_gather",
    "linear_q_up_proj",
    "linear_kv_up_proj",
    "rotary",
    "absorb_keys",
    "absorb_values",
    "attention_scores",
    "attention_softmax",
    "attention_context",
    "linear_proj",
    "self_attn_bda",
    "pre_mlp_layernorm",
    "linear_fc1",
    "activation_func",
    "linear_fc2",
    "mlp_bda",
    "router_gating",
    "router_topk",
    "unpermute",
]
Travel = Literal["same-gpu", "nvlink", "network", "order"]

ROUTING = frozenset({"input", "gate", "aggregate", "sample", "output", "router_topk", "unpermute"})
COMMUNICATION = frozenset(
    {
        "split",
        "embedding_reduce",
        "attention_reduce",
        "latent_gather",
        "mlp_reduce",
        "gate_scatter",
        "dispatch_send",
        "dispatch_receive",
        "expert_reduce",
        "combine_send",
        "combine_receive",
        "dispatch",
        "combine",
        "sample_reduce",
        "gather",
    }
)
ALL_TO_ALL: Mapping[str, Kind] = {
    "dispatch_send": "dispatch",
    "dispatch_receive": "dispatch",
    "combine_send": "combine",
    "combine_receive": "combine",
    "dispatch": "dispatch",
    "combine": "combine",
}
INDEX_BYTES = 4.0  # token and expert ids are 32-bit integers on the wire


def role_of(kind: str) -> Role:
    """Return whether an operation computes, communicates, or routes and aggregates."""
    if kind in COMMUNICATION:
        return "communication"
    return "routing" if kind in ROUTING else "computation"


def value_bytes(dtype: str, precision: float) -> float:
    """Bytes of one value: ``tokens`` are ids, ``choices`` pairs of id and weight, others have the model's precision."""
    return {"tokens": INDEX_BYTES, "choices": INDEX_BYTES + precision}.get(dtype, precision)


@dataclass(slots=True)
class Operation:
    """One operation of the deployment, on the GPUs that do it together.

    Attributes
    ----------
    id : str
        Unique in the graph.
    kind : str
        What it does; `role_of` tells its shape in a drawing.
    gpus : tuple of int
        Global GPU ids, ascending; never empty.
    layer : int or None
        Index in the model; None before the first and after the last layer.
    group : int or None
        DP group of the source nodes it serves; None where it serves several.
    flops, bytes_read : float
        In all, over its GPUs, per step: multiplications and additions (attention: of its projections only, since an
        instance states no context length); weights and input tensors.
    experts : tuple of (expert, replica)
        The expert replicas it computes.
    inputs, outputs : mapping
        Shape of every tensor that goes in and comes out, token axis first.
    repeats : int
        How many layers of the model it stands for.
    batch : int or None
        Micro-batch, where the step is divided.
    moved : mapping
        For an operation merged from several: bytes that move inside it, by how they travel.
    hot : float
        For such an operation: as `Edge.hot`, of what moves inside it.
    detail : mapping
        Of an operator: what else is known of it (`moe_placer.dag.operators`).
    """

    id: str
    kind: Kind
    gpus: tuple[int, ...]
    layer: int | None = None
    group: int | None = None
    flops: float = 0.0
    bytes_read: float = 0.0
    experts: tuple[tuple[int, int], ...] = ()
    inputs: dict[str, Shape] = field(default_factory=dict)
    outputs: dict[str, Shape] = field(default_factory=dict)
    repeats: int = 1
    batch: int | None = None
    moved: dict[str, float] = field(default_factory=dict)
    hot: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def role(self) -> Role:
        """Computation, communication, or routing and aggregation."""
        return role_of(self.kind)


@dataclass(slots=True)
class Edge:
    """One tensor on its way from the operation that makes it to one that needs it.

    Attributes
    ----------
    tensor : str
        Its name among the outputs of ``source`` and the inputs of ``target``; empty for an edge that is only an order.
    shape : tuple of float
        Token axis first. Expected token counts are no whole numbers.
    dtype : str
        ``tokens``, ``choices``, or the model's precision.
    bytes : float
    travel : str
        ``same-gpu``, ``nvlink`` or ``network``; ``order`` where nothing travels.
    routes : tuple of (node, node)
        For ``network``: source and destination nodes; `Dag.routes` has their links.
    dashed : bool
        Communication of MHA or gating.
    hot : float
        Cost of the costliest link on its way over that of the layer's busiest link: 1 on the worst, 0 off the network.
    parts : int
        GPUs that a tensor is divided over; ``shape`` is then that of one part, and ``bytes`` are of all.
    """

    source: str
    target: str
    tensor: str
    shape: Shape
    dtype: str
    bytes: float
    travel: Travel
    routes: tuple[tuple[int, int], ...] = ()
    dashed: bool = False
    hot: float = 0.0
    parts: int = 1


@dataclass
class Dag:
    """The typed graph of one step.

    Attributes
    ----------
    name : str
        Of the instance.
    facts : dict
        What a reader needs beside the graph: layers shown, GPUs per node, DP groups, link costs of each MoE layer.
    routes : dict
        ``(s, d)`` to the inter-node links on the way from node s to node d, each with its share of the traffic.
    """

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    routes: dict[tuple[int, int], dict[str, float]] = field(default_factory=dict)

    @cached_property
    def graph(self) -> nx.MultiDiGraph[str]:
        """Vertices are ids with attribute ``operation``, edges have attribute ``edge``; both in the step's order."""
        import networkx as nx  # loaded only by what draws: that takes a tenth of a second

        return nx.MultiDiGraph()

    def add(self, operation: Operation) -> Operation:
        """Add an operation; its id must be new."""
        if operation.id in self.graph:
            raise ValueError(f"two operations with the id {operation.id}")
        self.graph.add_node(operation.id, operation=operation)
        return operation

    def connect(self, edge: Edge) -> None:
        """Add an edge between two operations, and its tensor to what the one makes and the other needs."""
        self.graph.add_edge(edge.source, edge.target, edge=edge)
        if edge.tensor:
            self.operation(edge.source).outputs[edge.tensor] = edge.shape
            self.operation(edge.target).inputs[edge.tensor] = edge.shape

    def operation(self, name: str) -> Operation:
        """Return an operation by its id."""
        found: Operation = self.graph.nodes[name]["operation"]
        return found

    def operations(self, *kinds: Kind) -> Iterator[Operation]:
        """Iterate over the operations of some kinds, or all, in the order of the step."""
        for _, data in self.graph.nodes(data=True):
            if not kinds or data["operation"].kind in kinds:
                yield data["operation"]

    def edges(self) -> Iterator[Edge]:
        """Iterate over all edges, in the order of the step."""
        for _, _, data in self.graph.edges(data=True):
            yield data["edge"]

    def incoming(self, name: str) -> list[Edge]:
        """Edges into an operation."""
        return [data["edge"] for _, _, data in self.graph.in_edges(name, data=True)]

    def outgoing(self, name: str) -> list[Edge]:
        """Edges out of an operation."""
        return [data["edge"] for _, _, data in self.graph.out_edges(name, data=True)]

    def links_on_the_way(self, edge: Edge) -> Mapping[str, float]:
        """Inter-node links that an edge crosses, each with its share of the tensor's bytes summed over its routes."""
        links: dict[str, float] = {}
        for route in edge.routes:
            for link, share in self.routes[route].items():
                links[link] = links.get(link, 0.0) + share
        return links
