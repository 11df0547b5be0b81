"""The figures that tables, sentences and charts show, derived from the rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_placer.experiments.report.rows import Comparison, InstanceRow, RunRow, ratio

__all__ = ["BASE", "Standing", "profile", "standings"]

BASE = "contiguous"  # what engines do without a map


@dataclass(frozen=True)
class Standing:
    """How a solver did on one instance, shown by the run of median z (the lower of two) over its seeds.

    Attributes
    ----------
    run : RunRow
    seeds : int
        Runs that gave a placement.
    lowest, highest : float
        Of the sum of z over the seeds (tokens at node-link speed).
    to_base, to_best : float or None
        Its sum of z over that of `BASE`, and over the least of all solvers; None where there is none, or it is 0.
    held_out_to_base, held_out_to_best : float or None
        The same on held-out traffic.
    """

    run: RunRow
    seeds: int
    lowest: float
    highest: float
    to_base: float | None
    to_best: float | None
    held_out_to_base: float | None
    held_out_to_best: float | None

    @property
    def above_best(self) -> float:
        """How far its sum of z is above the least of all solvers: 0.01 is 1%; infinite where only that one is 0."""
        return math.inf if self.to_best is None else self.to_best - 1


def standings(comparison: Comparison, instance: InstanceRow) -> list[Standing]:
    """Return how each solver did on an instance, the best first."""
    by_solver: dict[str, list[RunRow]] = {}
    for run in comparison.runs_of(instance):
        by_solver.setdefault(run.solver, []).append(run)
    shown = {solver: _median(runs) for solver, runs in by_solver.items()}
    base = shown.get(BASE)
    best = min((run.solved_for.z_total for run in shown.values()), default=0.0)
    unseen = {solver: run.traffic.held_out for solver, run in shown.items() if run.traffic}
    later = {solver: found.z_total for solver, found in unseen.items() if found}
    result = []
    for solver, run in shown.items():
        totals = [other.solved_for.z_total for other in by_solver[solver]]
        result.append(
            Standing(
                run,
                len(totals),
                min(totals),
                max(totals),
                ratio(run.solved_for.z_total, base.solved_for.z_total) if base else None,
                ratio(run.solved_for.z_total, best),
                _ratio_of(later, solver, later.get(BASE)),
                _ratio_of(later, solver, min(later.values(), default=None)),
            )
        )
    return sorted(result, key=lambda standing: standing.run.solved_for.z_total)


def _median(runs: Sequence[RunRow]) -> RunRow:
    by_z = sorted(runs, key=lambda run: (run.solved_for.z_total, run.key))
    middle = statistics.median_low(range(len(by_z)))
    return by_z[middle]


def _ratio_of(totals: Mapping[str, float], solver: str, to: float | None) -> float | None:
    return None if to is None or solver not in totals else ratio(totals[solver], to)


def profile(comparison: Comparison) -> dict[str, list[float]]:
    """Return each solver's performance profile (Dolan and More, 2002): z of each layer over the least of all solvers.

    Returns
    -------
    dict of str to list of float
        Sorted ratios, 1 or more. Layers that a solver did not serve are missing from its list; the share of layers
        within a factor is counted of `len` of the longest list.
    """
    ratios: dict[str, list[float]] = {}
    for instance in comparison.instances:
        shown = [standing.run for standing in standings(comparison, instance)]
        for run in shown:
            ratios.setdefault(run.solver, [])
        for layer in range(instance.layers):
            least = min((run.solved_for.z[layer] for run in shown), default=0.0)
            for run in shown:
                factor = ratio(run.solved_for.z[layer], least)
                if factor is not None:
                    ratios[run.solver].append(factor)
    return {solver: sorted(factors) for solver, factors in ratios.items()}
