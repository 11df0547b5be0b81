"""From a run's events to figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from moe_placer.result import OPTIMAL_GAP, gap

__all__ = ["Event", "figures", "primal_integral"]

# Seconds since the run began, index of the MoE layer, its z, its re-checkable bound, and the larger of that bound and
# the solver's own.
Event = tuple[float, int, float, float, float]
_Layers = dict[int, tuple[float, float, float]]


def figures(events: Sequence[Event], layers: int, bound: float, until: float) -> dict[str, float | None]:
    """Return when a run reached what, and its primal integral; None for what it never reached.

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
    aims = {"first_s": float("inf"), "bounded_s": 1e300, "within_1_percent_s": 0.01, "within_0_1_percent_s": 0.001}
    reached: dict[str, float | None] = {**dict.fromkeys(aims), "proved_s": None}
    for seconds, state in _states(events):
        if len(state) < layers:
            continue
        largest = max(gap(z, low) for z, low, _ in state.values())
        largest_by_word = max(gap(z, best) for z, _, best in state.values())
        met = [name for name, aim in aims.items() if largest <= aim]
        for name in met + (["proved_s"] if largest_by_word <= OPTIMAL_GAP else []):
            reached[name] = seconds if reached[name] is None else reached[name]
    sums = [(t, sum(z for z, _, _ in state.values())) for t, state in _states(events) if len(state) == layers]
    return {**reached, "primal_integral": primal_integral(sums, bound, until)}


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


def _states(events: Sequence[Event]) -> Iterator[tuple[float, _Layers]]:
    """Yield the state of all layers after the events of each moment."""
    state: _Layers = {}
    for seconds, group in groupby(events, key=lambda event: event[0]):
        for _, layer, z, bound, best in group:
            state[layer] = (z, bound, best)
        yield seconds, state
