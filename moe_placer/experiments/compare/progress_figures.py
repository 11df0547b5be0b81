"""Figures of a run from its events: when it reached each milestone, and its primal integral."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from moe_placer.result import OPTIMAL_GAP, gap

__all__ = ["Event", "figures", "primal_integral"]

# Seconds since the run began, index of the MoE layer, its z, its re-checkable bound, and the larger of that bound and
# the solver's own.
Event = tuple[float, int, float, float, float]
_STAGES = ("first_s", "bounded_s", "within_1_percent_s", "within_0_1_percent_s", "proved_s")


class _Layer(NamedTuple):
    z: float
    bound: float
    best_bound: float
    reports: int


def figures(events: Sequence[Event], layers: int, bound: float, until: float) -> dict[str, float | None]:
    """Return when a run reached each milestone, and its primal integral; None for what it never reached.

    ``first_s``: every layer has a placement. ``bounded_s``: every layer has been reported once more, which is when its
    linear relaxation is solved, or is optimal without. The others: every layer is within 1% and within 0.1% of its
    re-checkable bound, and proved by that or the solver's word.

    Parameters
    ----------
    events : sequence of Event
        In order of time; what an event says of a layer holds until the next one.
    layers : int
        MoE layers of the instance.
    bound : float
        Final re-checkable bound of the sum of z.
    until : float
        Where the integral ends.
    """
    reached: dict[str, float | None] = dict.fromkeys(_STAGES)
    for seconds, state in _states(events):
        if len(state) == layers:
            for stage in _stages(state):
                reached[stage] = seconds if reached[stage] is None else reached[stage]
    sums = [(t, sum(now.z for now in state.values())) for t, state in _states(events) if len(state) == layers]
    return {**reached, **_bounding(events), "primal_integral": primal_integral(sums, bound, until)}


def _bounding(events: Sequence[Event]) -> dict[str, float | None]:
    """Count the layers that were reported twice, and the seconds from first to second reports over their number."""
    first: dict[int, float] = {}
    again: dict[int, float] = {}
    for seconds, layer, *_ in events:
        (again if layer in first else first).setdefault(layer, seconds)
    took = max(again.values()) - max(first.values()) if again else 0.0
    return {"bounded_layers": len(again), "seconds_per_bounded_layer": took / len(again) if took > 0 else None}


def _stages(state: dict[int, _Layer]) -> Iterator[str]:
    """Name what the layers have reached together."""
    layers = state.values()
    largest = max(gap(now.z, now.bound) for now in layers)
    yield "first_s"
    if all(now.reports > 1 or gap(now.z, now.bound) <= OPTIMAL_GAP for now in layers):
        yield "bounded_s"
    if largest <= 0.01:
        yield "within_1_percent_s"
    if largest <= 0.001:
        yield "within_0_1_percent_s"
    if max(gap(now.z, now.best_bound) for now in layers) <= OPTIMAL_GAP:
        yield "proved_s"


def primal_integral(sums: Sequence[tuple[float, float]], bound: float, until: float) -> float:
    """Integrate the primal gap over time, from 0 to ``until``, in seconds (Berthold, 2013).

    The primal gap is 1 before there is a placement, then ``(z - bound) / z`` for the sum of z; the bound stands in for
    the unknown optimum. A run that ends early keeps its last gap.

    Parameters
    ----------
    sums : sequence of (seconds, sum of z)
        In order of time.
    """
    total, before, height = 0.0, 0.0, 1.0
    for seconds, z in sums:
        at = min(seconds, until)
        total += height * (at - before)
        before, height = at, (z - bound) / z if z > bound else 0.0
    return total + height * max(0.0, until - before)


def _states(events: Sequence[Event]) -> Iterator[tuple[float, dict[int, _Layer]]]:
    """Yield the state of all layers after the events of each moment."""
    state: dict[int, _Layer] = {}
    for seconds, group in groupby(events, key=lambda event: event[0]):
        for _, layer, z, bound, best_bound in group:
            before = state[layer].reports if layer in state else 0
            state[layer] = _Layer(z, bound, best_bound, before + 1)
        yield seconds, state
