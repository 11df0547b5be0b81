"""Checks FLOPs, bytes read, and tokens in and out of every operation against its inputs and the model."""

from __future__ import annotations

import math
from collections.abc import Iterator

from moe_placer.instance import Instance
from moe_placer.verifier.dags.dag_rules import DagViolation, differs
from moe_placer.verifier.dags.read_back import DagFile, Row
from moe_placer.verifier.model_sizes import (
    BYTES_PER_VALUE,
    attention_matrices,
    dense_matrices,
    precision_of,
    shared_matrices,
    values_of,
)
from moe_placer.verifier.sending import sends_every_choice

__all__ = ["check_arithmetic"]

# Kinds whose tokens all go on, none added, none dropped; tensors of ids and weights beside them do not count.
_PASS_ON = {
    *("embedding", "norm", "expert", "expert_reduce", "dispatch_receive"),
    *("combine_send", "combine_receive", "combine", "gather"),
}
# Where one copy of a token serves several experts, these make more of it, and these one sum of several results.
_MULTIPLY = {"dispatch_receive"}
_SUM = {"combine_send", "combine"}


def check_arithmetic(dag: DagFile, instance: Instance) -> Iterator[DagViolation]:
    """Rule ``dag-arithmetic``.

    FLOPs are 2 for every weight and token that meet (Kaplan et al. 2020, section 2.1): attention by its projections, an
    MLP or expert by its matrices, gate and head by one; a norm takes 4 and a choice of the likeliest 1 for every value;
    summing results takes 2 for each and 1 for the residual, and for what shared experts make. Where a token is sent
    once per GPU or node, results are weighted and summed there, with 2 for each, and every sum that comes back takes 1.
    Bytes read: weights once for every tensor-parallel group or expert, and the inputs.
    """
    arrived: dict[str, float] = dict.fromkeys(dag.operations, 0.0)
    for row in dag.edges:
        arrived[row["target"]] += row.get("bytes", 0.0)
    for name, op in dag.operations.items():
        flops = _flops(op, instance)
        if differs(op["flops"], flops):
            yield dag.breach("dag-arithmetic", name, f"{op['flops']:,.0f} FLOPs, required are {flops:,.0f}")
        precision = precision_of(instance.model, _part(op, instance))
        size = arrived[name] + _weights(op, instance) * BYTES_PER_VALUE[precision]
        if differs(op["bytes_read"], size):
            yield dag.breach("dag-arithmetic", name, f"{op['bytes_read']:,.0f} bytes read, required are {size:,.0f}")
        if sends_every_choice(instance):
            yield from _check_tokens(dag, name, op, _PASS_ON)
            yield from _check_choices(dag, name, op)
        else:
            yield from _check_tokens(dag, name, op, _PASS_ON - _MULTIPLY - _SUM)
            yield from _check_copies(dag, name, op)


def _family(tensor: str) -> str:
    """Return what a tensor is, without which group or node it belongs to."""
    return tensor.partition("@")[0].partition(".")[0]


def _rows(op: Row, table: str, *families: str) -> float:
    """Tokens of an operation's tensors, of some families or of all that are not choices."""
    chosen = [
        shape[0]
        for tensor, shape in op[table].items()
        if (_family(tensor) in families if families else _family(tensor) not in {"chosen", "choices"})
    ]
    return float(sum(chosen))


def _choices(op: Row) -> float:
    """Choices of experts that an operation is told: tokens times experts for each."""
    return float(
        sum(math.prod(shape) for tensor, shape in op["inputs"].items() if _family(tensor) in {"chosen", "choices"})
    )


def _mlp(op: Row, instance: Instance) -> int:
    """Values of an MLP: of shared experts in a MoE layer, else of a dense layer."""
    moe = op.get("layer") in instance.moe_layers
    return values_of(shared_matrices(instance.model) if moe else dense_matrices(instance.model))


def _part(op: Row, instance: Instance) -> str:
    """Name the part of the model whose precision an operation's weights have."""
    if op["kind"] == "mlp":
        return "shared" if op.get("layer") in instance.moe_layers else "dense"
    return {"attention": "attention", "gate": "gate", "expert": "experts"}.get(op["kind"], "head")


