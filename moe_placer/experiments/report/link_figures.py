"""Plain tokens and times of links, from the costs that rows have."""

from __future__ import annotations

import numpy as np

from moe_placer.experiments.report.rows import InstanceRow
from moe_placer.fabric import wire_us

__all__ = ["carried", "per_token"]


def per_token(row: InstanceRow) -> dict[str, tuple[float, float]]:
    """Return, of each link, the cost of one token and the microseconds that it needs for one, one way."""
    gb_per_s = np.array([link.bandwidth for link in row.links])
    us = wire_us(row.bytes_per_token, gb_per_s, float(row.fabric.get("link_utilization", 1.0)))
    cost = np.ones_like(gb_per_s) if row.metric == "tokens" else row.node_bandwidth / gb_per_s
    figures = zip(cost.tolist(), us.tolist(), strict=True)
    return dict(zip((link.name for link in row.links), figures, strict=True))


def carried(figures: dict[str, tuple[float, float]], link: str, cost: float) -> tuple[float, float]:
    """Plain tokens on a link of so much cost, and the microseconds that it needs for them; 0 where no link is named.

    ``figures`` are those of `per_token`.
    """
    if not link:
        return 0.0, 0.0
    one_cost, one_us = figures[link]
    return cost / one_cost, cost / one_cost * one_us
