"""Placement and bound against time, from what a run noted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from moe_placer.experiments.compare.progress_figures import Event, figures
from moe_placer.experiments.compare.recorder import RivalRecorder
from moe_placer.result import gap
from moe_placer.verifier import Verification

__all__ = ["find_seconds", "find_speed", "no_seconds", "trajectory"]

Point = list[float]  # seconds, sum of z, sum of re-checkable bounds

_SAME = 1e-9  # relative
_CLOSE, _CLOSER = 0.01, 0.001
_STAGES = ("first", "better", "bounded", "within_1_percent", "within_0_1_percent", "proved", "final")


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


def no_seconds(total_s: float) -> dict[str, float | None]:
    """Return the times of a run that gave no placement."""
    return {"total": round(total_s, 3), **dict.fromkeys(_STAGES)}


def find_seconds(
    recorder: RivalRecorder, points: Sequence[Point], checked: Verification, total_s: float
) -> dict[str, float | None]:
    """Return when a run reached each milestone: seconds since it began, None for what it never reached.

    Parameters
    ----------
    recorder : RivalRecorder
        What the run noted of itself.
    points : sequence of Point
        Its trajectory.
    checked : Verification
        Of the final placement.
    total_s : float
        Seconds until the verdict.

    Returns
    -------
    dict
        ``first`` placement of all layers; ``better``, the first verified one with a smaller objective than contiguous
        and eplb; every layer ``bounded``; every layer ``within_1_percent`` and ``within_0_1_percent`` of its
        re-checkable bound, and ``proved``; ``final`` objective; ``total`` with verification.
    """
    reached = figures(recorder.events, len(checked.layers), 0.0, 0.0)
    largest = max(gap(check.z, check.bound) for check in checked.layers)

    def within(stage: str, limit: float) -> float | None:
        """Trust the verified end, whatever the solver told on its way."""
        return None if largest > limit else total_s if reached[stage] is None else reached[stage]

    found = {
        "first": points[0][0],
        "better": recorder.better_s,
        "bounded": reached["bounded_s"],
        "within_1_percent": within("within_1_percent_s", _CLOSE),
        "within_0_1_percent": within("within_0_1_percent_s", _CLOSER),
        "proved": reached["proved_s"],
        "final": next(point[0] for point in points if point[1] <= points[-1][1] * (1 + 1e-8)),
    }
    rounded = {stage: None if seconds is None else round(seconds, 3) for stage, seconds in found.items()}
    return {"total": round(total_s, 3), **rounded}


def find_speed(events: Sequence[Event], checked: Verification, until_s: float) -> dict[str, float | None]:
    """Return the primal integral over the time limit, and how long layers took to be bounded."""
    found = figures(events, len(checked.layers), checked.total_bound, until_s)
    return {name: found[name] for name in ("primal_integral", "bounded_layers", "seconds_per_bounded_layer")}