def _flops(op: Row, instance: Instance) -> float:
    model, kind, tokens = instance.model, op["kind"], _rows(op, "inputs")
    once = not sends_every_choice(instance)
    if once and kind in _SUM:
        return 2 * model.hidden_size * _rows(op, "inputs", "results")
    if kind == "aggregate":
        results = _rows(op, "inputs", "combined") if once else 2 * _choices(op)
        return model.hidden_size * (results + _rows(op, "inputs", "attended", "shared"))
    per_token = {
        "gate": 2 * model.hidden_size * model.experts,
        "expert": 2 * model.expert_matrices * model.hidden_size * model.expert_hidden_size,
        "norm": 4 * model.hidden_size,
        "head": 2 * model.hidden_size * model.vocab_size,
        "sample": model.vocab_size,
    }
    if kind in {"attention", "mlp"}:
        return 2 * tokens * (values_of(attention_matrices(model)) if kind == "attention" else _mlp(op, instance))
    return per_token.get(kind, 0) * tokens


def _weights(op: Row, instance: Instance) -> float:
    """Values of the weights that an operation reads: all of them, but of an embedding only the rows looked up."""
    model, kind = instance.model, op["kind"]
    groups = len({gpu // instance.parallelism.attention_tp for gpu in op["gpus"]})
    if kind in {"attention", "mlp"}:
        return groups * (values_of(attention_matrices(model)) if kind == "attention" else _mlp(op, instance))
    values = {
        "gate": groups * model.hidden_size * model.experts,
        "expert": len(op.get("experts", [])) * model.expert_matrices * model.hidden_size * model.expert_hidden_size,
        "norm": groups * model.hidden_size,
        "head": groups * model.hidden_size * model.vocab_size,
        "embedding": _rows(op, "inputs") * model.hidden_size,
    }
    return values.get(kind, 0.0)


def _check_tokens(dag: DagFile, name: str, op: Row, pass_on: set[str]) -> Iterator[DagViolation]:
    """No operation that passes tokens on makes or drops any."""
    inputs, outputs = _rows(op, "inputs"), _rows(op, "outputs")
    if op["kind"] in pass_on and differs(inputs, outputs):
        message = f"{inputs:,.6g} tokens come in and {outputs:,.6g} go out, required is the same number"
        yield dag.breach("dag-arithmetic", name, message)
    if op["kind"] == "dispatch" and differs(_choices(op), outputs):
        message = f"{outputs:,.6g} tokens go out, required are the {_choices(op):,.6g} that were chosen"
        yield dag.breach("dag-arithmetic", name, message)


def _check_choices(dag: DagFile, name: str, op: Row) -> Iterator[DagViolation]:
    """Dispatch sends a token for every choice, and aggregation sums as many results."""
    kind, outputs = op["kind"], _rows(op, "outputs")
    if kind == "dispatch_send" and differs(_choices(op), outputs):
        message = f"{outputs:,.6g} tokens go out, required are the {_choices(op):,.6g} that were chosen"
        yield dag.breach("dag-arithmetic", name, message)
    if kind == "aggregate" and differs(_choices(op), combined := _rows(op, "inputs", "combined")):
        message = f"{combined:,.6g} results come in, required are the {_choices(op):,.6g} that were chosen"
        yield dag.breach("dag-arithmetic", name, message)


def _check_copies(dag: DagFile, name: str, op: Row) -> Iterator[DagViolation]:
    """Every token is sent at least once and at most for every choice; so are copies to experts, and results to sums."""
    kind, inputs, outputs = op["kind"], _rows(op, "inputs"), _rows(op, "outputs")
    low, high, count = {
        "dispatch_send": (_rows(op, "inputs", "leaving"), _choices(op), outputs),
        "dispatch_receive": (inputs, math.inf, outputs),
        "combine_send": (0.0, inputs, outputs),
        "combine": (0.0, inputs, outputs),
        "aggregate": (_rows(op, "inputs", "attended"), _choices(op), _rows(op, "inputs", "combined")),
    }.get(kind, (0.0, math.inf, 0.0))
    for limit, beyond in ((low, count < low), (high, count > high)):
        if beyond and differs(count, limit):
            message = f"{count:,.6g} copies of tokens, required are {low:,.6g} to {high:,.6g}"
            yield dag.breach("dag-arithmetic", name, message)
