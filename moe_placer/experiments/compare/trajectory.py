"""Placement and bound against time, from what a run noted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from moe_placer.experiments.bench.figures import Event, figures
from moe_placer.result import gap
from moe_placer.verifier import Verification

__all__ = ["find_seconds", "trajectory"]

Point = list[float]  # seconds, sum of z, sum of re-checkable bounds

_SAME = 1e-9  # relative
_CLOSE = 0.01


def trajectory(events: Sequence[Event], checked: Verification, total_s: float) -> list[Point]:
    """Return how the sums over layers went, from when every layer had a placement to the verified end.

    What a solver told on its way is its word, so what the verified end contradicts is left out: no sum of z below the
    last, no bound above the last.
    """
    points: list[Point] = []
    state: dict[int, tuple[float, float]] = {}
    least, most = checked.total_z * (1 - _SAME), checked.total_bound
    for seconds, group in groupby(events, key=lambda event: event[0]):
        for _, layer, z, bound, _ in group:
            state[layer] = (z, bound)
        z = sum(now[0] for now in state.values())
        bound = min(most, sum(now[1] for now in state.values()))
        told = len(state) == len(checked.layers) and z >= least
        if told and (not points or points[-1][1:] != [z, bound]):
            points.append([seconds, z, bound])
    if not points or points[-1][1] > checked.total_z * (1 + _SAME) or points[-1][2] < most:
        points.append([total_s, checked.total_z, most])
    return [[round(seconds, 3), float(f"{z:.9g}"), float(f"{bound:.9g}")] for seconds, z, bound in points]


def find_seconds(
    events: Sequence[Event], points: Sequence[Point], checked: Verification, total_s: float
) -> dict[str, float | None]:
    """Return when there was a first placement, one within 1% of every layer's bound, the final one, and the verdict."""
    within = None
    if max(gap(check.z, check.bound) for check in checked.layers) <= _CLOSE:  # whatever the solver told on its way
        reached = figures(events, len(checked.layers), 0.0, 0.0)["within_1_percent_s"]
        within = total_s if reached is None else reached
    final = next(point[0] for point in points if point[1] <= points[-1][1] * (1 + 1e-8))
    return {
        "total": round(total_s, 3),
        "first": points[0][0],
        "within_1_percent": None if within is None else round(within, 3),
        "final": final,
    }
