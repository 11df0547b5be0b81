"""Refines the coarse graph of a deployment into operators, as Megatron-Core and PyTorch name them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.dag.operators.latent_attention import refine_latent_attention
from moe_placer.dag.operators.operator_builder import Attended, OperatorBuilder
from moe_placer.instance import Instance
from moe_placer.instance.model_parts import Part, part_bytes
from moe_placer.instance.schema import Gqa, Mla

__all__ = ["Attended", "refine"]

# Operations that stay as they are: module and PyTorch's operator.
_KEPT = {
    "embedding": ("embedding.word_embeddings", "aten::embedding"),
    "embedding_reduce": ("embedding.word_embeddings", "c10d::allreduce_"),
    "attention_reduce": ("self_attention.linear_proj", "c10d::allreduce_"),
    "mlp_reduce": ("mlp.linear_fc2", "c10d::allreduce_"),
    "gate_scatter": ("mlp.router", "c10d::broadcast_"),
    "dispatch_send": ("mlp.token_dispatcher.dispatch", "c10d::alltoall_base_"),
    "dispatch_receive": ("mlp.token_dispatcher.dispatch", "c10d::alltoall_base_"),
    "expert_reduce": ("mlp.experts", "c10d::allreduce_"),
    "combine_send": ("mlp.token_dispatcher.combine", "c10d::alltoall_base_"),
    "combine_receive": ("mlp.token_dispatcher.combine", "c10d::alltoall_base_"),
    "norm": ("decoder.final_layernorm", "aten::rms_norm"),
    "head": ("output_layer", "aten::linear"),
    "sample": ("output_layer", "aten::argmax"),
    "sample_reduce": ("output_layer", "c10d::allreduce_"),
}


def refine(coarse: Dag, instance: Instance, attended: Attended | None = None) -> Dag:
    """Return the graph with attention, MLPs, gates, experts and aggregations taken apart into operators.

    Operators of one coarse operation name it in ``part_of``; their FLOPs (of attention without scores and context,
    which depend on ``attended``) and what they read, less what they hand on among themselves, are the coarse
    operation's. Norms before attention and MLP and residual adds, which the coarse graph leaves out, are part of none.

    Parameters
    ----------
    coarse : Dag
        As `build_dag` makes it.
    instance : Instance
    attended : Attended, optional
        What tokens attend to; absent: a prefill of sequences of 4,096 tokens.
    """
    attended = attended or Attended()
    builder = OperatorBuilder(coarse, instance, attended)
    builder.dag.facts |= {"phase": attended.phase, "context": float(attended.context), "receive": _receiver(instance)}
    handlers: dict[str, Callable[[OperatorBuilder, Operation], None]] = {
        "attention": _attention,
        "attention_reduce": _attention_reduce,
        "mlp": _mlp,
        "mlp_reduce": _mlp_reduce,
        "gate": _gate,
        "expert": _Experts(),
        "aggregate": _aggregate,
    }
    for op in coarse.operations():
        handlers.get(op.kind, _keep)(builder, op)
    return builder.dag


def _receiver(instance: Instance) -> str:
    nics = instance.cluster.nics
    return "shared" if nics is None else nics.receive


def _keep(builder: OperatorBuilder, op: Operation) -> None:
    module, function = _KEPT.get(op.kind, ("", ""))
    if module and op.layer is not None:
        module = f"decoder.layers.{op.layer}.{module}"
    builder.copy(op, module, function)


def _attention(builder: OperatorBuilder, op: Operation) -> None:
    """Norm, what attention of the model's kind does, and the residual add where no all-reduce comes before it."""
    (edge,) = builder.coarse.incoming(op.id)
    norm = builder.norm(builder.exits[edge.source], "input_layernorm", op)
    latent = isinstance(builder.instance.model.attention, Mla)
    project = (refine_latent_attention if latent else _heads_of_their_own)(builder, op, edge, norm)
    builder.exits[op.id] = project
    if not _followed(builder, op, "attention_reduce"):
        builder.exits[op.id] = builder.add_residual(op, "self_attn_bda", project, builder.exits[edge.source])


