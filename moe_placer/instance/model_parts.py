"""What the parts of a model come to: values of weights, FLOPs, keys and values, and the dtype and peak of each."""

from __future__ import annotations

from typing import Literal

from moe_placer.instance.instance import Instance
from moe_placer.instance.schema import Dtype, Gqa, Mla, Model

__all__ = [
    "BYTES_PER_VALUE",
    "Part",
    "attention_held",
    "attention_weights",
    "dense_weights",
    "dtype_of",
    "expert_weights",
    "kv_shards",
    "kv_values",
    "pair_flops",
    "part_bytes",
    "peak_tflops",
    "shared_weights",
]

BYTES_PER_VALUE = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp4": 0.5}
# A dtype whose peak is not stated runs on the units of the first one here that has a peak.
_WIDER = {
    "fp4": ("fp4", "fp8", "bf16", "fp16"),
    "fp8": ("fp8", "bf16", "fp16"),
    "bf16": ("bf16", "fp16"),
    "fp16": ("fp16", "bf16"),
    "fp32": ("fp32",),
}

Part = Literal["attention", "scores", "kv_cache", "dense", "shared", "experts", "gate", "head", "activations"]
Phase = Literal["prefill", "decode"]


def dtype_of(model: Model, part: Part) -> Dtype:
    """Precision of one part of the model: its own in ``model.dtypes``, or ``model.dtype``."""
    own: Dtype | None = None if model.dtypes is None else getattr(model.dtypes, part)
    return own or model.dtype


def part_bytes(model: Model, part: Part) -> float:
    """Bytes of one value of a part."""
    return BYTES_PER_VALUE[dtype_of(model, part)]


def peak_tflops(instance: Instance, part: Part) -> float:
    """Peak of a GPU for a part, TFLOP/s: of its dtype or the next wider one in ``gpu.dtype_tflops``, if it has any."""
    gpu = instance.cluster.gpu
    wider = _WIDER[dtype_of(instance.model, part)]
    return next((gpu.dtype_tflops[dtype] for dtype in wider if dtype in gpu.dtype_tflops), gpu.peak_tflops)


def attention_weights(model: Model) -> int:
    """Values of the projections of one layer's attention.

    ``mla`` has, for queries, a projection to their latent and from there to all heads (or straight to them); for keys
    and values one to the latent and the shared rope part, and one from the latent to all heads. In decode the latter is
    absorbed into queries and results, and takes as many FLOPs per token as it has values.
    """
    hidden, heads, width = model.hidden_size, model.attention_heads, model.head_dim
    kind = model.attention
    if isinstance(kind, Mla):
        queries = heads * (kind.nope(model) + kind.qk_rope_head_dim)
        to_queries = (hidden + queries) * kind.q_lora_rank if kind.q_lora_rank else hidden * queries
        to_latent = hidden * (kind.kv_lora_rank + kind.qk_rope_head_dim)
        from_latent = kind.kv_lora_rank * heads * (kind.nope(model) + width)
        return to_queries + to_latent + from_latent + heads * width * hidden
    return 2 * hidden * width * (heads + _kv_heads(model))


def kv_values(model: Model) -> int:
    """Values that the KV cache keeps of one token in one layer: two per head and dimension, or the latent and rope."""
    kind = model.attention
    if isinstance(kind, Mla):
        return kind.kv_lora_rank + kind.qk_rope_head_dim
    return 2 * _kv_heads(model) * model.head_dim


def kv_shards(model: Model, gpus: int) -> int:
    """Over how many of the GPUs that share attention keys and values are divided: a head is whole, a latent on all."""
    return 1 if isinstance(model.attention, Mla) else min(gpus, _kv_heads(model))


def pair_flops(model: Model, phase: Phase) -> float:
    """FLOPs of a token and one that it attends to, in one layer: a score and a weighted value for every head.

    ``mla`` works on heads of ``qk_nope + qk_rope`` and ``head_dim`` in prefill, and on the latent itself in decode.
    """
    kind, heads = model.attention, model.attention_heads
    if not isinstance(kind, Mla):
        return 4.0 * heads * model.head_dim
    if phase == "decode":
        return 2.0 * heads * (2 * kind.kv_lora_rank + kind.qk_rope_head_dim)
    return 2.0 * heads * (kind.nope(model) + kind.qk_rope_head_dim + model.head_dim)


def attention_held(model: Model, phase: Phase) -> int:
    """Values that attention holds of one token while it works: queries, keys, values and results of all heads."""
    kind, heads = model.attention, model.attention_heads
    if not isinstance(kind, Mla):
        return 2 * model.head_dim * (heads + _kv_heads(model))
    if phase == "decode":
        return heads * (2 * kind.kv_lora_rank + kind.qk_rope_head_dim)
    return 2 * heads * (kind.nope(model) + kind.qk_rope_head_dim + model.head_dim)


def dense_weights(model: Model) -> int:
    """Values of the MLP of one dense layer."""
    width = model.dense_hidden_size or model.top_k * model.expert_hidden_size
    return (model.dense_matrices or model.expert_matrices) * model.hidden_size * width


def shared_weights(model: Model) -> int:
    """Values of the shared experts of one MoE layer; 0 where there are none."""
    return model.expert_matrices * model.hidden_size * (model.shared_expert_hidden_size or 0)


def expert_weights(model: Model) -> int:
    """Values of one expert."""
    return model.expert_matrices * model.hidden_size * model.expert_hidden_size


def _kv_heads(model: Model) -> int:
    return model.attention.kv_heads if isinstance(model.attention, Gqa) else model.attention_heads
