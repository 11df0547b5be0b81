"""How cost grows with size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["fitted_exponent"]


def fitted_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """Return b of the least-squares fit ``log cost = a + b log size``; None for fewer than three different sizes."""
    if len(set(sizes)) < 3:
        return None
    return float(np.polyfit(np.log(np.array(sizes, float)), np.log(np.array(costs, float)), 1)[0])
