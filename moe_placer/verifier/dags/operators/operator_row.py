"""What is required of an operator."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Operator", "Sequence"]

Shape = tuple[float, ...]


@dataclass(frozen=True)
class Sequence:
    """What tokens attend to: ``seen`` tokens on average, and how many of them are read from the cache per token.

    With ``absorbed``, as in decode, scores and context of latent attention work on the latents.
    """

    seen: float
    cached: float
    absorbed: bool = False


@dataclass(frozen=True)
class Operator:
    """One operator of an operation, on its GPUs.

    Attributes
    ----------
    module, function : str
        Below the layer, and PyTorch's name.
    weight : tuple of float
        On each GPU: outputs, inputs; empty without one.
    flops, vector_flops, cache_bytes : float
        On all GPUs together.
    needs : mapping
        Family of a tensor that another operator of the operation makes, to that operator's kind, the shape on each GPU,
        and the GPUs that it is divided over.
    """

    module: str
    function: str
    weight: Shape = ()
    flops: float = 0.0
    vector_flops: float = 0.0
    cache_bytes: float = 0.0
    needs: tuple[tuple[str, str, Shape, int], ...] = ()
