"""Holds a placement to the gap that `--fail-above-gap` allows."""

from __future__ import annotations

import math

from moe_placer.errors import GapError, UsageError

__all__ = ["check_gap_asked", "hold_gap"]


def check_gap_asked(most: float | None) -> None:
    """Refuse a gap that makes no sense, before anything is done."""
    if most is not None and not 0 <= most < math.inf:
        raise UsageError(f"--fail-above-gap is {most:g}, expected 0 or more (0.01 is 1%)")


def hold_gap(gap: float, most: float | None) -> None:
    """Raise where a gap is above what is allowed, or not known; None allows any."""
    if most is not None and not gap <= most:
        found = f"{gap:.3%}" if math.isfinite(gap) else "not known"
        raise GapError(f"the gap to the re-checkable bound is {found}, above --fail-above-gap {most:.3%}")
