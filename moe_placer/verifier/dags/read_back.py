"""Reads DAGs back from their files, believing nothing about what is in them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_placer.errors import InputError, Mistake
from moe_placer.files import read_bounded, refuse_hidden_characters
from moe_placer.verifier.dags.dag_rules import DagViolation

__all__ = ["ROLES", "DagFile", "Row", "compare_twins", "find_dags", "read_dag", "read_dot"]

Row = dict[str, Any]
MOST_BYTES = 400_000_000
ROLES = {
    **dict.fromkeys(("input", "gate", "aggregate", "sample", "output"), "routing"),
    **dict.fromkeys(("embedding", "attention", "mlp", "expert", "norm", "head"), "computation"),
    **dict.fromkeys(
        (
            *("split", "gather", "gate_scatter", "dispatch", "combine"),
            *("dispatch_send", "dispatch_receive", "combine_send", "combine_receive"),
            *("embedding_reduce", "attention_reduce", "mlp_reduce", "expert_reduce", "sample_reduce"),
        ),
        "communication",
    ),
}
TRAVELS = ("same-gpu", "nvlink", "network", "order")
_DRAWN = {"computation": "box", "communication": "ellipse", "routing": "parallelogram"}
_LOOKS = {"label", "color", "fillcolor", "penwidth", "style"}  # of DOT alone; an edge's style is in both

# The dialect that is written: one statement a line, every value quoted. A whole grammar (pydot) takes 6 s for the 900
# statements of one layer, and a deployment has 54,000; what is not of this dialect is refused, not guessed.
_TEXT = r'"((?:[^"\\]|\\.)*)"'
_ATTRIBUTE = re.compile(rf"([a-z_]+)={_TEXT}(?:, )?")
_STATEMENT = re.compile(rf"{_TEXT}(?: -> {_TEXT})? \[(.*)\];")
_FACT = re.compile(rf"([a-z_]+)={_TEXT};")
_HEAD = re.compile(rf"digraph {_TEXT} \{{")
_ESCAPE = re.compile(r"\\(.)")


@dataclass
class DagFile:
    """What a DAG's .json says: facts of the whole, operations by id, edges; well-formed ones only."""

    name: str
    facts: Row
    operations: dict[str, Row] = field(default_factory=dict)
    edges: list[Row] = field(default_factory=list)
    wrong: list[DagViolation] = field(default_factory=list)
    beside: set[str] = field(default_factory=set)  # keys of the file that are none of these, or are wrong

    def breach(self, rule: str, where: str, message: str) -> DagViolation:
        """Return a violation in this DAG."""
        return DagViolation(rule, self.name, where, message)


def find_dags(folder: Path, what: str = "dag") -> list[str]:
    """Name the DAGs of a folder: files ``*_dag.json`` and ``*_dag.dot``, or of other names, without their suffix."""
    return sorted({path.stem for suffix in ("json", "dot") for path in folder.glob(f"*_{what}.{suffix}")})


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def read_dag(path: Path, roles: Mapping[str, str] = ROLES) -> DagFile:
    """Read a .json; rows with wrong fields are told in ``wrong`` and left out; ``roles`` has the kinds it may have.

    Raises
    ------
    InputError
        It is missing, no JSON, or no graph in node-link form.
    """
    raw = read_bounded(path, MOST_BYTES, "a DAG that `moe-placer dag` has written")
    try:
        text = raw.decode("utf-8")
        content = _DECODER.decode(text)
        refuse_hidden_characters(text, content, "a DAG that `moe-placer dag` has written", path)
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(Mistake(f"no JSON ({str(error)[:100]})", "a DAG in node-link form", file=path)) from None
    lists = isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("nodes", "edges"))
    if not lists or not isinstance(content.get("graph"), dict):
        raise InputError(Mistake("no graph", "node-link form with graph, nodes and edges", file=path))
    dag = DagFile(path.stem, content["graph"])
    others = {key: value for key, value in content.items() if key not in {"graph", "nodes", "edges"}}
    form = {"directed": True, "multigraph": True}
    dag.beside = {key for key in others | form if others.get(key) is not form.get(key, key)}
    for row in content["nodes"]:
        dag.wrong += _take_operation(dag, row, roles)
    for row in content["edges"]:
        dag.wrong += _take_edge(dag, row)
    return dag


