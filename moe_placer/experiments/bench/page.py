"""The page of a benchmark, made from its rows and its environment alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from moe_placer.experiments.bench.environment import environment_in_words
from moe_placer.experiments.bench.growth import fitted_exponent

__all__ = ["build_page"]

Row = Mapping[str, Any]
Rows = Sequence[Row]
_Method = tuple[str, float, int]  # solver, time limit, workers

_FIT_FROM = 1000  # replicas x nodes; below, starting processes is what takes the time
_MEASURES = {
    "first_s": "first placement",
    "seconds_per_bounded_layer": "bounding",
    "within_1_percent_s": "every layer within 1%",
    "total_s": "total",
}
_COLUMNS = (
    *("solver", "limit", "workers", "z", "bound", "median gap", "largest gap", "first", "better", "1%", "0.1%"),
    *("proof", "integral", "total", "memory", "others", "runs"),
)

_READ = """\
Each run has a process of its own. Seconds are wall-clock, from when the program is loaded: reading the instance and its
traffic, the heuristics that every solve begins with, starting worker processes, what these import, and verification all
count. Solvers are in the order of what they found. Columns, as medians over the runs:

- **z**: sum over layers of the worst link, tokens per step at node-link speed, recomputed by the verifier;
  **bound**: sum of the re-checkable bounds, derived anew by the verifier; **gap**: of the median and the worst layer.
- **first**: every layer has a placement. **better**: the first placement with a smaller z than both `eplb` and
  `contiguous` has passed the verifier. **1%**, **0.1%**: every layer is within this of its re-checkable bound, as both
  then stood. **proof**: every layer is proved optimal, by the bound or by the solver's own word. A dash: not reached.
- **integral**: primal integral, the integral of (z - final bound) / z over the time limit in seconds, 1 before the
  first placement (Berthold, 2013); less is better, and an early end keeps its gap.
