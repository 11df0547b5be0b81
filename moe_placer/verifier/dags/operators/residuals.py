"""Norms and residual adds: in every layer and every tensor-parallel group, two of each, where they belong."""

from __future__ import annotations

import re
from collections.abc import Iterator

from moe_placer.verifier.dags.dag_rules import DagViolation, differs
from moe_placer.verifier.dags.operators.put_together import Whole, family
from moe_placer.verifier.dags.operators.required import FLOATING
from moe_placer.verifier.dags.read_back import DagFile, Row
from moe_placer.verifier.deployment import Deployment
from moe_placer.verifier.model_sizes import BYTES_PER_VALUE, precision_of

__all__ = ["check_residuals"]

_ATTENTION = re.compile(r"L(\d+)\.attention\.(g\d+)")
_VECTOR_FLOPS = {"input_layernorm": 4, "pre_mlp_layernorm": 4, "self_attn_bda": 1, "mlp_bda": 1}  # of each value


def check_residuals(dag: DagFile, whole: Whole, deployment: Deployment) -> Iterator[DagViolation]:
    """Rule ``dag-operators``: x + attention(norm(x)), then y + mlp(norm(y)), and nothing beside it."""
    expected: set[str] = set()
    for part in whole.parts:
        if found := _ATTENTION.fullmatch(part):
            for name, sources in _required(dag, whole, deployment, int(found[1]), found[2]).items():
                if name.endswith("aggregate." + found[2] + ".mlp_bda"):
                    yield from _check_stream(dag, whole, name, sources)
                    continue
                expected.add(name)
                if name not in whole.floating:
                    yield dag.breach("dag-operators", name, "it is missing")
                    continue
                yield from _check_stream(dag, whole, name, sources)
                yield from _check_costs(dag, whole, name, whole.coarse.operations[part], deployment)
    yield from _check_consumers(dag, whole)
    for name in sorted(whole.floating.keys() - expected):
        yield dag.breach("dag-operators", name, "there is no such norm or residual add")


def _required(dag: DagFile, whole: Whole, deployment: Deployment, layer: int, group: str) -> dict[str, dict[str, str]]:
    """Norms and residual adds of a layer and group, each with the operators that its tensors must come from."""
    at, shares = f"L{layer}", deployment.shares_attention
    before = _before(dag, whole, layer, group)
    summed = f"{at}.self_attn_bda.{group}"
    block = f"{at}.attention_reduce.{group}" if shares else f"{at}.attention.{group}.linear_proj"
    required = {
        f"{at}.input_layernorm.{group}": {"input_layernorm_in": before},
        summed: {"self_attn_bda_block": block, "self_attn_bda_residual": before},
        f"{at}.pre_mlp_layernorm.{group}": {"pre_mlp_layernorm_in": summed},
    }
    if layer in deployment.moe:
        required[f"{at}.aggregate.{group}.mlp_bda"] = {"attended": summed}
    else:
        mlp = f"{at}.mlp_reduce.{group}" if shares else f"{at}.mlp.{group}.linear_fc2"
        required[f"{at}.mlp_bda.{group}"] = {"mlp_bda_block": mlp, "mlp_bda_residual": summed}
    return required


def _before(dag: DagFile, whole: Whole, layer: int, group: str) -> str:
    """Return the operator that makes the hidden states a layer starts from: the last residual add, or what is first."""
    shown: list[int] = dag.facts["layers"]
    earlier = [other for other in shown if other < layer]
    if earlier:
        dense, moe = f"L{earlier[-1]}.mlp_bda.{group}", f"L{earlier[-1]}.aggregate.{group}.mlp_bda"
        return dense if dense in whole.floating else moe
    for kind in ("embedding_reduce", "embedding", "input"):
        if f"{kind}.{group}" in dag.operations:
            return f"{kind}.{group}"
    return ""


