"""What each operation of a layer must be taken apart into: operators with weights, FLOPs, tensors and shapes."""

from __future__ import annotations

from dataclasses import dataclass

from moe_placer.instance import Instance
from moe_placer.instance.schema import Gqa, Mla, Model
from moe_placer.verifier.dags.operators.latent import latent_operators
from moe_placer.verifier.dags.operators.operator_row import Operator, Sequence
from moe_placer.verifier.model_sizes import BYTES_PER_VALUE, dense_matrices, precision_of, shared_matrices

__all__ = ["ENTRIES", "EXITS", "FLOATING", "KEPT", "ROLES", "Work", "operators_of"]

# Which operator takes what comes into an operation, by the family of the tensor, and which makes its result.
ENTRIES: dict[str, dict[str, tuple[str, ...]]] = {
    "attention": {"hidden": ("linear_qkv", "linear_qkv_down_proj")},  # the model's kind of attention has one of them
    "mlp": {"attended": ("linear_fc1",)},
    "gate": {"attended": ("router_gating",)},
    "expert": {"tokens": ("linear_fc1",)},
    "aggregate": {
        **dict.fromkeys(("combined", "choices", "shared"), ("unpermute",)),
        "attended": ("mlp_bda",),
    },
}
EXITS = {
    "attention": "linear_proj",
    "mlp": "linear_fc2",
    "gate": "router_topk",
    "expert": "linear_fc2",
    "aggregate": "mlp_bda",
}
# Operators between operations, which the coarse graph leaves out, and the tensor that each is named after.
FLOATING = {
    "input_layernorm": ("input_layernorm_in",),
    "pre_mlp_layernorm": ("pre_mlp_layernorm_in",),
    "self_attn_bda": ("self_attn_bda_block", "self_attn_bda_residual"),
    "mlp_bda": ("mlp_bda_block", "mlp_bda_residual"),
}
# Operations that are not taken apart: module below the layer, or of the model, and PyTorch's function.
KEPT = {
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
ROLES = {
    "latent_gather": "communication",
    **dict.fromkeys(("router_topk", "unpermute"), "routing"),
    **dict.fromkeys(
        (
            *FLOATING,
            *("linear_qkv", "attention_scores", "attention_softmax", "attention_context", "linear_proj"),
            *("linear_qkv_down_proj", "linear_q_up_proj", "linear_kv_up_proj"),
            *("rotary", "absorb_keys", "absorb_values"),
            *("linear_fc1", "activation_func", "linear_fc2", "router_gating"),
        ),
        "computation",
    ),
}


@dataclass(frozen=True)
class Work:
    """What an operation works on: tokens, FLOPs of sums per value, GPUs, number among experts, a layer with experts."""

    tokens: float
    sums: float
    gpus: int
    number: int
    moe: bool


def operators_of(kind: str, instance: Instance, sequence: Sequence, work: Work) -> dict[str, Operator]:
    """Return the operators of an operation by their kind.

    Parameters
    ----------
    kind : str
        ``attention``, ``mlp``, ``gate``, ``expert`` or ``aggregate``.
    instance : Instance
    sequence : Sequence
        What tokens attend to.
    work : Work
        What the operation works on.
    """
    model, tokens, gpus = instance.model, work.tokens, work.gpus
    if kind == "attention" and isinstance(model.attention, Mla):
        return latent_operators(model, sequence, tokens, gpus)
    if kind == "attention":
        return _attention(model, sequence, tokens, gpus)
    if kind == "gate":
        return _gate(model, tokens)
    if kind == "expert":
        matrices = [(model.hidden_size, model.expert_hidden_size)] * model.expert_matrices
        return _mlp(matrices, f"mlp.experts.local_experts.{work.number}", tokens, gpus)
    if kind == "mlp":
        shared = shared_matrices(model)
        return (
            _mlp(shared, "mlp.shared_experts", tokens, gpus)
            if work.moe
            else _mlp(dense_matrices(model), "mlp", tokens, gpus)
        )
    h = model.hidden_size
    added = tokens * h * (model.shared_expert_hidden_size is not None)
    return {
        "unpermute": Operator("mlp.token_dispatcher.unpermute", "aten::index_add", flops=work.sums * h + added),
        "mlp_bda": Operator(
            "mlp_bda", "aten::add", flops=tokens * h, needs=(("weighted", "unpermute", (tokens, h), 1),)
        ),
    }


def _attention(model: Model, sequence: Sequence, tokens: float, gpus: int) -> dict[str, Operator]:
    """Heads divided over GPUs: queries, keys and values by columns, the output by rows; fewer keys where grouped."""
    h, heads, d, s = model.hidden_size, model.attention_heads, model.head_dim, sequence.seen
    kv = model.attention.kv_heads if isinstance(model.attention, Gqa) else heads
    one, one_kv, core = heads / gpus, kv / gpus, "self_attention.core_attention"
    products = 2.0 * heads * d * tokens * s
    cache = kv * d * tokens * sequence.cached * BYTES_PER_VALUE[precision_of(model, "kv_cache")]
    square, keys = (tokens, one, s), (tokens, one_kv, d)
    return {
        "linear_qkv": Operator(
            "self_attention.linear_qkv", "aten::linear", (one * d + 2 * one_kv * d, h),
            2.0 * h * d * tokens * (heads + kv + kv),
        ),
        "attention_scores": Operator(
            core, "aten::bmm", flops=products, cache_bytes=cache,
            needs=(("query", "linear_qkv", (tokens, one, d), gpus), ("key", "linear_qkv", keys, gpus)),
        ),
        "attention_softmax": Operator(
            core, "aten::_softmax", vector_flops=5.0 * heads * tokens * s,
            needs=(("scores", "attention_scores", square, gpus),),
        ),
        "attention_context": Operator(
            core, "aten::bmm", flops=products, cache_bytes=cache,
            needs=(("value", "linear_qkv", keys, gpus), ("probabilities", "attention_softmax", square, gpus)),
        ),
        "linear_proj": Operator(
            "self_attention.linear_proj", "aten::linear", (h, one * d), 2.0 * h * heads * d * tokens,
            needs=(("context", "attention_context", (tokens, one * d), gpus),),
        ),
    }  # fmt: skip


def _mlp(matrices: list[tuple[int, int]], module: str, tokens: float, gpus: int) -> dict[str, Operator]:
    """Up (and gate) by columns, down by rows; GELU of 10 operations a value, or SiLU and a product of 13."""
    (h, width), ups = matrices[0], {2: 1, 3: 2}[len(matrices)]
    one = width / gpus
    return {
        "linear_fc1": Operator(f"{module}.linear_fc1", "aten::linear", (ups * one, h), 2.0 * h * ups * width * tokens),
        "activation_func": Operator(
            f"{module}.activation_func", {1: "aten::gelu", 2: "aten::silu, aten::mul"}[ups],
            vector_flops={1: 10.0, 2: 13.0}[ups] * width * tokens,
            needs=(("up", "linear_fc1", (tokens, ups * one), gpus),),
        ),
        "linear_fc2": Operator(
            f"{module}.linear_fc2", "aten::linear", (h, one), 2.0 * h * width * tokens,
            needs=(("activated", "activation_func", (tokens, one), gpus),),
        ),
    }  # fmt: skip


def _gate(model: Model, tokens: float) -> dict[str, Operator]:
    e, h = model.experts, model.hidden_size
    return {
        "router_gating": Operator("mlp.router.gating", "aten::linear", (e, h), 2.0 * h * e * tokens),
        "router_topk": Operator(
            "mlp.router.routing", "aten::_softmax, aten::topk", vector_flops=6.0 * e * tokens,
            needs=(("logits", "router_gating", (tokens, e), 1),),
        ),
    }  # fmt: skip
