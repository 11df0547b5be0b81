"""Merges operations of a graph into coarser ones: sums of what they do, tensors joined along the token axis."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from moe_placer.dag.operation import Dag, Edge, Operation, Shape

__all__ = ["Block", "contract", "join"]

Block = tuple[str, Hashable]  # kind of the coarse operation, and the rest of what sets it apart


def join(shapes: Iterable[Shape]) -> Shape:
    """Join tensors along the token axis; other axes become means, weighted by tokens, so that their product is kept."""
    rows = list(shapes)
    tokens = sum(shape[0] for shape in rows)
    rest = [
        sum(shape[0] * shape[axis] for shape in rows) / tokens if tokens else rows[0][axis]
        for axis in range(1, len(rows[0]))
    ]
    return (tokens, *(round(length, 9) for length in rest))


def contract(
    dag: Dag, block_of: Callable[[Operation], Block], repeats: Callable[[Operation], int] | None = None
) -> Dag:
    """Merge all operations of one block into one.

    Tensors between two blocks are merged where their names agree up to the first dot. What moves inside a block is
    counted in ``moved`` of its operation.

    Raises
    ------
    ValueError
        Blocks of which each needs what the other makes: the result would have a cycle (found when it is checked).
    """
    coarse = Dag(dag.name, {**dag.facts, "contracted": True}, dag.routes)
    names: dict[str, str] = {}
    for op in dag.operations():
        kind, key = block_of(op)
        parts = key if isinstance(key, tuple) else (key,)
        name = ".".join([kind, *(str(part) for part in parts if part is not None)])
        names[op.id] = name
        if name in coarse.graph:
            _absorb(coarse.operation(name), op)
        else:
            new = Operation(name, op.kind, op.gpus, op.layer, op.group, op.flops, op.bytes_read, op.experts)
            new.kind = kind  # type: ignore[assignment]
            new.repeats = repeats(op) if repeats else 1
            coarse.add(new)
    _join_edges(dag, coarse, names)
    return coarse


def _absorb(into: Operation, op: Operation) -> None:
    into.gpus = tuple(sorted({*into.gpus, *op.gpus}))
    into.flops += op.flops
    into.bytes_read += op.bytes_read
    into.experts += op.experts
    if into.group != op.group:
        into.group = None
    if into.layer != op.layer:
        into.layer = None


def _join_edges(dag: Dag, coarse: Dag, names: dict[str, str]) -> None:
    bundles: dict[tuple[str, str, str], list[Edge]] = {}
    for edge in dag.edges():
        source, target = names[edge.source], names[edge.target]
        if source == target:
            op = coarse.operation(source)
            op.moved[edge.travel] = op.moved.get(edge.travel, 0.0) + edge.bytes
            op.hot = max(op.hot, edge.hot)
            op.bytes_read -= edge.bytes  # read and written inside
        else:
            bundles.setdefault((source, target, edge.tensor.partition(".")[0]), []).append(edge)
    # One output tensor per family and set of parts: an all-reduce's result goes to several, a dispatch is divided.
    parts: dict[tuple[str, str], list[frozenset[tuple[str, str]]]] = {}
    for (source, target, family), edges in bundles.items():
        known = parts.setdefault((source, family), [])
        made = frozenset((edge.source, edge.tensor) for edge in edges)
        if made not in known:
            known.append(made)
        tensor = family if known.index(made) == 0 else f"{family}.{known.index(made)}"
        coarse.connect(
            Edge(
                source,
                target,
                # A target may get parts of one family from several blocks.
                f"{tensor}@{source}",
                join(edge.shape for edge in edges),
                edges[0].dtype,
                sum(edge.bytes for edge in edges),
                max((edge.travel for edge in edges), key=("same-gpu", "nvlink", "network").index),
                tuple(sorted({route for edge in edges for route in edge.routes})),
                any(edge.dashed for edge in edges),
                max(edge.hot for edge in edges),
            )
        )
