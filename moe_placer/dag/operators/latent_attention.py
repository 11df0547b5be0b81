"""Takes multi-head latent attention (DeepSeek-V2) apart: down to latents, up to heads, or the latents themselves.

In prefill keys and values of all heads come out of the latent; in decode the matrices that would make them are absorbed
into queries and results, and scores and context work on the cached latents.
"""

from __future__ import annotations

from moe_placer.dag.operation import Edge, Operation
from moe_placer.dag.operators.operator_builder import OperatorBuilder
from moe_placer.instance.model_parts import kv_values, part_bytes
from moe_placer.instance.schema import Mla

__all__ = ["refine_latent_attention"]

_CORE, _UP = "self_attention.core_attention", "self_attention.linear_kv_up_proj"


def refine_latent_attention(builder: OperatorBuilder, op: Operation, edge: Edge, norm: Operation) -> Operation:
    """Add the operators of latent attention up to the output projection, which they lead to; return it.

    Parameters
    ----------
    builder : OperatorBuilder
    op : Operation
        The coarse operation.
    edge : Edge
        Brings it hidden states.
    norm : Operation
        Makes them.
    """
    kind = builder.instance.model.attention
    assert isinstance(kind, Mla)
    return _Latent(builder, op, kind, edge.shape[0]).refine(edge, norm)


