"""Writes a graph as node-link JSON and as DOT, with everything a checker needs in either."""

from __future__ import annotations

import json
from typing import Any

from moe_placer.dag.labels import TITLES, dimensions, gpu_list, shape_text
from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.dag.palette import MIXED, WARNING, WORST, node_colour

__all__ = ["rounded", "to_dot", "to_json"]

_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: ``json.dumps`` makes one at every call

_DOT_SHAPES = {"computation": "box", "communication": "ellipse", "routing": "parallelogram"}


def to_json(dag: Dag, view: str) -> str:
    """Return the node-link form that ``networkx.node_link_graph`` reads, one operation or edge a line."""
    facts = {**dag.facts, "name": dag.name, "view": view}
    facts["routes"] = {f"{s}>{d}": links for (s, d), links in sorted(dag.routes.items())}
    nodes = ",\n".join(_compact(_operation_row(op)) for op in dag.operations())
    edges = ",\n".join(
        _compact({**_edge_row(data["edge"]), "key": key}) for _, _, key, data in dag.graph.edges(keys=True, data=True)
    )
    head = f'{{"directed":true,"multigraph":true,"graph":{_compact(facts)}'
    return f'{head},\n"nodes":[\n{nodes}\n],\n"edges":[\n{edges}\n]}}\n'


def _compact(row: Any) -> str:
    # Most values of DOT's attributes are integers and lists of them: there, setting up an encoder is most of the work.
    if type(row) is int:
        return str(row)
    if type(row) is list and all(type(value) is int for value in row):
        return str(row).replace(" ", "")
    return _encode(row)


def rounded(value: float) -> float:
    """Twelve digits: more than any check needs, and no noise of summation order in the file."""
    if -1e12 < value < 1e12 and value == (whole := int(value)):
        return whole
    near = float(f"{value:.12g}")
    return int(near) if near.is_integer() and abs(near) < 1e15 else near


def _operation_row(op: Operation) -> dict[str, Any]:
    row: dict[str, Any] = {"id": op.id, "kind": op.kind, "role": op.role, "gpus": list(op.gpus)}
    if op.layer is not None:
        row["layer"] = op.layer
    if op.group is not None:
        row["group"] = op.group
    row["flops"], row["bytes_read"] = rounded(op.flops), rounded(op.bytes_read)
    if op.experts:
        row["experts"] = [list(pair) for pair in op.experts]
    row["inputs"] = {name: [rounded(length) for length in shape] for name, shape in op.inputs.items()}
    row["outputs"] = {name: [rounded(length) for length in shape] for name, shape in op.outputs.items()}
    if op.repeats != 1:
        row["repeats"] = op.repeats
    if op.batch is not None:
        row["batch"] = op.batch
    if op.moved:
        row["moved"] = {how: rounded(size) for how, size in sorted(op.moved.items())}
    for name, value in op.detail.items():
        row[name] = [rounded(x) for x in value] if isinstance(value, tuple) else value
        if isinstance(value, float):
            row[name] = rounded(value)
    return row


def _edge_row(edge: Edge) -> dict[str, Any]:
    row: dict[str, Any] = {"source": edge.source, "target": edge.target, "travel": edge.travel}
    row["style"] = "dashed" if edge.dashed else "dotted" if edge.travel == "order" else "solid"
    if edge.tensor:
        row["tensor"], row["dtype"] = edge.tensor, edge.dtype
        row["shape"], row["bytes"] = [rounded(length) for length in edge.shape], rounded(edge.bytes)
    if edge.routes:
        row["routes"] = [f"{s}>{d}" for s, d in edge.routes]
    if edge.hot:
        row["hot"] = round(edge.hot, 6)
    if edge.parts != 1:
        row["parts"] = edge.parts
    return row


def _quoted(value: object) -> str:
    """Quote for DOT: quotes are escaped, and a backslash is doubled since labels give it a meaning."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'


def to_dot(dag: Dag, view: str) -> str:
    """Return the graph in DOT, one operation or edge a line.

    Beside what Graphviz draws (shape, label, colour, style), every operation and edge carries the attributes of the
    JSON form, lists and mappings written as JSON, so that a program can read it back.
    """
    facts = {**dag.facts, "view": view, "name": dag.name}
    routes = {f"{s}>{d}": links for (s, d), links in sorted(dag.routes.items())}
    head = {"rankdir": "LR", "label": f"{dag.name}: {view}", "facts": _compact(facts), "routes": _compact(routes)}
    # Written line by line: building the same text from pydot's objects takes seven times as long for a full deployment.
    lines = [f"digraph {_quoted(view)} {{", *(f"{key}={_quoted(value)};" for key, value in head.items())]
    per_node = dag.facts["gpus_per_node"]
    for op in dag.operations():
        row = _operation_row(op)
        del row["id"]
        single = len({gpu // per_node for gpu in op.gpus}) == 1
        row["shape"], row["style"] = _DOT_SHAPES[op.role], "filled"
        shapes = " to ".join(filter(None, dimensions(op)))
        row["label"] = f"{op.id}\n{TITLES[op.kind]}\n{gpu_list(op.gpus, 60)}\n{shapes}"
        row["fillcolor"] = node_colour(op.gpus[0] // per_node) if single else MIXED
        lines.append(f"{_quoted(op.id)} [{_attributes(row)}];")
    most = max((edge.bytes for edge in dag.edges()), default=0.0) or 1.0
    for edge in dag.edges():
        row = _edge_row(edge)
        ends = f"{_quoted(row.pop('source'))} -> {_quoted(row.pop('target'))}"
        # "shape" is the tensor's here: Graphviz knows no shapes of edges.
        if edge.tensor:
            row["label"] = f"{edge.tensor}\n{shape_text(edge.shape)}"
        if edge.routes:
            row["penwidth"] = round(0.5 + 3.5 * edge.bytes / most, 2)
        if edge.hot >= WORST:
            row["color"] = WARNING
        lines.append(f"{ends} [{_attributes(row)}];")
    return "\n".join([*lines, "}", ""])


def _attributes(row: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}={_quoted(value if isinstance(value, str) else _compact(value))}" for key, value in row.items()
    )
