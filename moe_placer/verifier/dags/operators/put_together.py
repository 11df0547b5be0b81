"""Puts operators together again: the coarse graph that they were made from, for the rules that it must keep."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from moe_placer.verifier.dags.operators.required import ENTRIES, FLOATING
from moe_placer.verifier.dags.read_back import ROLES, DagFile, Row

__all__ = ["DASHED", "DETAIL", "OPERATOR_FACTS", "Whole", "family", "put_together"]

DETAIL = {"part_of", "module", "op", "weight", "vector_flops", "cache_bytes"}
OPERATOR_FACTS = {"phase", "context", "receive"}
_PART_OF = re.compile(rf"L\d+\.({'|'.join(ENTRIES)})\..+")
DASHED = {"attention_reduce", "latent_gather", "gate_scatter"}  # communication of MHA and gating
_CORE = {"attention_scores", "attention_context"}  # FLOPs that depend on the context, which the coarse graph leaves out


def family(tensor: str) -> str:
    """Return what a tensor is, without which group or node it belongs to."""
    return tensor.partition(".")[0]


@dataclass
class Whole:
    """Operators sorted into their operations.

    Attributes
    ----------
    coarse : DagFile
        What they come to together; edges between operators of one operation are in no edge of it.
    parts : dict
        Id of an operation to its operators by kind.
    kinds : dict
        Id of an operation to its kind.
    floating : dict
        Id to row of the norms and residual adds that belong to none.
    incoming : dict
        Id of an operator to the edges into it.
    """

    coarse: DagFile
    parts: dict[str, dict[str, Row]] = field(default_factory=lambda: defaultdict(dict))
    kinds: dict[str, str] = field(default_factory=dict)
    floating: dict[str, Row] = field(default_factory=dict)
    incoming: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))


def put_together(dag: DagFile) -> Whole:
    """Sort operators, and make one operation of those that name one; what cannot be sorted is in ``coarse.wrong``."""
    facts = {key: value for key, value in dag.facts.items() if key not in OPERATOR_FACTS}
    whole = Whole(DagFile(dag.name, facts, beside=dag.beside))
    for row in dag.edges:
        whole.incoming[row["target"]].append(row)
    for name, row in dag.operations.items():
        _sort(dag, whole, name, row)
    holder = {name: _holder(dag, whole, name) for name in dag.operations}
    for name, row in dag.operations.items():
        if holder[name] is None:
            whole.coarse.wrong.append(dag.breach("dag-operators", name, "it stands behind no operation"))
        elif "part_of" in row:
            _take_in(dag, whole, row)
    _connect(dag, whole, holder)
    return whole


def _sort(dag: DagFile, whole: Whole, name: str, row: Row) -> None:
    part = row.get("part_of")
    if part is None and row["kind"] in FLOATING:
        whole.floating[name] = row
    elif part is None and row["kind"] in ROLES and row["kind"] not in ENTRIES:
        whole.coarse.operations[name] = {
            **{key: value for key, value in row.items() if key not in DETAIL}, "inputs": {}, "outputs": {},
        }  # fmt: skip
    elif not isinstance(part, str) or not (found := _PART_OF.fullmatch(part)) or row["kind"] in ROLES:
        message = f"part_of is {part!r}, required for {row['kind']} is an operation that is taken apart"
        whole.coarse.wrong.append(dag.breach("dag-operators", name, message))
    elif row["kind"] in whole.parts[part]:
        whole.coarse.wrong.append(dag.breach("dag-operators", name, f"a second {row['kind']} of {part}"))
    else:
        whole.parts[part][row["kind"]] = row
        whole.kinds[part] = found[1]


def _holder(dag: DagFile, whole: Whole, name: str) -> str | None:
    """Return the operation that an operator belongs to; of a norm or residual add, the one whose result it takes."""
    seen: set[str] = set()
    while name in whole.floating and name not in seen:
        seen.add(name)
        first = FLOATING[whole.floating[name]["kind"]][0]
        sources = [row["source"] for row in whole.incoming[name] if family(row.get("tensor", "")) == first]
        if len(sources) != 1:
            return None
        name = sources[0]
    row = dag.operations[name]
    return None if name in whole.floating else str(row.get("part_of", name))


def _take_in(dag: DagFile, whole: Whole, row: Row) -> None:
    """Add an operator to its operation."""
    part = row["part_of"]
    if whole.parts[part].get(row["kind"]) is not row:
        return  # told already
    same: dict[str, Any] = {key: row[key] for key in ("gpus", "layer", "group", "experts") if key in row}
    kind = whole.kinds[part]
    known = whole.coarse.operations.get(part)
    if known is None:
        empty: dict[str, Any] = {"flops": 0.0, "bytes_read": 0.0, "inputs": {}, "outputs": {}}
        known = whole.coarse.operations[part] = {"id": part, "kind": kind, "role": ROLES[kind], **same, **empty}
    elif {key: known[key] for key in ("gpus", "layer", "group", "experts") if key in known} != same:
        message = f"GPUs, layer, DP group or experts are not those of the other operators of {part}"
        whole.coarse.wrong.append(dag.breach("dag-operators", row["id"], message))
    known["flops"] += 0.0 if row["kind"] in _CORE else row["flops"]
    known["bytes_read"] += row["bytes_read"]


def _connect(dag: DagFile, whole: Whole, holder: dict[str, str | None]) -> None:
    """Keep the edges between operations; what operators of one hand on is not read from outside."""
    counted: Counter[tuple[str, str]] = Counter()
    coarse = whole.coarse
    for row in dag.edges:
        source, target = holder[row["source"]], holder[row["target"]]
        if row["target"] in whole.floating or source not in coarse.operations or target not in coarse.operations:
            continue
        if source == target:
            coarse.operations[target]["bytes_read"] -= row.get("bytes", 0.0)
            continue
        kept = {**row, "source": source, "target": target, "key": counted[source, target]}
        kept.pop("parts", None)
        # The coarse graph has the norm or residual add behind a collective as part of it.
        ends = {coarse.operations[source]["kind"], coarse.operations[target]["kind"]}
        kept["style"] = "dashed" if ends & DASHED else row["style"]
        counted[source, target] += 1
        coarse.edges.append(kept)
        if "tensor" in row:
            coarse.operations[source]["outputs"][row["tensor"]] = row["shape"]
            coarse.operations[target]["inputs"][row["tensor"]] = row["shape"]