class _Latent:
    """One attention operation: heads are divided over its GPUs; latents are made in parts, and gathered."""

    def __init__(self, builder: OperatorBuilder, op: Operation, kind: Mla, tokens: float) -> None:
        model = builder.instance.model
        self.builder, self.op, self.tokens = builder, op, tokens
        self.tag = op.id.rpartition(".")[2]
        self.hidden, self.heads, self.value = model.hidden_size, model.attention_heads, model.head_dim
        self.nope, self.rope, self.latent = kind.nope(model), kind.qk_rope_head_dim, kind.kv_lora_rank
        self.query_latent = kind.q_lora_rank or 0
        self.gpus = len(op.gpus)
        self.own = self.heads / self.gpus  # heads of each GPU, on average
        self.pairs = tokens * builder.attended.seen * self.heads

    def refine(self, edge: Edge, norm: Operation) -> Operation:
        down, latents, queries = self._down_and_up()
        self.builder.bring(edge, down, norm)
        rotary = self._add(
            "rotary", "self_attention.rotary_pos_emb", "aten::mul, aten::add",
            vector_flops=3 * self.tokens * self.rope * (self.heads + self.gpus),
        )  # fmt: skip
        self._heads(queries, rotary, "query_rope", self.rope)
        self._whole(latents, rotary, "key_rope", self.rope)
        scores, context, project = self._core()
        self._heads(rotary, scores, "rotated_query", self.rope)
        self._whole(rotary, scores, "rotated_key", self.rope)
        if self.builder.attended.phase == "decode":
            self._absorbed(queries, latents, scores, context, project)
        else:
            self._from_latent(queries, latents, scores, context, project)
        return project

    def _add(self, kind: str, module: str, function: str, **costs: object) -> Operation:
        return self.builder.add(self.op, kind, module, function, **costs)  # type: ignore[arg-type]

    def _linear(
        self, kind: str, module: str, outputs: float, inputs: float, function: str = "aten::linear"
    ) -> Operation:
        """Add a projection by columns: ``outputs`` are those of all GPUs."""
        return self._add(
            kind, module, function, weight=(outputs / self.gpus, inputs), of="attention",
            flops=2 * self.tokens * inputs * outputs,
        )  # fmt: skip

    def _heads(self, source: Operation, target: Operation, name: str, width: float) -> None:
        self._part(source, target, name, (self.tokens, self.own, width))

    def _part(self, source: Operation, target: Operation, name: str, shape: tuple[float, ...]) -> None:
        self.builder.link(source, target, f"{name}.{self.tag}", shape, parts=self.gpus)

    def _whole(self, source: Operation, target: Operation, name: str, width: float) -> None:
        self.builder.link(source, target, f"{name}.{self.tag}", (self.tokens, width))

    def _down_and_up(self) -> tuple[Operation, Operation, Operation]:
        """Add the projection from hidden states, and return it, what makes the latents, and what makes queries."""
        of_heads = self.heads * (self.nope + self.rope)
        kept = self.latent + self.rope + self.query_latent  # of a token, beside queries that need no latent
        wide = kept + (0 if self.query_latent else of_heads)
        down = self._linear("linear_qkv_down_proj", "self_attention.linear_qkv_down_proj", wide, self.hidden)
        latents = down
        if self.gpus > 1:
            latents = self._add("latent_gather", "self_attention.linear_qkv_down_proj", "c10d::_allgather_base_")
            self._part(down, latents, "latents", (self.tokens, kept / self.gpus))
        if not self.query_latent:
            return down, latents, down
        queries = self.builder.add(
            self.op, "linear_q_up_proj", "self_attention.linear_q_up_proj", "aten::rms_norm, aten::linear",
            weight=(of_heads / self.gpus, self.query_latent), of="attention",
            flops=2 * self.tokens * self.query_latent * of_heads,
            vector_flops=4 * self.tokens * self.query_latent * self.gpus,
        )  # fmt: skip
        self._whole(latents, queries, "query_latent", self.query_latent)
        return down, latents, queries

    def _core(self) -> tuple[Operation, Operation, Operation]:
        """Add scores, softmax, context and the output projection; every GPU reads the whole latent of a token."""
        builder, decode = self.builder, self.builder.attended.phase == "decode"
        model, seen = builder.instance.model, builder.attended.seen
        cached = self.tokens * kv_values(model) * part_bytes(model, "kv_cache") * self.gpus * (seen if decode else 1.0)
        keys, values = (self.latent, self.latent) if decode else (self.nope, self.value)
        flops = 2 * self.pairs * (keys + self.rope)
        scores = self._add("attention_scores", _CORE, "aten::bmm", flops=flops, cache_bytes=cached)
        softmax = self._add("attention_softmax", _CORE, "aten::_softmax", vector_flops=5 * self.pairs)
        context = self._add("attention_context", _CORE, "aten::bmm", flops=2 * self.pairs * values)
        project = self._add(
            "linear_proj", "self_attention.linear_proj", "aten::linear",
            weight=(self.hidden, self.own * self.value), of="attention",
            flops=2 * self.tokens * self.hidden * self.heads * self.value,
        )  # fmt: skip
        self._heads(scores, softmax, "scores", seen)
        self._heads(softmax, context, "probabilities", seen)
        return scores, context, project

    def _from_latent(
        self, queries: Operation, latents: Operation, scores: Operation, context: Operation, project: Operation
    ) -> None:
        """Prefill: keys and values of all heads come out of the latent."""
        up = self._linear("linear_kv_up_proj", _UP, self.heads * (self.nope + self.value), self.latent)
        self._whole(latents, up, "latent", self.latent)
        self._heads(queries, scores, "query", self.nope)
        self._heads(up, scores, "key", self.nope)
        self._heads(up, context, "value", self.value)
        self._part(context, project, "context", (self.tokens, self.own * self.value))

    def _absorbed(
        self, queries: Operation, latents: Operation, scores: Operation, context: Operation, project: Operation
    ) -> None:
        """Decode: what would make keys works on queries, and what would make values on results."""
        keys = self._linear("absorb_keys", _UP, self.heads * self.nope, self.latent, "aten::bmm")
        values = self._linear("absorb_values", _UP, self.heads * self.value, self.latent, "aten::bmm")
        self._heads(queries, keys, "query", self.nope)
        self._heads(keys, scores, "absorbed_query", self.latent)
        self._whole(latents, scores, "latent", self.latent)
        self._whole(latents, context, "latent", self.latent)
        self._heads(context, values, "latent_context", self.latent)
        self._part(values, project, "context", (self.tokens, self.own * self.value))
