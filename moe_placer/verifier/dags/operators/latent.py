"""What latent attention must be taken apart into, from its matrices (DeepSeek-V2, 2024, section 2.1 and appendix C)."""

from __future__ import annotations

from dataclasses import dataclass

from moe_placer.instance.schema import Mla, Model
from moe_placer.verifier.dags.operators.operator_row import Operator, Sequence
from moe_placer.verifier.model_sizes import BYTES_PER_VALUE, precision_of

__all__ = ["latent_operators"]

_ATTENTION = "self_attention"


def latent_operators(model: Model, sequence: Sequence, tokens: float, gpus: int) -> dict[str, Operator]:
    """Return the operators of latent attention by their kind.

    Matrices are divided by columns, ``w_o`` by rows; without ``w_dq``, queries come straight from hidden states. The
    tokens' latents are then whole on every GPU, and so are what the cache has of them.

    Parameters
    ----------
    model : Model
    sequence : Sequence
        What tokens attend to.
    tokens : float
        That come in.
    gpus : int
        That share the heads.
    """
    kind, h, heads, s = model.attention, model.hidden_size, model.attention_heads, sequence.seen
    assert isinstance(kind, Mla)
    d_rope, d_v, c, d_nope = kind.qk_rope_head_dim, model.head_dim, kind.kv_lora_rank, kind.qk_nope_head_dim
    d_nope, rank = model.head_dim if d_nope is None else d_nope, kind.q_lora_rank
    some = heads / gpus
    width = c + d_rope + (0 if rank is None else rank)
    columns = (width + (heads * (d_nope + d_rope) if rank is None else 0)) / gpus
    found = {
        "linear_qkv_down_proj": Operator(
            f"{_ATTENTION}.linear_qkv_down_proj", "aten::linear", (columns, h), 2.0 * h * columns * gpus * tokens
        )
    }
    queries = latents = "linear_qkv_down_proj"
    if gpus > 1:
        found["latent_gather"] = Operator(
            f"{_ATTENTION}.linear_qkv_down_proj", "c10d::_allgather_base_",
            needs=(("latents", latents, (tokens, width / gpus), gpus),),
        )  # fmt: skip
        latents = "latent_gather"
    if rank is not None:
        queries = "linear_q_up_proj"
        found[queries] = Operator(
            f"{_ATTENTION}.linear_q_up_proj", "aten::rms_norm, aten::linear", (some * (d_nope + d_rope), rank),
            flops=2.0 * rank * heads * (d_nope + d_rope) * tokens, vector_flops=4.0 * rank * tokens * gpus,
            needs=(("query_latent", latents, (tokens, rank), 1),),
        )  # fmt: skip
    turned = heads * tokens * d_rope + gpus * tokens * d_rope  # every GPU turns the key that its heads share
    found["rotary"] = Operator(
        f"{_ATTENTION}.rotary_pos_emb", "aten::mul, aten::add", vector_flops=3.0 * turned,
        needs=(("query_rope", queries, (tokens, some, d_rope), gpus), ("key_rope", latents, (tokens, d_rope), 1)),
    )  # fmt: skip
    cache = (c + d_rope) * tokens * sequence.cached * BYTES_PER_VALUE[precision_of(model, "kv_cache")] * gpus
    inner = _absorbed if sequence.absorbed else _expanded
    return found | inner(_Sizes(tokens, gpus, some, heads, h, c, d_nope, d_rope, d_v, s, cache), queries, latents)


@dataclass(frozen=True)
class _Sizes:
    """Sizes that scores and context need: as in `latent_operators`."""

    tokens: float
    gpus: int
    some: float
    heads: int
    h: int
    c: int
    d_nope: int
    d_rope: int
    d_v: int
    s: float
    cache: float

    def need(self, tensor: str, source: str, width: float) -> tuple[str, str, tuple[float, ...], int]:
        """Return a tensor that the heads are divided over."""
        return (tensor, source, (self.tokens, self.some, width), self.gpus)

    def core(
        self, keys: float, values: float, scores: list[tuple[str, str, tuple[float, ...], int]],
        context: list[tuple[str, str, tuple[float, ...], int]], last: str,
    ) -> dict[str, Operator]:  # fmt: skip
        """Return scores, softmax, context and the output projection.

        Parameters
        ----------
        keys, values : float
            Width of what a head's query meets, without the rotary part, and of what it sums.
        scores, context : list
            Tensors that these two need, beside the rotary parts and the probabilities.
        last : str
            What makes the results of all heads.
        """
        module, many = f"{_ATTENTION}.core_attention", 2.0 * self.heads * self.tokens * self.s
        rotated = ("rotated_key", "rotary", (self.tokens, self.d_rope), 1)
        return {
            "attention_scores": Operator(
                module, "aten::bmm", flops=many * (keys + self.d_rope), cache_bytes=self.cache,
                needs=(*scores, self.need("rotated_query", "rotary", self.d_rope), rotated),
            ),
            "attention_softmax": Operator(
                module, "aten::_softmax", vector_flops=2.5 * many,
                needs=(self.need("scores", "attention_scores", self.s),),
            ),
            "attention_context": Operator(
                module, "aten::bmm", flops=many * values,
                needs=(*context, self.need("probabilities", "attention_softmax", self.s)),
            ),
            "linear_proj": Operator(
                f"{_ATTENTION}.linear_proj", "aten::linear", (self.h, self.some * self.d_v),
                2.0 * self.h * self.heads * self.d_v * self.tokens,
                needs=(("context", last, (self.tokens, self.some * self.d_v), self.gpus),),
            ),
        }  # fmt: skip


def _expanded(sizes: _Sizes, queries: str, latents: str) -> dict[str, Operator]:
    """Make keys and values of all heads, by ``w_uk`` and ``w_uv``."""
    up, width = "linear_kv_up_proj", sizes.d_nope + sizes.d_v
    scores = [sizes.need("query", queries, sizes.d_nope), sizes.need("key", up, sizes.d_nope)]
    return {
        up: Operator(
            f"{_ATTENTION}.{up}", "aten::linear", (sizes.some * width, sizes.c),
            2.0 * sizes.c * sizes.heads * width * sizes.tokens,
            needs=(("latent", latents, (sizes.tokens, sizes.c), 1),),
        ),
        **sizes.core(
            sizes.d_nope, sizes.d_v, scores, [sizes.need("value", up, sizes.d_v)], "attention_context"
        ),
    }  # fmt: skip


def _absorbed(sizes: _Sizes, queries: str, latents: str) -> dict[str, Operator]:
    """Take queries through ``w_uk``, results through ``w_uv``, and latents in place of keys and values."""
    module, latent = f"{_ATTENTION}.linear_kv_up_proj", ("latent", latents, (sizes.tokens, sizes.c), 1)
    each = 2.0 * sizes.c * sizes.heads * sizes.tokens
    scores = [sizes.need("absorbed_query", "absorb_keys", sizes.c), latent]
    return {
        "absorb_keys": Operator(
            module, "aten::bmm", (sizes.some * sizes.d_nope, sizes.c), each * sizes.d_nope,
            needs=(sizes.need("query", queries, sizes.d_nope),),
        ),
        "absorb_values": Operator(
            module, "aten::bmm", (sizes.some * sizes.d_v, sizes.c), each * sizes.d_v,
            needs=(sizes.need("latent_context", "attention_context", sizes.c),),
        ),
        **sizes.core(sizes.c, sizes.c, scores, [latent], "absorb_values"),
    }  # fmt: skip