def _heads_of_their_own(builder: OperatorBuilder, op: Operation, edge: Edge, norm: Operation) -> Operation:
    """QKV projection by columns, scores, softmax and context by heads, output projection by rows; return the last.

    Parameters as of `refine_latent_attention`.
    """
    model = builder.instance.model
    tokens, hidden, heads, width = edge.shape[0], model.hidden_size, model.attention_heads, model.head_dim
    gpus, seen, g = len(op.gpus), builder.attended.seen, op.id.rpartition(".")[2]
    kv_heads = model.attention.kv_heads if isinstance(model.attention, Gqa) else heads
    own, own_kv = heads / gpus, kv_heads / gpus  # heads of each GPU, on average
    pairs = tokens * seen * heads
    cached = tokens * kv_heads * width * part_bytes(model, "kv_cache")
    cached *= seen if builder.attended.phase == "decode" else 1.0
    core = "self_attention.core_attention"
    qkv = builder.add(
        op, "linear_qkv", "self_attention.linear_qkv", "aten::linear",
        weight=((own + 2 * own_kv) * width, hidden), of="attention",
        flops=2 * tokens * hidden * (heads + 2 * kv_heads) * width,
    )  # fmt: skip
    scores = builder.add(op, "attention_scores", core, "aten::bmm", flops=2 * pairs * width, cache_bytes=cached)
    softmax = builder.add(op, "attention_softmax", core, "aten::_softmax", vector_flops=5 * pairs)
    context = builder.add(op, "attention_context", core, "aten::bmm", flops=2 * pairs * width, cache_bytes=cached)
    project = builder.add(
        op, "linear_proj", "self_attention.linear_proj", "aten::linear",
        weight=(hidden, own * width), of="attention", flops=2 * tokens * hidden * heads * width,
    )  # fmt: skip
    builder.bring(edge, qkv, norm)
    for name, target, count in (("query", scores, own), ("key", scores, own_kv), ("value", context, own_kv)):
        builder.link(qkv, target, f"{name}.{g}", (tokens, count, width), parts=gpus)
    builder.link(scores, softmax, f"scores.{g}", (tokens, own, seen), parts=gpus)
    builder.link(softmax, context, f"probabilities.{g}", (tokens, own, seen), parts=gpus)
    builder.link(context, project, f"context.{g}", (tokens, own * width), parts=gpus)
    return project


def _followed(builder: OperatorBuilder, op: Operation, kind: str) -> bool:
    return any(builder.coarse.operation(edge.target).kind == kind for edge in builder.coarse.outgoing(op.id))


def _reduced(builder: OperatorBuilder, op: Operation) -> Edge:
    """Take a reduction over; return what went into the block that it ends."""
    _keep(builder, op)
    (parts,) = builder.coarse.incoming(op.id)
    (block,) = builder.coarse.incoming(parts.source)
    return block


def _attention_reduce(builder: OperatorBuilder, op: Operation) -> None:
    block = _reduced(builder, op)
    builder.exits[op.id] = builder.add_residual(op, "self_attn_bda", builder.exits[op.id], builder.exits[block.source])


@dataclass(frozen=True)
class _Mlp:
    """An MLP: its width on all GPUs, its matrices (2, or 3 with a gate), its name in the layer, and its part."""

    width: int
    matrices: int
    module: str
    part: Part


def _mlp(builder: OperatorBuilder, op: Operation) -> None:
    """Take a dense MLP or shared experts apart: up by columns, down by rows; only the first has a residual."""
    (edge,) = builder.coarse.incoming(op.id)
    model = builder.instance.model
    shared = op.layer in builder.instance.moe_layers
    if shared:
        mlp = _Mlp(model.shared_expert_hidden_size or 0, model.expert_matrices, "mlp.shared_experts", "shared")
    else:
        width = model.dense_hidden_size or model.top_k * model.expert_hidden_size
        mlp = _Mlp(width, model.dense_matrices or model.expert_matrices, "mlp", "dense")
    source = builder.source_of(edge)
    up, down = _two_projections(builder, op, edge.shape[0], mlp, op.id.rpartition(".")[2])
    builder.bring(edge, up, source)
    builder.exits[op.id] = down
    if not shared and not _followed(builder, op, "mlp_reduce"):
        builder.exits[op.id] = builder.add_residual(op, "mlp_bda", down, builder.exits[edge.source])


