"""How cost grows with size: time of a layer against replicas x nodes, over the instances of a comparison."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moe_placer.experiments.report.rows import Comparison, InstanceRow, RunRow

__all__ = ["MEANING", "Growth", "fitted_exponent", "growths"]

MEANING = (
    "Milliseconds per layer against replicas x nodes, of instances with at least 1,000 of these and something to do; "
    "the exponent is a least-squares fit of the logarithms over at least three sizes. Bounding is solving the linear "
    "relaxation of a layer (auto also rounds it and searches once): time from the first placement until the last "
    "layer that was bounded, over the number of these. Runs that did not get there, and totals that a limit of time "
    "or effort ended, are left out, which flatters the other fits."
)
_FIT_FROM = 1000  # replicas x nodes; below, starting processes is what takes the time
_Measure = Callable[[RunRow, int], float | None]  # seconds per layer, of a run and its layers


def _per_layer(seconds: float | None, layers: int) -> float | None:
    return None if seconds is None else seconds / layers


_MEASURES: dict[str, _Measure] = {
    "first placement": lambda run, layers: _per_layer(run.seconds.first, layers),
    "bounding": lambda run, _layers: run.speed.seconds_per_bounded_layer,
    "every layer within 1%": lambda run, layers: _per_layer(run.seconds.within_1_percent, layers),
    "total": lambda run, layers: None if run.stop.get("time") else _per_layer(run.seconds.total, layers),
}


@dataclass(frozen=True)
class Growth:
    """One solver's times by size.

    Attributes
    ----------
    solver : str
    heads : tuple of str
        What the columns are.
    rows : list of tuple of str
        Instance, replicas x nodes, layers, and milliseconds per layer; the last row has the fitted exponents.
    """

    solver: str
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]


def growths(comparison: Comparison) -> list[Growth]:
    """Return how each solver's times grow; none where there are fewer than three sizes."""
    sized = [row for row in comparison.instances if _size(row) >= _FIT_FROM]
    if len({_size(row) for row in sized}) < 3:
        return []
    return [_growth(comparison, sized, solver) for solver in comparison.solvers]


def _size(row: InstanceRow) -> int:
    return (row.replicas if isinstance(row.replicas, int) else max(row.replicas)) * row.nodes


def _growth(comparison: Comparison, instances: Sequence[InstanceRow], solver: str) -> Growth:
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in _MEASURES}
    rows = []
    for instance in instances:
        runs = [run for run in comparison.runs_of(instance) if run.solver == solver and any(run.z)]
        cells = []
        for name, measure in _MEASURES.items():
            value = _median([measure(run, instance.layers) for run in runs])
            cells.append("\N{EN DASH}" if value is None else f"{1e3 * value:,.1f}")
            if value:
                points[name].append((_size(instance), value))
        if runs:
            rows.append((instance.name, f"{_size(instance):,}", str(instance.layers), *cells))
    fits = [fitted_exponent([x for x, _ in found], [y for _, y in found]) for found in points.values()]
    exponents = ("\N{EN DASH}" if fit is None else f"{fit:.2f}" for fit in fits)
    return Growth(solver, tuple(_MEASURES), [*rows, ("fitted exponent", "", "", *exponents)])


def _median(values: Sequence[float | None]) -> float | None:
    """Return the median; None where half of the runs or more have no such figure."""
    middle = statistics.median(np.inf if value is None else value for value in values) if values else np.inf
    return float(middle) if np.isfinite(middle) else None


def fitted_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """Return b of the least-squares fit ``log cost = a + b log size``; None for fewer than three different sizes."""
    if len(set(sizes)) < 3:
        return None
    return float(np.polyfit(np.log(np.array(sizes, float)), np.log(np.array(costs, float)), 1)[0])
