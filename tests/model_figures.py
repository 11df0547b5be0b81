"""What a model comes to as a whole, from what its parts come to."""

from __future__ import annotations

from moe_placer.instance.model_parts import attention_weights, dense_weights, expert_weights, shared_weights
from moe_placer.instance.schema import Model


def parameters(model: Model) -> tuple[float, float]:
    """Parameters in all, and those that one token meets, in 1e9; norms are left out."""
    moe = model.layers - len(model.dense_layers)
    always = model.layers * attention_weights(model) + len(model.dense_layers) * dense_weights(model)
    always += moe * (shared_weights(model) + model.experts * model.hidden_size)
    always += 2 * model.vocab_size * model.hidden_size
    per_expert = moe * expert_weights(model)
    return (always + model.experts * per_expert) / 1e9, (always + model.top_k * per_expert) / 1e9