def _check_stream(dag: DagFile, whole: Whole, name: str, sources: dict[str, str]) -> Iterator[DagViolation]:
    for tensor, source in sources.items():
        found = [edge["source"] for edge in whole.incoming[name] if family(edge["tensor"]) == tensor]
        if found != [source]:
            message = f"{tensor} comes from {', '.join(found) or 'nothing'}, required is {source}"
            yield dag.breach("dag-operators", name, message)


def _check_costs(
    dag: DagFile, whole: Whole, name: str, attention: Row, deployment: Deployment
) -> Iterator[DagViolation]:
    """Hidden states go in whole on every GPU of the group, and cost what a norm or an addition costs."""
    row, model, edges = whole.floating[name], deployment.instance.model, whole.incoming[name]
    tokens = next(iter(attention["inputs"].values()))[0]
    yield from _check_tensors(dag, name, row, edges, [tokens, model.hidden_size])
    norm = row["kind"].endswith("layernorm")
    size = (
        sum(edge["bytes"] for edge in edges)
        + norm * model.hidden_size * BYTES_PER_VALUE[precision_of(model, "activations")]
    )
    vector = _VECTOR_FLOPS[row["kind"]] * tokens * model.hidden_size
    for key, figure in (("flops", 0.0), ("vector_flops", vector), ("bytes_read", size), ("cache_bytes", 0.0)):
        if differs(row.get(key, 0.0), figure):
            yield dag.breach("dag-arithmetic", name, f"{key} {row.get(key, 0.0):,.0f}, required are {figure:,.0f}")
    required = {
        "weight": [model.hidden_size] if norm else None,
        "module": f"decoder.layers.{row['layer']}.{row['kind']}",
        "op": "aten::rms_norm" if norm else "aten::add",
        **{key: attention.get(key) for key in ("gpus", "layer", "group", "experts")},
    }
    for key, value in required.items():
        if row.get(key) != value:
            yield dag.breach("dag-operators", name, f"{key} is {row.get(key)}, required is {value}")


def _check_tensors(dag: DagFile, name: str, row: Row, edges: list[Row], shape: list[float]) -> Iterator[DagViolation]:
    """Check that hidden states go in, whole on every GPU, and nothing else.

    Parameters
    ----------
    dag : DagFile
    name : str
        Id of a norm or residual add.
    row : dict
        The operator.
    edges : list of dict
        What comes into it.
    shape : list of float
        Of hidden states: tokens, width.
    """
    needed = FLOATING[row["kind"]]
    if sorted(family(edge["tensor"]) for edge in edges) != sorted(needed):
        yield dag.breach("dag-operators", name, f"{len(edges)} tensors, required are {', '.join(needed)}")
    for edge in edges:
        if len(edge["shape"]) != 2 or any(map(differs, edge["shape"], shape)) or "parts" in edge:
            yield dag.breach("dag-shapes", name, f"{edge['tensor']} is {edge['shape']}, required is {shape}")
        if edge["travel"] != "same-gpu" or "routes" in edge or "hot" in edge:
            yield dag.breach("dag-communication", name, f"{edge['tensor']} stays on its GPU")


def _check_consumers(dag: DagFile, whole: Whole) -> Iterator[DagViolation]:
    """Attention takes the first norm; gate, dispatch and dense MLP take the second; what follows takes the last sum."""
    end = max(dag.facts["layers"]) + 1
    for edge in dag.edges:
        target, stream = dag.operations[edge["target"]], family(edge.get("tensor", ""))
        if stream not in {"hidden", "leaving", "attended"} or target["kind"] == "mlp_bda":
            continue
        group = edge["tensor"].split(".")[1]
        if "layer" not in target:
            required = _before(dag, whole, end, group)
        else:
            norm = "input_layernorm" if stream == "hidden" else "pre_mlp_layernorm"
            required = f"L{target['layer']}.{norm}.{group}"
        if edge["source"] != required:
            where = f"{edge['source']} -> {edge['target']}"
            yield dag.breach("dag-operators", where, f"{edge['tensor']} must come from {required}")
