"""The workload of a step: phase, tokens, contexts and micro-batches; and slow or failed hardware."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from moe_placer.errors import UsageError
from moe_placer.instance import Instance

__all__ = ["Condition", "Phase", "Workload"]

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Workload:
    """The tokens of one step.

    Attributes
    ----------
    phase : str
        ``prefill``: tokens are of sequences that start in this step; ``decode``: each continues another sequence.
    tokens_per_gpu : float or None
        Tokens that start on each GPU in one step (in decode: its sequences); None: what the instance states.
    context : float
        Tokens: the length of a sequence in prefill, what each token attends to in decode.
    micro_batches : int
        1, or 2: one half of the tokens communicates while the other computes.

    Raises
    ------
    UsageError
        A value makes no sense.
    """

    phase: Phase = "prefill"
    tokens_per_gpu: float | None = None
    context: float = 4096.0
    micro_batches: int = 2

    def __post_init__(self) -> None:
        if self.phase not in {"prefill", "decode"}:
            raise UsageError(f"phase is {self.phase}, expected prefill or decode")
        if self.tokens_per_gpu is not None and not 0 < self.tokens_per_gpu <= 1e9:
            raise UsageError(f"{self.tokens_per_gpu:g} tokens per GPU, expected more than 0, at most 1e9")
        if not 1 <= self.context <= 1e9:
            raise UsageError(f"context is {self.context:g} tokens, expected 1 to 1e9")
        if self.micro_batches not in {1, 2}:
            raise UsageError(f"{self.micro_batches} micro-batches, expected 1 or 2")

    def batch(self, instance: Instance) -> float:
        """Return the tokens that start on each GPU in one step of an instance."""
        return self.tokens_per_gpu or instance.traffic.tokens_per_gpu


@dataclass(frozen=True)
class Condition:
    """Slow or failed hardware.

    Attributes
    ----------
    slow_gpus : mapping
        Global GPU id to how many times longer it takes to compute.
    slow_links : mapping
        Link name to what its bandwidth is multiplied with: 0.5 is half.

    Raises
    ------
    UsageError
        A factor that makes no sense.
    """

    slow_gpus: dict[int, float] = field(default_factory=dict)
    slow_links: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for gpu, factor in self.slow_gpus.items():
            if not 0 < factor <= 1e6:
                raise UsageError(f"GPU {gpu} is to take {factor:g} times as long, expected more than 0, at most 1e6")
        for link, share in self.slow_links.items():
            if not 0 < share <= 1e6:
                raise UsageError(
                    f"link {link} is to have {share:g} of its bandwidth, expected more than 0, at most 1e6"
                )
