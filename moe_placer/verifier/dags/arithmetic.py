"""What an operation must come to, from its inputs and the model: FLOPs, bytes read, tokens in and out."""

from __future__ import annotations

import math
from collections.abc import Iterator

from moe_placer.instance import Instance
from moe_placer.verifier.capacity import BYTES_PER_VALUE
from moe_placer.verifier.dags.dag_rules import DagViolation, differs
from moe_placer.verifier.dags.read_back import DagFile, Row

__all__ = ["check_arithmetic"]

# Kinds whose tokens all go on, none added, none dropped; tensors of ids and weights beside them do not count.
_PASS_ON = {
    *("embedding", "norm", "expert", "expert_reduce", "dispatch_receive"),
    *("combine_send", "combine_receive", "combine", "gather"),
}


def check_arithmetic(dag: DagFile, instance: Instance) -> Iterator[DagViolation]:
    """Rule ``dag-arithmetic``.

    FLOPs are 2 for every weight and token that meet (Kaplan et al. 2020, section 2.1): attention by its four
    projections, an MLP or expert by its matrices, gate and head by one; a norm takes 4 and a choice of the likeliest 1
    for every value; summing results takes 2 for each and 1 for the residual. Bytes read: weights once for every
    tensor-parallel group or expert, and the inputs.
    """
    arrived: dict[str, float] = dict.fromkeys(dag.operations, 0.0)
    for row in dag.edges:
        arrived[row["target"]] += row.get("bytes", 0.0)
    for name, op in dag.operations.items():
        flops = _flops(op, instance)
        if differs(op["flops"], flops):
            yield dag.breach("dag-arithmetic", name, f"{op['flops']:,.0f} FLOPs, required are {flops:,.0f}")
        size = arrived[name] + _weights(op, instance) * BYTES_PER_VALUE[instance.model.dtype]
        if differs(op["bytes_read"], size):
            yield dag.breach("dag-arithmetic", name, f"{op['bytes_read']:,.0f} bytes read, required are {size:,.0f}")
        yield from _check_tokens(dag, name, op)


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


def _dense_width(instance: Instance) -> int:
    model = instance.model
    return model.dense_hidden_size or model.top_k * model.expert_hidden_size


def _flops(op: Row, instance: Instance) -> float:
    model, kind, tokens = instance.model, op["kind"], _rows(op, "inputs")
    per_token = {
        "attention": 2 * 4 * model.hidden_size * model.attention_heads * model.head_dim,
        "mlp": 2 * model.expert_matrices * model.hidden_size * _dense_width(instance),
        "gate": 2 * model.hidden_size * model.experts,
        "expert": 2 * model.expert_matrices * model.hidden_size * model.expert_hidden_size,
        "norm": 4 * model.hidden_size,
        "head": 2 * model.hidden_size * model.vocab_size,
        "sample": model.vocab_size,
    }
    if kind == "aggregate":
        return model.hidden_size * (2 * _choices(op) + _rows(op, "inputs", "attended"))
    return per_token.get(kind, 0) * tokens


def _weights(op: Row, instance: Instance) -> float:
    """Values of the weights that an operation reads: all of them, but of an embedding only the rows looked up."""
    model = instance.model
    groups = len({gpu // instance.parallelism.attention_tp for gpu in op["gpus"]})
    values = {
        "attention": groups * 4 * model.hidden_size * model.attention_heads * model.head_dim,
        "mlp": groups * model.expert_matrices * model.hidden_size * _dense_width(instance),
        "gate": groups * model.hidden_size * model.experts,
        "expert": len(op.get("experts", [])) * model.expert_matrices * model.hidden_size * model.expert_hidden_size,
        "norm": groups * model.hidden_size,
        "head": groups * model.hidden_size * model.vocab_size,
        "embedding": _rows(op, "inputs") * model.hidden_size,
    }
    return values.get(op["kind"], 0.0)


def _check_tokens(dag: DagFile, name: str, op: Row) -> Iterator[DagViolation]:
    """No operation makes or drops tokens: dispatch sends one for every choice, aggregation sums as many."""
    kind, inputs, outputs = op["kind"], _rows(op, "inputs"), _rows(op, "outputs")
    if kind in _PASS_ON and differs(inputs, outputs):
        message = f"{inputs:,.6g} tokens come in and {outputs:,.6g} go out, required is the same number"
        yield dag.breach("dag-arithmetic", name, message)
    if kind in {"dispatch_send", "dispatch"} and differs(_choices(op), outputs):
        message = f"{outputs:,.6g} tokens go out, required are the {_choices(op):,.6g} that were chosen"
        yield dag.breach("dag-arithmetic", name, message)
    if kind == "aggregate" and differs(_choices(op), combined := _rows(op, "inputs", "combined")):
        message = f"{combined:,.6g} results come in, required are the {_choices(op):,.6g} that were chosen"
        yield dag.breach("dag-arithmetic", name, message)
