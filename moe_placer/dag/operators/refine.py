"""Refines the coarse graph of a deployment into operators, as Megatron-Core and PyTorch name them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.dag.operators.growth import Attended, Growth
from moe_placer.errors import InputError, Mistake
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

    Raises
    ------
    InputError
        Attention is of a kind that has no operators here.
    """
    if isinstance(instance.model.attention, Mla):
        raise InputError(Mistake("mla", "mha or gqa (operators of latent attention are not known)", "model.attention"))
    attended = attended or Attended()
    growth = Growth(coarse, instance, attended)
    growth.dag.facts |= {"phase": attended.phase, "context": float(attended.context), "receive": _receiver(instance)}
    handlers: dict[str, Callable[[Growth, Operation], None]] = {
        "attention": _attention,
        "attention_reduce": _attention_reduce,
        "mlp": _mlp,
        "mlp_reduce": _mlp_reduce,
        "gate": _gate,
        "expert": _Experts(),
        "aggregate": _aggregate,
    }
    for op in coarse.operations():
        handlers.get(op.kind, _keep)(growth, op)
    return growth.dag


def _receiver(instance: Instance) -> str:
    nics = instance.cluster.nics
    return "shared" if nics is None else nics.receive


def _keep(growth: Growth, op: Operation) -> None:
    module, function = _KEPT.get(op.kind, ("", ""))
    if module and op.layer is not None:
        module = f"decoder.layers.{op.layer}.{module}"
    growth.copy(op, module, function)


def _attention(growth: Growth, op: Operation) -> None:
    """Norm, QKV projection by columns, scores, softmax and context by heads, output projection by rows."""
    model, (edge,) = growth.instance.model, growth.coarse.incoming(op.id)
    tokens, hidden, heads, width = edge.shape[0], model.hidden_size, model.attention_heads, model.head_dim
    gpus, seen, g = len(op.gpus), growth.attended.seen, op.id.rpartition(".")[2]
    kv_heads = model.attention.kv_heads if isinstance(model.attention, Gqa) else heads
    own, own_kv = heads / gpus, kv_heads / gpus  # heads of each GPU, on average
    norm = growth.norm(growth.exits[edge.source], "input_layernorm", op)
    pairs = tokens * seen * heads
    cached = tokens * kv_heads * width * part_bytes(model, "kv_cache")
    cached *= seen if growth.attended.phase == "decode" else 1.0
    core = "self_attention.core_attention"
    qkv = growth.add(
        op, "linear_qkv", "self_attention.linear_qkv", "aten::linear",
        weight=((own + 2 * own_kv) * width, hidden), of="attention",
        flops=2 * tokens * hidden * (heads + 2 * kv_heads) * width,
    )  # fmt: skip
    scores = growth.add(op, "attention_scores", core, "aten::bmm", flops=2 * pairs * width, cache_bytes=cached)
    softmax = growth.add(op, "attention_softmax", core, "aten::_softmax", vector_flops=5 * pairs)
    context = growth.add(op, "attention_context", core, "aten::bmm", flops=2 * pairs * width, cache_bytes=cached)
    project = growth.add(
        op, "linear_proj", "self_attention.linear_proj", "aten::linear",
        weight=(hidden, own * width), of="attention", flops=2 * tokens * hidden * heads * width,
    )  # fmt: skip
    growth.bring(edge, qkv, norm)
    for name, target, count in (("query", scores, own), ("key", scores, own_kv), ("value", context, own_kv)):
        growth.link(qkv, target, f"{name}.{g}", (tokens, count, width), parts=gpus)
    growth.link(scores, softmax, f"scores.{g}", (tokens, own, seen), parts=gpus)
    growth.link(softmax, context, f"probabilities.{g}", (tokens, own, seen), parts=gpus)
    growth.link(context, project, f"context.{g}", (tokens, own * width), parts=gpus)
    growth.exits[op.id] = project
    if not _followed(growth, op, "attention_reduce"):
        growth.exits[op.id] = growth.add_residual(op, "self_attn_bda", project, growth.exits[edge.source])


def _followed(growth: Growth, op: Operation, kind: str) -> bool:
    return any(growth.coarse.operation(edge.target).kind == kind for edge in growth.coarse.outgoing(op.id))


def _reduced(growth: Growth, op: Operation) -> Edge:
    """Take a reduction over; return what went into the block that it ends."""
    _keep(growth, op)
    (parts,) = growth.coarse.incoming(op.id)
    (block,) = growth.coarse.incoming(parts.source)
    return block


def _attention_reduce(growth: Growth, op: Operation) -> None:
    block = _reduced(growth, op)
    growth.exits[op.id] = growth.add_residual(op, "self_attn_bda", growth.exits[op.id], growth.exits[block.source])


@dataclass(frozen=True)
class _Mlp:
    """An MLP: its width on all GPUs, its matrices (2, or 3 with a gate), its name in the layer, and its part."""

    width: int
    matrices: int
    module: str
    part: Part


