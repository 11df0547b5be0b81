"""The section ``model`` of an instance file: layers, attention, experts, and the precision of each part."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moe_placer.instance.section import Dtype, ListOf, Section

__all__ = ["Dtypes", "Gqa", "Mha", "Mla", "Model"]


class Mha(Section):
    """Multi-head attention: every head has keys and values of its own."""

    kind: Literal["mha"]


class Gqa(Section):
    """Grouped-query attention: several heads share keys and values."""

    kind: Literal["gqa"]
    kv_heads: int = Field(ge=1, le=100_000, description="Heads of keys and values; divides attention_heads.")


class Mla(Section):
    """Multi-head latent attention (DeepSeek-V2): the cache has one latent and one rope part per token.

    ``model.head_dim`` is what a head has of values, ``v_head_dim`` of Hugging Face configs.
    """

    kind: Literal["mla"]
    kv_lora_rank: int = Field(ge=1, le=1_000_000, description="Latent dimension of keys and values.")
    qk_rope_head_dim: int = Field(ge=1, le=100_000, description="Rotary dimension, shared by all heads.")
    q_lora_rank: int | None = Field(
        None, ge=1, le=1_000_000, description="Latent dimension of queries; absent: one projection from hidden_size."
    )
    qk_nope_head_dim: int | None = Field(
        None, ge=1, le=100_000, description="What a head has of keys beside the rope part; absent: head_dim."
    )

    def nope(self, model: Model) -> int:
        """Return what a head has of keys beside the rope part."""
        return self.qk_nope_head_dim or model.head_dim


class Dtypes(Section):
    """Precision of parts of the model; what is absent has ``model.dtype``."""

    attention: Dtype | None = Field(None, description="Projections of attention.")
    scores: Dtype | None = Field(None, description="Scores and weighted values: products with keys and values.")
    kv_cache: Dtype | None = Field(None, description="Keys and values, or latents, as they are kept.")
    dense: Dtype | None = Field(None, description="MLPs of dense layers.")
    shared: Dtype | None = Field(None, description="Shared experts.")
    experts: Dtype | None = Field(None, description="Routed experts.")
    gate: Dtype | None = Field(None, description="Routers.")
    head: Dtype | None = Field(None, description="Embedding, final norm and output head.")
    activations: Dtype | None = Field(
        None, description="Hidden states inside a node; between nodes placement.dispatch_dtype and combine_dtype count."
    )


class Model(Section):
    """The Mixture-of-Experts model."""

    layers: int = Field(ge=1, le=1000, description="Transformer layers, dense ones included.")
    dense_layers: ListOf[Annotated[int, Field(ge=0)]] = Field(
        (), max_length=1000, description="Indices (from 0) of the layers without experts; every other layer is MoE."
    )
    hidden_size: int = Field(ge=1, le=1_000_000, description="Token dimension.")
    attention_heads: int = Field(ge=1, le=100_000)
    head_dim: int = Field(ge=1, le=100_000)
    experts: int = Field(ge=1, le=8192, description="Logical experts per MoE layer.")
    top_k: int = Field(ge=1, le=256, description="Experts that one token chooses in one layer.")
    expert_hidden_size: int = Field(ge=1, le=1_000_000)
    expert_matrices: Literal[2, 3] = Field(2, description="2: plain MLP (up, down); 3: gated MLP.")
    dtype: Dtype = Field(
        "bf16", description="Precision of weights, KV cache and, unless placement says otherwise, tokens on the wire."
    )
    dense_hidden_size: int | None = Field(
        None, ge=1, le=10_000_000, description="MLP width of the dense layers; absent: top_k * expert_hidden_size."
    )
    dense_matrices: Literal[2, 3] | None = Field(
        None, description="Of the MLPs of dense layers, 2: plain, 3: gated; absent: as expert_matrices."
    )
    shared_expert_hidden_size: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="Width of the shared experts of a MoE layer together, which every token goes through on its own "
        "GPUs; absent: there are none.",
    )
    attention: Annotated[Mha | Gqa | Mla, Field(discriminator="kind")] | None = Field(
        None, description="Kind of attention; absent: mha."
    )
    expert_groups: int | None = Field(
        None, ge=1, le=8192, description="Groups of neighbouring experts, of which a token chooses top_groups first."
    )
    top_groups: int | None = Field(
        None,
        ge=1,
        le=8192,
        description="Groups that a token's experts are from (node-limited routing: n_group and topk_group of "
        "DeepSeek-V3); only kind: synthetic asks, recordings have chosen.",
    )
    dtypes: Dtypes | None = Field(None, description="Where the precision of parts differs from dtype.")
    vocab_size: int = Field(129_280, ge=1, le=100_000_000, description="For the embedding and the output head.")