def _take_operation(dag: DagFile, row: Any, roles: Mapping[str, str]) -> Iterator[DagViolation]:
    name = row.get("id") if isinstance(row, dict) else None
    if not isinstance(name, str):
        yield dag.breach("dag-form", "", f"an operation without a text as id: {_shown(row)}")
        return
    if name in dag.operations:
        yield dag.breach("dag-form", name, "two operations have this id")
        return
    if not isinstance(row.get("gpus"), list) or not row["gpus"]:
        yield dag.breach("dag-gpus", name, "no GPU is assigned, required is at least one")
        row = {**row, "gpus": []}
    mistakes = list(_operation_mistakes(row, roles))
    for mistake in mistakes:
        yield dag.breach("dag-form", name, mistake)
    if not mistakes:
        dag.operations[name] = row


def _role_mistakes(row: Row, roles: Mapping[str, str]) -> Iterator[str]:
    role = roles.get(row["kind"]) if isinstance(row.get("kind"), str) else None
    if role is None:
        yield f"kind is {_shown(row.get('kind'))}, required is one of {', '.join(sorted(roles))}"
    elif row.get("role") != role:
        yield f"role is {_shown(row.get('role'))}, required for {row['kind']} is {role}"


def _operation_mistakes(row: Row, roles: Mapping[str, str]) -> Iterator[str]:
    yield from _role_mistakes(row, roles)
    gpus = row["gpus"]
    if not all(_whole(gpu) for gpu in gpus) or gpus != sorted(set(gpus)):
        yield "gpus are not whole numbers in ascending order"
    for key in ("layer", "group", "batch", "repeats"):
        if key in row and not _whole(row[key]):
            yield f"{key} is {_shown(row[key])}, required is a whole number"
    for key in ("flops", "bytes_read"):
        if not _number(row.get(key)):
            yield f"{key} is {_shown(row.get(key))}, required is a number, 0 or more"
    for key in ("inputs", "outputs"):
        table = row.get(key)
        if not isinstance(table, dict) or not all(_is_shape(shape) for shape in table.values()):
            yield f"{key} are not shapes by tensor"
    if not _are_pairs(row.get("experts", [])):
        yield "experts are not pairs of expert and replica"


def _are_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(_whole, pair)) for pair in value
    )


def _take_edge(dag: DagFile, row: Any) -> Iterator[DagViolation]:
    if not isinstance(row, dict) or not all(isinstance(row.get(end), str) for end in ("source", "target")):
        yield dag.breach("dag-form", "", f"an edge without two ids as ends: {_shown(row)}")
        return
    mistakes = list(_edge_mistakes(dag, row))
    for mistake in mistakes:
        yield dag.breach("dag-form", _ends(row), mistake)
    if not mistakes:
        dag.edges.append(row)


def _edge_mistakes(dag: DagFile, row: Row) -> Iterator[str]:
    for end in ("source", "target"):
        if row[end] not in dag.operations:
            yield f"its {end} is no well-formed operation"
    if row.get("travel") not in TRAVELS:
        yield f"travel is {_shown(row.get('travel'))}, required is one of {', '.join(TRAVELS)}"
    if row.get("style") not in {"solid", "dashed", "dotted"}:
        yield f"style is {_shown(row.get('style'))}, required is solid, dashed or dotted"
    routes = row.get("routes", [])
    if not isinstance(routes, list) or not all(
        isinstance(r, str) and re.fullmatch(r"\d{1,9}>\d{1,9}", r) for r in routes
    ):
        yield "routes are not pairs of nodes such as 0>1"
    if row.get("travel") == "order":
        if "tensor" in row:
            yield "an order carries no tensor"
        return
    if not isinstance(row.get("tensor"), str) or not isinstance(row.get("dtype"), str):
        yield "tensor and dtype are not texts"
    if not _is_shape(row.get("shape")) or not _number(row.get("bytes")):
        yield "shape and bytes are not numbers, 0 or more"


