"""What a step's memory allows: the largest batch, and in decode the longest context."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.schedule.step_figures import Memory

__all__ = ["longest_context", "most_tokens"]

Floats = npt.NDArray[np.float64]


def most_tokens(memory: Memory, tokens_per_gpu: float) -> float:
    """Return the most tokens per GPU that every GPU's memory holds: all but weights and what is reserved grows."""
    free = memory.size - memory.weights
    reserved = _that_fit(free - memory.kv_reserved, memory.activations / tokens_per_gpu)
    return min(reserved, _that_fit(free, (memory.kv_cache + memory.activations) / tokens_per_gpu))


def _that_fit(free: Floats, per_token: Floats) -> float:
    """Return the most tokens with which no GPU needs more than it has free; 0 where one has nothing free."""
    most = np.divide(free, per_token, out=np.where(free >= 0, np.inf, 0.0), where=per_token > 0)
    return max(0.0, float(most.min()))


def longest_context(memory: Memory, context: float) -> float:
    """Return the longest context that every GPU's memory holds in decode, where only keys and values grow with it.

    Parameters
    ----------
    memory : Memory
        Of a decode step.
    context : float
        Tokens that each token of that step attends to.
    """
    free = memory.size - memory.weights - memory.activations
    if (free < memory.kv_reserved).any():
        return 0.0
    return _that_fit(free, memory.kv_cache / context)
