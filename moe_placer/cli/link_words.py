"""How a link is named everywhere: its plain tokens, their time, and the cost that placements minimise."""

from __future__ import annotations

__all__ = ["link_words"]


def link_words(tokens: float, us: float, cost: float) -> str:
    """Say what a link carries per step, as ``31,768 tokens, 1,423.2 µs (cost 63,536)``.

    Parameters
    ----------
    tokens : float
        Plain tokens per step.
    us : float
        Microseconds that the link needs for them, one way, at its real bandwidth.
    cost : float
        As `moe_placer.fabric.COST` defines it.
    """
    return f"{tokens:,.0f} tokens, {us:,.1f} µs (cost {cost:,.0f})"
