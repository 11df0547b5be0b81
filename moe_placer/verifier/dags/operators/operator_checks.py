"""Checks a graph of operators: shapes on every edge, costs of every operator, norms and residuals of every layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from moe_placer.verifier.dags.dag_rules import DagViolation, differs
from moe_placer.verifier.dags.operators.operator_row import Operator, Sequence
from moe_placer.verifier.dags.operators.put_together import DASHED, DETAIL, Whole, family, put_together
from moe_placer.verifier.dags.operators.required import (
    ENTRIES,
    EXITS,
    KEPT,
    ROLES,
    Work,
    operators_of,
)
from moe_placer.verifier.dags.operators.residuals import check_residuals
from moe_placer.verifier.dags.read_back import ROLES as COARSE
from moe_placer.verifier.dags.read_back import DagFile, Row, compare_twins, find_dags, read_dag
from moe_placer.verifier.dags.structure import check_acyclic, check_connected, check_shapes
from moe_placer.verifier.deployment import Deployment
from moe_placer.verifier.model_sizes import BYTES_PER_VALUE, precision_of
from moe_placer.verifier.sending import sends_every_choice

__all__ = ["check_operator_dag", "operator_dags"]

_WHOLE = "model_operators"  # this promises every layer
_FIELDS = {
    *("id", "kind", "role", "gpus", "layer", "group", "flops", "bytes_read", "experts", "inputs", "outputs"),
    *DETAIL,
}


def operator_dags(folder: Path) -> list[str]:
    """Name the graphs of operators in a folder."""
    return find_dags(folder, "operators")


def check_operator_dag(
    stem: Path, deployment: Deployment, rules: Callable[[DagFile, Deployment], list[DagViolation]]
) -> tuple[DagFile, list[DagViolation]]:
    """Read a graph of operators and check it; return it with what is wrong.

    Parameters
    ----------
    stem : Path
        Of the .json and the .dot, without suffix.
    deployment : Deployment
    rules : callable
        Those of a coarse graph, which the operators must keep together.
    """
    dag = read_dag(stem.with_name(f"{stem.name}.json"), {**COARSE, **ROLES})
    wrong = list(dag.wrong)
    wrong += compare_twins(dag, stem.with_name(f"{stem.name}.dot"))
    if wrong:  # everything else would be told as a consequence
        return dag, wrong
    wrong += _check_fields(dag)
    if wrong:
        return dag, wrong
    whole = put_together(dag)
    wrong += whole.coarse.wrong
    wrong += [*check_acyclic(dag), *check_connected(dag), *check_shapes(dag, deployment.instance)]
    wrong += _check_facts(dag, deployment)
    if wrong:
        return dag, wrong
    wrong += rules(whole.coarse, deployment)
    wrong += _check_operators(dag, whole, deployment)
    wrong += _check_kept(dag, whole)
    wrong += check_residuals(dag, whole, deployment)
    return dag, list(dict.fromkeys(wrong))


def _check_fields(dag: DagFile) -> Iterator[DagViolation]:
    """Check the types of what only operators have."""
    for name, row in dag.operations.items():
        for key in sorted(row.keys() - _FIELDS):
            yield dag.breach("dag-form", name, f"{key!r} is no field of an operator")
        for key in ("vector_flops", "cache_bytes"):
            if key in row and not _is_number(row[key]):
                yield dag.breach("dag-form", name, f"{key} is no number, 0 or more")
        weight = row.get("weight", [1])
        if not isinstance(weight, list) or not weight or not all(map(_is_number, weight)):
            yield dag.breach("dag-form", name, "weight is no shape")
    for row in dag.edges:
        parts = row.get("parts", 2)
        if row["travel"] == "order" or type(parts) is not int or parts < 2:
            where = f"{row['source']} -> {row['target']}"
            yield dag.breach("dag-form", where, "an order, or parts that are no number above 1")
        dashed = {dag.operations[row[end]]["kind"] for end in ("source", "target")} & DASHED
        if row["style"] != ("dashed" if dashed else "solid"):
            where = f"{row['source']} -> {row['target']}"
            yield dag.breach("dag-communication", where, f"it is drawn {row['style']}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _check_facts(dag: DagFile, deployment: Deployment) -> Iterator[DagViolation]:
    instance = deployment.instance
    if dag.facts.get("phase") not in {"prefill", "decode"}:
        yield dag.breach("dag-form", "", f"phase is {dag.facts.get('phase')!r}, required is prefill or decode")
    context = dag.facts.get("context")
    if not _is_number(context) or float(context) < 1:  # type: ignore[arg-type]
        yield dag.breach("dag-form", "", f"context is {context!r}, required is a number of tokens")
    receive = "shared" if instance.cluster.nics is None else instance.cluster.nics.receive
    if dag.facts.get("receive") != receive:
        yield dag.breach("dag-form", "", f"receive is {dag.facts.get('receive')!r}, required is {receive!r}")
    if dag.name == _WHOLE and dag.facts.get("layers") != list(range(instance.model.layers)):
        yield dag.breach("dag-layers", "", f"required are all {instance.model.layers} layers")


def _check_operators(dag: DagFile, whole: Whole, deployment: Deployment) -> Iterator[DagViolation]:
    """Every operation has its operators, each with its weights, costs and tensors."""
    instance, context = deployment.instance, float(dag.facts["context"])
    decode = dag.facts["phase"] == "decode"
    sequence = Sequence(context if decode else (context + 1) / 2, context if decode else 1.0, decode)
    local: Counter[tuple[int, ...]] = Counter()  # experts of each layer on the same GPUs, in order
    for part, operators in whole.parts.items():
        kind, coarse = whole.kinds[part], whole.coarse.operations[part]
        number, moe = local[coarse["layer"], *coarse["gpus"]], coarse["layer"] in deployment.moe
        once = not sends_every_choice(instance)
        work = Work(*_tokens(kind, coarse, once), len(coarse["gpus"]), number, moe)
        local[coarse["layer"], *coarse["gpus"]] += kind == "expert"
        required = operators_of(kind, instance, sequence, work)
        for missing in sorted(required.keys() ^ operators.keys()):
            yield dag.breach("dag-operators", part, f"it {'lacks' if missing in required else 'has'} {missing}")
        for name in required.keys() & operators.keys():
            yield from _check_operator(dag, whole, kind, operators[name], required[name], deployment)


def _check_kept(dag: DagFile, whole: Whole) -> Iterator[DagViolation]:
    """Operations that are not taken apart have a name in the model, where the model has one for them."""
    for name in whole.coarse.operations.keys() - whole.parts.keys():
        row = dag.operations[name]
        module, function = KEPT.get(row["kind"], (None, None))
        if module and "layer" in row:
            module = f"decoder.layers.{row['layer']}.{module}"
        if (row.get("module"), row.get("op")) != (module, function):
            yield dag.breach("dag-operators", name, f"it is {row.get('module')} by {row.get('op')}, not {module}")
        for key in sorted(row.keys() & {"weight", "vector_flops", "cache_bytes"}):
            yield dag.breach("dag-form", name, f"{key!r} is no field of {row['kind']}")


def _tokens(kind: str, coarse: Row, once: bool) -> tuple[float, float]:
    """Tokens that come into an operation, and FLOPs for each value of one that it sums from all experts.

    Every result is weighted and added; where a token was sent ``once`` for several experts, their sum is only added.
    """
    by_family = {family(tensor): shape for tensor, shape in coarse["inputs"].items()}
    wanted = {"attention": "hidden", "expert": "tokens"}.get(kind, "attended")
    tokens = by_family[wanted][0] if wanted in by_family else 0.0
    results = sum(shape[0] for tensor, shape in coarse["inputs"].items() if family(tensor) == "combined")
    return float(tokens), float(results if once else 2 * math.prod(by_family.get("choices", [0.0])))


def _check_operator(
    dag: DagFile, whole: Whole, kind: str, row: Row, required: Operator, deployment: Deployment
) -> Iterator[DagViolation]:
    name = row["id"]
    if name != f"{row['part_of']}.{row['kind']}":
        yield dag.breach("dag-operators", name, f"required is the id {row['part_of']}.{row['kind']}")
    module = f"decoder.layers.{row.get('layer')}.{required.module}"
    if (row.get("module"), row.get("op")) != (module, required.function):
        message = f"it is {row.get('module')} by {row.get('op')}, required is {module} by {required.function}"
        yield dag.breach("dag-operators", name, message)
    weight = row.get("weight", [])
    if len(weight) != len(required.weight) or any(map(differs, weight, required.weight)):
        yield dag.breach("dag-operators", name, f"weight {weight} on a GPU, required is {list(required.weight)}")
    values = math.prod(required.weight) * len(row["gpus"]) if required.weight else 0.0
    moe = row.get("layer") in deployment.moe
    size = values * BYTES_PER_VALUE[precision_of(deployment.instance.model, _part(kind, moe))]
    size += sum(edge["bytes"] for edge in whole.incoming[name])
    for key, figure in (
        ("flops", required.flops), ("vector_flops", required.vector_flops), ("cache_bytes", required.cache_bytes),
        ("bytes_read", size),
    ):  # fmt: skip
        if differs(row.get(key, 0.0), figure):
            yield dag.breach("dag-arithmetic", name, f"{key} {row.get(key, 0.0):,.0f}, required are {figure:,.0f}")
    yield from _check_inputs(dag, whole, kind, row, required)


def _part(kind: str, moe: bool) -> str:
    """Name the part of the model whose precision the weights of an operation have."""
    if kind == "mlp":
        return "shared" if moe else "dense"
    return {"expert": "experts"}.get(kind, kind)


def _check_inputs(dag: DagFile, whole: Whole, kind: str, row: Row, required: Operator) -> Iterator[DagViolation]:
    """Check what operators of one operation hand on, and where tensors from outside come in."""
    needs = {tensor: (source, shape, parts) for tensor, source, shape, parts in required.needs}
    found = set()
    for edge in whole.incoming[row["id"]]:
        where, tensor = f"{edge['source']} -> {edge['target']}", family(edge["tensor"])
        source = dag.operations[edge["source"]]
        if source.get("part_of") != row["part_of"]:
            if row["kind"] not in ENTRIES[kind].get(tensor, ()) or "parts" in edge:
                yield dag.breach("dag-operators", where, f"{tensor} does not come into {row['kind']} of {kind}")
            if "part_of" in source and source["kind"] != EXITS[whole.kinds[source["part_of"]]]:
                yield dag.breach("dag-operators", where, f"{source['kind']} is not the last of {source['part_of']}")
            continue
        found.add(tensor)
        maker, shape, parts = needs.get(tensor, ("", (), 0))
        if source["kind"] != maker:
            yield dag.breach(
                "dag-operators", where, f"{tensor} from {source['kind']}, required is {maker or 'nothing'}"
            )
        elif (
            len(shape) != len(edge["shape"]) or any(map(differs, edge["shape"], shape)) or edge.get("parts", 1) != parts
        ):
            stated = f"{edge['shape']} on each of {edge.get('parts', 1)} GPUs"
            yield dag.breach("dag-shapes", where, f"{tensor} is {stated}, required is {list(shape)} on each of {parts}")
        if edge["travel"] != "same-gpu" or "routes" in edge or "hot" in edge:
            yield dag.breach("dag-communication", where, "it stays on its GPU")
    for tensor in sorted(needs.keys() - found):
        yield dag.breach("dag-operators", row["id"], f"nothing brings it {tensor}")