def _mlp(growth: Growth, op: Operation) -> None:
    """Take a dense MLP or shared experts apart: up by columns, down by rows; only the first has a residual."""
    (edge,) = growth.coarse.incoming(op.id)
    model = growth.instance.model
    shared = op.layer in growth.instance.moe_layers
    if shared:
        mlp = _Mlp(model.shared_expert_hidden_size or 0, model.expert_matrices, "mlp.shared_experts", "shared")
    else:
        width = model.dense_hidden_size or model.top_k * model.expert_hidden_size
        mlp = _Mlp(width, model.dense_matrices or model.expert_matrices, "mlp", "dense")
    source = growth.source_of(edge)
    up, down = _two_projections(growth, op, edge.shape[0], mlp, op.id.rpartition(".")[2])
    growth.bring(edge, up, source)
    growth.exits[op.id] = down
    if not shared and not _followed(growth, op, "mlp_reduce"):
        growth.exits[op.id] = growth.add_residual(op, "mlp_bda", down, growth.exits[edge.source])


def _mlp_reduce(growth: Growth, op: Operation) -> None:
    block = _reduced(growth, op)
    if op.layer not in growth.instance.moe_layers:
        growth.exits[op.id] = growth.add_residual(op, "mlp_bda", growth.exits[op.id], growth.exits[block.source])


def _two_projections(growth: Growth, op: Operation, tokens: float, mlp: _Mlp, tag: str) -> tuple[Operation, Operation]:
    """Add up (and gate), activation, and down, each divided over the operation's GPUs.

    Parameters
    ----------
    growth : Growth
    op : Operation
        The coarse operation.
    tokens : float
        That come in.
    mlp : _Mlp
    tag : str
        What ends the names of its tensors.
    """
    hidden, gpus, ups, width = growth.instance.model.hidden_size, len(op.gpus), mlp.matrices - 1, mlp.width
    own = width / gpus
    up = growth.add(
        op, "linear_fc1", f"{mlp.module}.linear_fc1", "aten::linear",
        weight=(ups * own, hidden), of=mlp.part, flops=2 * tokens * hidden * ups * width,
    )  # fmt: skip
    function = "aten::gelu" if ups == 1 else "aten::silu, aten::mul"
    bend = growth.add(
        op, "activation_func", f"{mlp.module}.activation_func", function, vector_flops=(7 + 3 * ups) * tokens * width
    )
    down = growth.add(
        op, "linear_fc2", f"{mlp.module}.linear_fc2", "aten::linear",
        weight=(hidden, own), of=mlp.part, flops=2 * tokens * hidden * width,
    )  # fmt: skip
    growth.link(up, bend, f"up.{tag}", (tokens, ups * own), parts=gpus)
    growth.link(bend, down, f"activated.{tag}", (tokens, own), parts=gpus)
    return up, down


def _gate(growth: Growth, op: Operation) -> None:
    """Gate logits on the head GPU, and the choice of the k largest."""
    (edge,) = growth.coarse.incoming(op.id)
    model, g, tokens, source = growth.instance.model, op.id.rpartition(".")[2], edge.shape[0], growth.source_of(edge)
    logits = growth.add(
        op, "router_gating", "mlp.router.gating", "aten::linear",
        weight=(model.experts, model.hidden_size), of="gate", flops=2 * tokens * model.hidden_size * model.experts,
    )  # fmt: skip
    topk = growth.add(
        op, "router_topk", "mlp.router.routing", "aten::_softmax, aten::topk", vector_flops=6 * tokens * model.experts
    )
    growth.bring(edge, logits, source)
    growth.link(logits, topk, f"logits.{g}", (tokens, model.experts))
    growth.exits[op.id] = topk


class _Experts:
    """Takes experts apart, and counts those of each GPU in each layer."""

    def __init__(self) -> None:
        self.local: Counter[tuple[int | None, tuple[int, ...]]] = Counter()

    def __call__(self, growth: Growth, op: Operation) -> None:
        (edge,) = growth.coarse.incoming(op.id)
        key = (op.layer, op.gpus)
        module = f"mlp.experts.local_experts.{self.local[key]}"
        self.local[key] += 1
        tag = op.id.partition(".expert.")[2]
        model = growth.instance.model
        mlp = _Mlp(model.expert_hidden_size, model.expert_matrices, module, "experts")
        up, down = _two_projections(growth, op, edge.shape[0], mlp, tag)
        growth.bring(edge, up)
        growth.exits[op.id] = down


def _aggregate(growth: Growth, op: Operation) -> None:
    """Sum of every token's results with the gate's weights; then the residual."""
    edges, width = growth.coarse.incoming(op.id), growth.instance.model.hidden_size
    (residual,) = (edge for edge in edges if edge.tensor.startswith("attended."))
    tokens, g = residual.shape[0], op.id.rpartition(".")[2]
    total = growth.add(
        op, "unpermute", "mlp.token_dispatcher.unpermute", "aten::index_add",
        flops=op.flops - tokens * width,
    )  # fmt: skip
    last = growth.add(op, "mlp_bda", "mlp_bda", "aten::add", flops=tokens * width)
    for edge in edges:
        growth.bring(edge, last if edge is residual else total)
    growth.link(total, last, f"weighted.{g}", (tokens, width))
    growth.exits[op.id] = last
