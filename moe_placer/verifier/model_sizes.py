"""The matrices of a model, one by one, and the precision of each: what attention, MLPs and gates must come to."""

from __future__ import annotations

from moe_placer.instance import Instance
from moe_placer.instance.schema import Gqa, Mla, Model

__all__ = [
    "BYTES_PER_VALUE",
    "attention_matrices",
    "dense_matrices",
    "peak_of",
    "precision_of",
    "resident_bytes",
    "shared_matrices",
    "values_of",
]

BYTES_PER_VALUE = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp4": 0.5}
Matrices = list[tuple[int, int]]  # rows and columns of each


def values_of(matrices: Matrices) -> int:
    """Values of some matrices together."""
    return sum(rows * columns for rows, columns in matrices)


def attention_matrices(model: Model) -> Matrices:
    """Matrices of one layer's attention, by its kind (``w_dq`` and so on: names of DeepSeek-V2, 2024, section 2.1)."""
    h, heads, d_v, kind = model.hidden_size, model.attention_heads, model.head_dim, model.attention
    if isinstance(kind, Mla):
        d_nope, d_rope, latent = kind.qk_nope_head_dim or d_v, kind.qk_rope_head_dim, kind.kv_lora_rank
        w_dkv, w_kr = (h, latent), (h, d_rope)
        w_uk, w_uv, w_o = (latent, heads * d_nope), (latent, heads * d_v), (heads * d_v, h)
        if kind.q_lora_rank is None:
            queries = [(h, heads * d_nope), (h, heads * d_rope)]
        else:
            rank = kind.q_lora_rank
            w_dq, w_uq, w_qr = (h, rank), (rank, heads * d_nope), (rank, heads * d_rope)
            queries = [w_dq, w_uq, w_qr]
        return [*queries, w_dkv, w_kr, w_uk, w_uv, w_o]
    kv = kind.kv_heads if isinstance(kind, Gqa) else heads
    w_q, w_k, w_v, w_o = (h, heads * d_v), (h, kv * d_v), (h, kv * d_v), (heads * d_v, h)
    return [w_q, w_k, w_v, w_o]


def dense_matrices(model: Model) -> Matrices:
    """Matrices of a dense layer's MLP: up, down and, where it is gated, gate."""
    width = model.top_k * model.expert_hidden_size if model.dense_hidden_size is None else model.dense_hidden_size
    count = model.expert_matrices if model.dense_matrices is None else model.dense_matrices
    return [(model.hidden_size, width)] * count


def shared_matrices(model: Model) -> Matrices:
    """Matrices of a MoE layer's shared experts, which are gated or plain as the others are."""
    if model.shared_expert_hidden_size is None:
        return []
    return [(model.hidden_size, model.shared_expert_hidden_size)] * model.expert_matrices


def precision_of(model: Model, part: str) -> str:
    """Name the dtype of a part of the model."""
    own = {} if model.dtypes is None else model.dtypes.model_dump()
    return str(own.get(part) or model.dtype)


def peak_of(instance: Instance, part: str) -> float:
    """Peak of a GPU for a part in TFLOP/s: that of its dtype, else of the narrowest one that holds its values."""
    gpu, dtype = instance.cluster.gpu, precision_of(instance.model, part)
    stated: dict[str, float] = {str(name): peak for name, peak in gpu.dtype_tflops.items()}
    if dtype in stated:
        return stated[dtype]
    size = BYTES_PER_VALUE[dtype]
    # Multiplying in fp32 is what only fp32 asks for.
    fitting = [name for name in ("fp4", "fp8", "bf16", "fp16") if name in stated and BYTES_PER_VALUE[name] >= size]
    return stated[fitting[0]] if fitting and dtype != "fp32" else gpu.peak_tflops


def resident_bytes(instance: Instance) -> float:
    """Bytes of weights on every working GPU, whatever it holds of experts."""
    model = instance.model
    moe = model.layers - len(set(model.dense_layers))
    table = (model.vocab_size, model.hidden_size)
    parts = (
        ("attention", model.layers, attention_matrices(model)),
        ("dense", model.layers - moe, dense_matrices(model)),
        ("shared", moe, shared_matrices(model)),
        ("head", 1, [table, table]),
    )
    size = sum(count * values_of(own) * BYTES_PER_VALUE[precision_of(model, part)] for part, count, own in parts)
    return size / instance.parallelism.attention_tp
