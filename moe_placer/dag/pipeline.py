"""Divides a step into two micro-batches and orders them so that one computes while the other communicates."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product

from moe_placer.dag.operation import Dag, Edge, Operation, Shape

__all__ = ["BATCHES", "overlap"]

BATCHES = 2
_ONCE = frozenset({"input", "split", "gather", "output"})  # one step, before it is divided and after it is joined
# The order on a node's GPUs and on the network: two-batch overlap. While one micro-batch's tokens are on the links, the
# other attends or runs its experts; shared experts come just before, where there are any.
_COMPUTE = (("attention", 0), ("attention", 1), ("mlp", 0), ("expert", 0), ("mlp", 1), ("expert", 1))
_DENSE = (("attention", 0), ("mlp", 0), ("attention", 1), ("mlp", 1))
_NETWORK = (("dispatch", 0), ("dispatch", 1), ("combine", 0), ("combine", 1))


def overlap(dag: Dag) -> Dag:
    """Return the graph with every operation of the layers done once for each half of the tokens.

    Edges of travel ``order``, without a tensor, say what waits for what on the same GPUs or the same network; what an
    operation's weights are read for is read once for every micro-batch.
    """
    halves = Dag(dag.name, {**dag.facts, "batches": BATCHES}, dag.routes)
    fed = {op.id: sum(edge.bytes for edge in dag.incoming(op.id)) for op in dag.operations()}
    for op in dag.operations():
        for batch in [None] if op.kind in _ONCE else range(BATCHES):
            halves.add(_share(op, batch, fed[op.id]))
    for edge in dag.edges():
        once = [dag.operation(name).kind in _ONCE for name in (edge.source, edge.target)]
        for batch in [None] if all(once) else range(BATCHES):
            share = 1 if batch is None else BATCHES
            shape: Shape = (edge.shape[0] / share, *edge.shape[1:])
            ends = [
                name if same else _name(name, batch)
                for name, same in zip((edge.source, edge.target), once, strict=True)
            ]
            tensor = edge.tensor if batch is None else f"{edge.tensor}.b{batch}"
            size, look = edge.bytes / share, (edge.travel, edge.routes, edge.dashed, edge.hot)
            halves.connect(Edge(ends[0], ends[1], tensor, shape, edge.dtype, size, *look))
    for source, target in _orders(halves):
        halves.connect(Edge(source.id, target.id, "", (), "", 0.0, "order"))
    return halves


def _name(name: str, batch: int | None) -> str:
    return name if batch is None else f"{name}.b{batch}"


def _share(op: Operation, batch: int | None, fed: float) -> Operation:
    share = 1 if batch is None else BATCHES
    weights = op.bytes_read - fed
    if op.kind == "embedding":
        weights /= share  # rows that are looked up, one for every token
    made = Operation(_name(op.id, batch), op.kind, op.gpus, op.layer, op.group, op.flops / share, 0.0, op.experts)
    made.bytes_read = weights + fed / share
    made.repeats, made.batch, made.hot = op.repeats, batch, op.hot
    made.moved = {how: size / share for how, size in op.moved.items()}
    return made


def _orders(dag: Dag) -> Iterator[tuple[Operation, Operation]]:
    """Neighbours in the order of every node's GPUs, and in the order of the network; each pair once."""
    known: set[tuple[str, str]] = set()
    for stream in _streams(dag).values():
        for before, after in pairwise(stream):
            for first, then in product(before, after):
                if (first.id, then.id) not in known:
                    known.add((first.id, then.id))
                    yield first, then


def _streams(dag: Dag) -> dict[int | str, list[list[Operation]]]:
    """List what every node's GPUs, and the network, do in order; what is in one list runs side by side."""
    per_node, moe = dag.facts["gpus_per_node"], dag.facts["links"]
    table: dict[tuple[int | None, str, int | None], list[Operation]] = {}
    for op in dag.operations():
        table.setdefault((op.layer, op.kind, op.batch), []).append(op)
    streams: dict[int | str, list[list[Operation]]] = {}
    for layer in dag.facts["layers"]:
        for kind, batch in _COMPUTE if layer in moe else _DENSE:
            side_by_side: dict[int, list[Operation]] = {}
            for op in table.get((layer, kind, batch), []):
                for node in {gpu // per_node for gpu in op.gpus}:
                    side_by_side.setdefault(node, []).append(op)
            for node, ops in side_by_side.items():
                streams.setdefault(node, []).append(ops)
        for kind, batch in _NETWORK:
            if ops := table.get((layer, kind, batch), []):
                streams.setdefault("network", []).append(ops)
    return streams