- **memory**: peak of the largest process, and of all processes of the run together (sampled 20 times a second, pages
  that they share counted in each). **others**: cores that other work on the machine took meanwhile; where it is not
  near 0, the run had less than its workers could use, and times say so much less."""


def build_page(rows: Rows, environment: Mapping[str, Any]) -> str:
    """Return the page as Markdown; the same rows and environment give the same bytes."""
    parts = [f"# Benchmark, {environment['date']}", f"{environment_in_words(environment)}.", _READ]
    names = dict.fromkeys(row["instance"] for row in rows)
    parts += [_instance([row for row in rows if row["instance"] == name]) for name in names]
    return "\n\n".join([*parts, _growth(rows)]) + "\n"


def _instance(rows: Rows) -> str:
    done = [row for row in rows if row["failed"] is None]
    title = f"## {rows[0]['instance']}"
    lines = [title, ""]
    if done:
        row = done[0]
        lines += [
            f"{row['layers']} MoE layers of {row['replicas']} replicas, {row['gpus']} GPUs in {row['nodes']} nodes; "
            f"traffic: {', '.join(row['recordings'])}.",
            "",
        ]
    lines += [f"| {' | '.join(_COLUMNS)} |", "|---" + "|---:" * (len(_COLUMNS) - 1) + "|"]
    failures = []
    for key, group in sorted(_by_method(rows).items(), key=_best_first):
        lines.append(_line(key, group))
        failures += [f"- `{row['solver']}`, run {row['repeat']}: {row['failed']}" for row in group if row["failed"]]
    if failures:
        lines += ["", "Failed:", "", *failures]
    return "\n".join(lines)


def _by_method(rows: Rows) -> dict[_Method, list[Row]]:
    groups: dict[_Method, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["solver"], row["time_limit_s"], row["workers"]), []).append(row)
    return groups


def _best_first(item: tuple[_Method, Rows]) -> tuple[float, float, _Method]:
    """Sort by z, then by primal integral."""
    done = [row for row in item[1] if row["failed"] is None]
    z, integral = (_median(done, field) for field in ("z", "primal_integral"))
    return math.inf if z is None else z, math.inf if integral is None else integral, item[0]


def _line(key: _Method, group: Rows) -> str:
    solver, limit, workers = key
    done = [row for row in group if row["failed"] is None]

    def cell(field: str, show: Callable[[float], str]) -> str:
        value = _median(done, field)
        return show(value) if value is not None else "—"

    def seconds(field: str) -> str:
        return cell(field, lambda value: f"{value:,.2f} s" if value < 10 else f"{value:,.1f} s")

    def megabytes(field: str) -> str:
        return cell(field, lambda value: f"{value / 1e6:,.0f}")

    runs = f"{len(done)}" if len(done) == len(group) else f"{len(done)} of {len(group)}"
    cells = [
        f"`{solver}`",
        f"{limit:g} s",
        f"{workers}",
        cell("z", lambda value: f"{value:,.0f}"),
        cell("bound", lambda value: f"{value:,.0f}"),
        cell("gap_median", lambda value: f"{value:.3%}"),
        cell("gap_largest", lambda value: f"{value:.2%}"),
        *map(seconds, ("first_s", "better_s", "within_1_percent_s", "within_0_1_percent_s", "proved_s")),
        cell("primal_integral", lambda value: f"{value:.3f}"),
        seconds("total_s"),
        f"{megabytes('largest_process_bytes')} / {megabytes('all_processes_bytes')} MB",
        cell("cores_used_by_others", lambda value: f"{value:.1f}"),
        runs,
    ]
    return f"| {' | '.join(cells)} |"


def _median(done: Rows, field: str) -> float | None:
    """Return the median; None where half of the runs or more have no such figure."""
    values = [math.inf if row.get(field) is None else float(row[field]) for row in done]
    middle = median(values) if values else math.inf
    return middle if middle != math.inf else None


def _growth(rows: Rows) -> str:
    sized = [
        row for row in rows if row["failed"] is None and row["replicas"] * row["nodes"] >= _FIT_FROM and row["bound"]
    ]
    lines = [
        "## Growth",
        "",
        f"Milliseconds per layer against replicas x nodes, of instances with at least {_FIT_FROM:,} of these and",
        "something to do; the exponent is a least-squares fit of the logarithms over at least three sizes. *Bounding*",
        "is solving the linear relaxation of a layer (`auto` also rounds it and searches once): time from the first",
        "placement until the last layer that was bounded, over the number of these, so that runs that the clock ended",
        "count too. In the other columns runs that did not get there, and totals that a limit of time or effort ended,",
        "are left out, which flatters these fits.",
        "",
    ]
    for solver in dict.fromkeys(row["solver"] for row in sized):
        lines += _growth_of(solver, [row for row in sized if row["solver"] == solver])
    return "\n".join(lines).rstrip()


def _growth_of(solver: str, rows: Rows) -> list[str]:
    lines = [
        f"| `{solver}` | replicas x nodes | layers | {' | '.join(_MEASURES.values())} |",
        "|---" + "|---:" * 5 + "|",
    ]
    points: dict[str, list[tuple[float, float]]] = {measure: [] for measure in _MEASURES}
    for name in dict.fromkeys(row["instance"] for row in rows):
        group = [row for row in rows if row["instance"] == name]
        size, layers = group[0]["replicas"] * group[0]["nodes"], group[0]["layers"]
        cells = []
        for measure in _MEASURES:
            value = _median([_without_censored(row, measure) for row in group], measure)
            if value and measure != "seconds_per_bounded_layer":
                value /= layers
            cells.append("—" if value is None else f"{1e3 * value:,.1f}")
            if value:
                points[measure].append((size, value))
        lines.append(f"| {name} | {size:,} | {layers} | {' | '.join(cells)} |")
    fits = [fitted_exponent([x for x, _ in found], [y for _, y in found]) for found in points.values()]
    exponents = " | ".join("—" if fit is None else f"**{fit:.2f}**" for fit in fits)
    return [*lines, f"| fitted exponent | | | {exponents} |", ""]


def _without_censored(row: Row, measure: str) -> Row:
    """Drop a total that the clock decided."""
    return row if measure != "total_s" or "time" not in row["stops"] else {**row, measure: None}