def _ends(row: Row) -> str:
    return f"{row['source']} -> {row['target']}"


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e300 and math.isfinite(value)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_number, value))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_dot(path: Path) -> tuple[Row, dict[str, Row], list[Row]]:
    """Read a .dot: facts, attributes of every operation by id, attributes of every edge; all as texts.

    Raises
    ------
    InputError
        It is missing, or a line is not of the dialect that `moe-placer dag` writes.
    """
    raw = read_bounded(path, MOST_BYTES, "a DAG that `moe-placer dag` has written")
    lines = raw.decode("utf-8", errors="replace").split("\n")
    facts: Row = {}
    operations: dict[str, Row] = {}
    edges: list[Row] = []
    if not _HEAD.fullmatch(lines[0]) or lines[-2:] != ["}", ""]:
        raise InputError(Mistake("no whole digraph", "a DAG that `moe-placer dag` has written", file=path))
    for number, line in enumerate(lines[1:-2], start=2):
        statement = _STATEMENT.fullmatch(line)
        fact = None if statement else _FACT.fullmatch(line)
        if fact:
            facts[fact[1]] = _unquoted(fact[2])
            continue
        attributes = _attributes(statement[3]) if statement else None
        if statement is None or attributes is None:
            raise InputError(Mistake(_shown(line), 'one statement, `"id" [key="value"];`', file=path, line=number))
        if statement[2] is None:
            operations[_unquoted(statement[1])] = attributes
        else:
            edges.append({"source": _unquoted(statement[1]), "target": _unquoted(statement[2]), **attributes})
    return facts, operations, edges


def _attributes(text: str) -> Row | None:
    """Take a list of attributes apart; None where something is left over."""
    found, end = {}, 0
    for match in _ATTRIBUTE.finditer(text):
        if match.start() != end:
            return None
        found[match[1]] = _unquoted(match[2])
        end = match.end()
    return found if end == len(text) else None


def _unquoted(text: str) -> str:
    return _ESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], text) if "\\" in text else text


def compare_twins(dag: DagFile, path: Path) -> Iterator[DagViolation]:
    """Rule ``dag-twin``: the .dot has the operations, edges and facts of the .json, and draws them as agreed."""
    facts, operations, edges = read_dot(path)
    for key, required in (
        ("facts", {k: v for k, v in dag.facts.items() if k != "routes"}),
        ("routes", dag.facts.get("routes")),
    ):
        if _parsed(facts.get(key)) != required:
            yield dag.breach("dag-twin", "", f"{key} of the .dot are not those of the .json")
    for name in sorted(operations.keys() ^ dag.operations.keys()):
        yield dag.breach("dag-twin", name, f"only the {'.dot' if name in operations else '.json'} has this operation")
    for name in operations.keys() & dag.operations.keys():
        row, twin = dag.operations[name], dict(operations[name])
        if (drawn := twin.pop("shape", "")) != _DRAWN[row["role"]]:
            yield dag.breach("dag-twin", name, f"drawn as {drawn}, required for {row['role']} is {_DRAWN[row['role']]}")
        for key in _unlike({**row, "id": None}, {**twin, "id": None}, _LOOKS):
            yield dag.breach("dag-twin", name, f"{key} differs between .dot and .json")
    ours, theirs = sorted(dag.edges, key=_order), sorted(edges, key=_order)
    if [_order(row) for row in ours] != [_order(row) for row in theirs]:
        odd = sorted({_order(row) for row in ours} ^ {_order(row) for row in theirs})
        where = " -> ".join(odd[0][:2]) if odd else ""
        yield dag.breach("dag-twin", where, ".dot and .json have different edges")
        return
    for row, twin in zip(ours, theirs, strict=True):
        for key in _unlike({k: v for k, v in row.items() if k != "key"}, twin, _LOOKS - {"style"}):
            yield dag.breach("dag-twin", _ends(row), f"{key} differs between .dot and .json")


def _order(row: Row) -> tuple[str, str, str]:
    return row["source"], row["target"], row.get("tensor", "")


def _unlike(row: Row, twin: Row, looks: set[str]) -> list[str]:
    """Name the fields that differ; ``looks`` are DOT's own."""
    keys = (row.keys() | twin.keys()) - looks
    return sorted(key for key in keys if not _same(row.get(key), twin.get(key)))


def _same(value: Any, text: Any) -> bool:
    if value is None or text is None:
        return value is text
    return bool(text == value if isinstance(value, str) else _parsed(text) == value)


def _parsed(text: Any) -> Any:
    try:
        return _DECODER.decode(text)
    except (TypeError, ValueError, RecursionError):
        return None
