"""Checks that hold for any deployment: no cycle, no loose end, tensors that fit where they arrive."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import networkx as nx

from moe_placer.instance import Instance
from moe_placer.verifier.capacity import wire_bytes
from moe_placer.verifier.dags.dag_rules import DagViolation, differs
from moe_placer.verifier.dags.read_back import DagFile, Row
from moe_placer.verifier.model_sizes import BYTES_PER_VALUE, precision_of

__all__ = ["ALL_TO_ALL", "FORWARDED", "check_acyclic", "check_connected", "check_shapes"]

# What goes between nodes, and the field that says in which data type.
ALL_TO_ALL = {
    ("dispatch_send", "dispatch_receive"): "dispatch_dtype",
    ("combine_send", "combine_receive"): "combine_dtype",
}
# What moves inside a node where it gets one copy of a token: to all of its experts, and their results to be summed.
FORWARDED = {
    *(("dispatch_receive", "expert"), ("dispatch", "expert"), ("expert", "combine_send"), ("expert", "combine")),
    *(("expert_reduce", "combine_send"), ("expert_reduce", "combine")),
}
INDEX_BYTES = 4.0  # token and expert ids are 32-bit integers


def _graph(dag: DagFile) -> nx.DiGraph[str]:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(dag.operations)
    graph.add_edges_from((row["source"], row["target"]) for row in dag.edges)
    return graph


def check_acyclic(dag: DagFile) -> Iterator[DagViolation]:
    """Rule ``dag-acyclic``."""
    graph = _graph(dag)
    if not nx.is_directed_acyclic_graph(graph):
        cycle = [edge[0] for edge in nx.find_cycle(graph)]
        shown = " -> ".join([*cycle[:6], *(["..."] if len(cycle) > 6 else []), cycle[0]])
        yield dag.breach("dag-acyclic", cycle[0], f"a cycle of {len(cycle)} operations: {shown}")


def check_connected(dag: DagFile) -> Iterator[DagViolation]:
    """Rule ``dag-connected``: along tensors; what only an order leads to has nothing to work on."""
    forward: dict[str, list[str]] = defaultdict(list)
    backward: dict[str, list[str]] = defaultdict(list)
    for row in dag.edges:
        if row["travel"] != "order":
            forward[row["source"]].append(row["target"])
            backward[row["target"]].append(row["source"])
    ends = {kind: [name for name, op in dag.operations.items() if op["kind"] == kind] for kind in ("input", "output")}
    fed, used = _reached(ends["input"], forward), _reached(ends["output"], backward)
    for name in dag.operations:
        if name not in fed:
            yield dag.breach("dag-connected", name, "no input leads to it")
        if name not in used:
            yield dag.breach("dag-connected", name, "it leads to no output")


def _reached(begin: list[str], following: dict[str, list[str]]) -> set[str]:
    seen, todo = set(begin), list(begin)
    while todo:
        for name in following[todo.pop()]:
            if name not in seen:
                seen.add(name)
                todo.append(name)
    return seen


def check_shapes(dag: DagFile, instance: Instance) -> Iterator[DagViolation]:
    """Rule ``dag-shapes``: both ends of an edge know its tensor by one shape, and its bytes are those of the shape.

    Values have the data type of hidden states, but for tokens on their way to experts and back, between nodes and where
    a node forwards them; ids have 4 bytes, choices an id and a weight.
    """
    carried: dict[str, dict[str, set[str]]] = {"inputs": defaultdict(set), "outputs": defaultdict(set)}
    for row in dag.edges:
        if row["travel"] == "order":
            continue
        for end, table in (("source", "outputs"), ("target", "inputs")):
            shape = dag.operations[row[end]][table].get(row["tensor"])
            carried[table][row[end]].add(row["tensor"])
            if shape == row["shape"]:
                continue
            if shape is None or len(shape) != len(row["shape"]) or any(map(differs, shape, row["shape"])):
                where = f"{row['source']} -> {row['target']}"
                message = f"{row['tensor']} has shape {row['shape']}, but {shape} among the {table} of its {end}"
                yield dag.breach("dag-shapes", where, message)
        yield from _check_bytes(dag, row, instance)
    for name, op in dag.operations.items():
        for table, what in (("inputs", "needs"), ("outputs", "makes")):
            for tensor in op[table].keys() - carried[table][name]:
                yield dag.breach("dag-shapes", name, f"it {what} {tensor}, which no edge carries")


def _field_of_wire(source: str, target: str, instance: Instance) -> str | None:
    """Name the field that says in which data type a tensor travels; None where it has that of hidden states.

    Where a node gets one copy of a token, all that leaves a receiver is forwarded, and all that enters combine is
    results to be summed, whatever operator of an expert is at the other end.
    """
    if (source, target) in ALL_TO_ALL or instance.placement.dispatch != "per-node":
        return ALL_TO_ALL.get((source, target))
    if source in {"dispatch_receive", "dispatch"}:
        return "dispatch_dtype"
    return "combine_dtype" if target in {"combine_send", "combine"} else None


def _check_bytes(dag: DagFile, row: Row, instance: Instance) -> Iterator[DagViolation]:
    where, precision = f"{row['source']} -> {row['target']}", precision_of(instance.model, "activations")
    of_model = BYTES_PER_VALUE[precision]
    sizes = {precision: of_model, "tokens": INDEX_BYTES, "choices": INDEX_BYTES + of_model}
    ends = dag.operations[row["source"]]["kind"], dag.operations[row["target"]]["kind"]
    if field := _field_of_wire(*ends, instance):
        own = getattr(instance.placement, field)
        name = instance.model.dtype if own is None else f"{own}+scales" if own in {"fp8", "fp4"} else own
        sizes = {name: wire_bytes(instance.model, own) / instance.model.hidden_size}
    if row["dtype"] not in sizes:
        yield dag.breach("dag-shapes", where, f"dtype is {row['dtype']!r}, required is one of {', '.join(sizes)}")
    elif differs(row["bytes"], size := row.get("parts", 1) * math.prod(row["shape"]) * sizes[row["dtype"]]):
        yield dag.breach("dag-shapes", where, f"{row['bytes']:,.0f} bytes, required for its shape are {size:,.0f}")
