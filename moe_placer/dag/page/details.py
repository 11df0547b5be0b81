"""The data of a graph's page: columns, in which everything that recurs is stated once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from moe_placer.dag.labels import TITLES, cost_note
from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.dag.palette import EQUAL, WARNING, WORST, node_colour, node_hatch, node_stripe
from moe_placer.dag.texts import rounded

__all__ = ["details_of"]


class _Table:
    """Values in the order of their first use; columns hold their places."""

    def __init__(self) -> None:
        self._places: dict[Hashable, int] = {}

    def place(self, value: Hashable) -> int:
        return self._places.setdefault(value, len(self._places))

    def values(self) -> list[Any]:
        return list(self._places)


def details_of(dag: Dag, view: str) -> dict[str, Any]:
    """Return a graph's operations, tensors, routes and link costs as lists that JSON can hold.

    Operations and edges are columns (lists of one length); ``gpus``, ``shape``, ``tensor``, ``dtype``, ``travel`` and
    ``routes`` are places in the table of that name. Figures are the graph's own, to twelve digits as in the JSON file.
    """
    links: _Table = _Table()
    costs: dict[str, dict[str, float]] = {str(layer): row for layer, row in dag.facts["links"].items()}
    for layer in costs.values():
        for link in layer:
            links.place(link)
    edges, tables = _edge_columns(dag)
    routes = {
        f"{s}>{d}": [[links.place(link), rounded(share)] for link, share in way.items()]
        for (s, d), way in sorted(dag.routes.items())
    }
    return {
        "name": dag.name,
        "view": view,
        "gpusPerNode": dag.facts["gpus_per_node"],
        "nodes": [[node_colour(node), node_hatch(node), node_stripe(node)] for node in range(dag.facts["nodes"])],
        "worst": WORST,
        "equal": EQUAL,
        "warning": WARNING,
        **_operation_columns(dag),
        "edges": edges,
        **tables,
        "pairs": routes,
        "links": links.values(),
        "perToken": [[rounded(figure) for figure in dag.facts["per_token"][link]] for link in links.values()],
        "costNote": cost_note(dag),
        "costs": {layer: {links.place(k): rounded(v) for k, v in row.items()} for layer, row in costs.items()},
    }


def _operation_columns(dag: Dag) -> dict[str, Any]:
    ops: list[Operation] = list(dag.operations())
    gpus, kinds = _Table(), _Table()
    columns: dict[str, list[Any]] = {
        "id": [op.id for op in ops],
        "kind": [kinds.place((op.kind, TITLES[op.kind], op.role)) for op in ops],
        "layer": [op.layer for op in ops],
        "group": [op.group for op in ops],
        "gpus": [gpus.place(op.gpus) for op in ops],
        "flops": [rounded(op.flops) for op in ops],
        "bytesRead": [rounded(op.bytes_read) for op in ops],
        "experts": [op.experts for op in ops],
        "repeats": [op.repeats for op in ops],
        "batch": [op.batch for op in ops],
        "moved": [{how: rounded(size) for how, size in sorted(op.moved.items())} for op in ops],
    }
    return {"operations": columns, "kinds": kinds.values(), "gpus": [_runs(ids) for ids in gpus.values()]}


def _runs(gpus: Sequence[int]) -> list[list[int]]:
    """Write ascending ids as first and last of every run."""
    runs: list[list[int]] = []
    for gpu in gpus:
        if runs and gpu == runs[-1][1] + 1:
            runs[-1][1] = gpu
        else:
            runs.append([gpu, gpu])
    return runs


def _edge_columns(dag: Dag) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    edges: list[Edge] = list(dag.edges())
    index = {op.id: place for place, op in enumerate(dag.operations())}
    tables = {name: _Table() for name in ("tensors", "shapes", "dtypes", "travels", "routes")}
    columns: dict[str, list[Any]] = {
        "source": [index[edge.source] for edge in edges],
        "target": [index[edge.target] for edge in edges],
        "tensor": [tables["tensors"].place(edge.tensor) for edge in edges],
        "shape": [tables["shapes"].place(tuple(map(rounded, edge.shape))) for edge in edges],
        "dtype": [tables["dtypes"].place(edge.dtype) for edge in edges],
        "bytes": [rounded(edge.bytes) for edge in edges],
        "travel": [tables["travels"].place(edge.travel) for edge in edges],
        "routes": [tables["routes"].place(tuple(f"{s}>{d}" for s, d in edge.routes)) for edge in edges],
        "dashed": [int(edge.dashed) for edge in edges],
        "hot": [round(edge.hot, 6) for edge in edges],
    }
    return columns, {name: table.values() for name, table in tables.items()}