def _mlp_reduce(builder: OperatorBuilder, op: Operation) -> None:
    block = _reduced(builder, op)
    if op.layer not in builder.instance.moe_layers:
        builder.exits[op.id] = builder.add_residual(op, "mlp_bda", builder.exits[op.id], builder.exits[block.source])


def _two_projections(
    builder: OperatorBuilder, op: Operation, tokens: float, mlp: _Mlp, tag: str
) -> tuple[Operation, Operation]:
    """Add up (and gate), activation, and down, each divided over the operation's GPUs.

    Parameters
    ----------
    builder : OperatorBuilder
    op : Operation
        The coarse operation.
    tokens : float
        That come in.
    mlp : _Mlp
    tag : str
        What ends the names of its tensors.
    """
    hidden, gpus, ups, width = builder.instance.model.hidden_size, len(op.gpus), mlp.matrices - 1, mlp.width
    own = width / gpus
    up = builder.add(
        op, "linear_fc1", f"{mlp.module}.linear_fc1", "aten::linear",
        weight=(ups * own, hidden), of=mlp.part, flops=2 * tokens * hidden * ups * width,
    )  # fmt: skip
    function = "aten::gelu" if ups == 1 else "aten::silu, aten::mul"
    bend = builder.add(
        op, "activation_func", f"{mlp.module}.activation_func", function, vector_flops=(7 + 3 * ups) * tokens * width
    )
    down = builder.add(
        op, "linear_fc2", f"{mlp.module}.linear_fc2", "aten::linear",
        weight=(hidden, own), of=mlp.part, flops=2 * tokens * hidden * width,
    )  # fmt: skip
    builder.link(up, bend, f"up.{tag}", (tokens, ups * own), parts=gpus)
    builder.link(bend, down, f"activated.{tag}", (tokens, own), parts=gpus)
    return up, down


def _gate(builder: OperatorBuilder, op: Operation) -> None:
    """Gate logits on the head GPU, and the choice of the k largest."""
    (edge,) = builder.coarse.incoming(op.id)
    model, g, tokens, source = builder.instance.model, op.id.rpartition(".")[2], edge.shape[0], builder.source_of(edge)
    logits = builder.add(
        op, "router_gating", "mlp.router.gating", "aten::linear",
        weight=(model.experts, model.hidden_size), of="gate", flops=2 * tokens * model.hidden_size * model.experts,
    )  # fmt: skip
    topk = builder.add(
        op, "router_topk", "mlp.router.routing", "aten::_softmax, aten::topk", vector_flops=6 * tokens * model.experts
    )
    builder.bring(edge, logits, source)
    builder.link(logits, topk, f"logits.{g}", (tokens, model.experts))
    builder.exits[op.id] = topk


class _Experts:
    """Takes experts apart, and counts those of each GPU in each layer."""

    def __init__(self) -> None:
        self.local: Counter[tuple[int | None, tuple[int, ...]]] = Counter()

    def __call__(self, builder: OperatorBuilder, op: Operation) -> None:
        (edge,) = builder.coarse.incoming(op.id)
        key = (op.layer, op.gpus)
        module = f"mlp.experts.local_experts.{self.local[key]}"
        self.local[key] += 1
        tag = op.id.partition(".expert.")[2]
        model = builder.instance.model
        mlp = _Mlp(model.expert_hidden_size, model.expert_matrices, module, "experts")
        up, down = _two_projections(builder, op, edge.shape[0], mlp, tag)
        builder.bring(edge, up)
        builder.exits[op.id] = down


def _aggregate(builder: OperatorBuilder, op: Operation) -> None:
    """Sum of every token's results with the gate's weights; then the residual."""
    edges, width = builder.coarse.incoming(op.id), builder.instance.model.hidden_size
    (residual,) = (edge for edge in edges if edge.tensor.startswith("attended."))
    tokens, g = residual.shape[0], op.id.rpartition(".")[2]
    total = builder.add(
        op, "unpermute", "mlp.token_dispatcher.unpermute", "aten::index_add",
        flops=op.flops - tokens * width,
    )  # fmt: skip
    last = builder.add(op, "mlp_bda", "mlp_bda", "aten::add", flops=tokens * width)
    for edge in edges:
        builder.bring(edge, last if edge is residual else total)
    builder.link(total, last, f"weighted.{g}", (tokens, width))
    builder.exits[op.id] = last
