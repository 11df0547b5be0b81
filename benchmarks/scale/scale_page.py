"""The page of what a layer costs by the number of GPUs, from its rows alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from benchmarks.kept_runs import Row, page_of_runs
from moe_placer.experiments.markdown_table import markdown_table

__all__ = ["Cost", "build_page", "cost_of", "power_law", "workers_needed"]

ANSWER_S, MODEL_LAYERS = 60.0, 58
GAP = 0.001
TARGET_SIZES = (8_192, 16_384)

_HEAD = f"""# What a layer costs, by the number of GPUs

One slot on each GPU, 8 GPUs a node, 8 nodes a leaf, leaves 2:1, synthetic traffic (`instances/scale-1024.yaml` at other
sizes). *Two replicas*: half as many experts as GPUs, each with one replica for each of two DP groups. *Redundant
slots*: 512 experts (half as many as GPUs where these are fewer), and as many replicas of each as the solver chooses.

Every row is the default solver on four layers (or as many as stated) and one core, until each is within its gap of
0.1% (`solve` in Python: heuristics, bounds, search, verification; loading the program, its libraries and the traffic is
left out), in a process of its own. **Once** is compiling the problem, and the routes that verification reads. Of the
rest, **workers'** is what goes to workers: search, that of the median layer, since one that stays outside its gap goes
on until its effort is spent; since `141cf39` also compiling the layer, and, beyond 250,000 pairs of a replica and a
node, heuristics, bounds of the start, and DP groups. What the coordinator does for a layer (writing, verification) is
added to **a layer**. Memory is the peak of the process. The law is a fit by least squares in logarithms over the sizes
at which every layer came within its gap.

Workers: the least W with `once + L (layer - workers') + L workers' / W <= {ANSWER_S:.0f} s` for L = {MODEL_LAYERS}.
Where the coordinator alone takes longer, its time is given instead. The model's layers can also be solved as several
instances of fewer layers each, on as many machines: the last column is the least number n of these with
`once + L / n layers` in time.

`python -m benchmarks.scale --before COMMIT` appends a run to `rows.jsonl`, and makes this page anew. `quick.jsonl`,
`executors.jsonl` and `recordings.jsonl` are what `python -m benchmarks.quick --commands`, `benchmarks.executors` and
`benchmarks.recordings` last printed on the same machine, idle.
"""
_COLUMNS = ("GPUs", "experts", "once, s", "a layer, s", "of it workers', s", "memory, MB", "largest gap", "growth")
_LAST = ("workers for a 60 s answer", "instances of fewer layers")


@dataclass(frozen=True)
class Cost:
    """CPU seconds: what is done once, of a layer in all, and what of it goes to workers."""

    once_s: float
    layer_s: float
    workers_s: float


def cost_of(row: Row) -> Cost:
    """Tell apart what is done once and for every layer; the search is that of the median layer."""
    searched, layers = row["search_cpu_s"], row["layers"]
    once, stages = row["compile_cpu_s"] + row.get("network_cpu_s", 0.0), row.get("stages_cpu_s", 0.0)
    rest, median = (row["cpu_s"] - once - sum(searched)) / layers, float(np.median(searched))
    return Cost(once, rest + median, median + stages / layers)


def power_law(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Fit ``factor * size ** exponent``; return factor and exponent."""
    exponent, constant = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(np.exp(constant)), float(exponent)


def workers_needed(cost: Cost) -> int | None:
    """Return the workers that place all layers in time; None where the coordinator alone takes longer."""
    left = ANSWER_S - cost.once_s - MODEL_LAYERS * max(0.0, cost.layer_s - cost.workers_s)
    return None if left <= 0 else max(1, math.ceil(MODEL_LAYERS * cost.workers_s / left))


def build_page(rows: Sequence[Row]) -> str:
    """Return the page in Markdown, the latest run first."""
    return page_of_runs(_HEAD, rows, _run)


def _run(rows: list[Row]) -> Iterator[str]:
    for (family, commit), of_family in groupby(rows, key=lambda row: (row["family"], row["commit"])):
        yield f"### {family.capitalize()}, {commit}\n"
        yield from _family(list(of_family))


def _family(rows: list[Row]) -> Iterator[str]:
    lines, known = [], {}
    for row in rows:
        if "error" in row:
            lines.append([f"{row['gpus']:,}", row["error"], *[""] * (len(_COLUMNS) + len(_LAST) - 2)])
            continue
        if max(row["gaps"]) <= GAP:
            known[row["gpus"]] = cost_of(row)
        lines.append(_measured_cells(row, known))
    fits = {name: power_law([*known], values) for name, values in _series(known)} if len(known) > 1 else {}
    if fits:
        lines += [_fitted_cells(gpus, fits) for gpus in TARGET_SIZES if gpus > max(known)]
    yield markdown_table((*_COLUMNS, *_LAST), lines)
    yield ""
    for name, words in (("a layer", "a layer"), ("workers", "workers for a layer")) if fits else ():
        factor, exponent = fits[name]
        yield (
            f"CPU time of {words}: {factor * 1000**exponent:.2f} s x (GPUs / 1,000)^**{exponent:.2f}**, "
            f"from {min(known):,} to {max(known):,} GPUs.\n"
        )


def _series(known: dict[int, Cost]) -> Iterator[tuple[str, list[float]]]:
    yield "once", [cost.once_s for cost in known.values()]
    yield "a layer", [cost.layer_s for cost in known.values()]
    yield "workers", [cost.workers_s for cost in known.values()]


def _measured_cells(row: Row, known: dict[int, Cost]) -> list[str]:
    growth, cost = "", cost_of(row)
    for (fewer, before), (more, after) in pairwise(list(known.items())[-2:] if row["gpus"] in known else []):
        growth = f"{math.log(after.layer_s / before.layer_s) / math.log(more / fewer):.2f}"
    figures = [f"{row['peak_bytes'] / 1e6:,.0f}", f"{max(row['gaps']):.3%}", growth]
    size = f"{row['gpus']:,}{', one layer' if row['layers'] == 1 else ''}"
    return [size, f"{row['experts']:,}", *_seconds(cost), *figures, *_workers(cost)]


def _fitted_cells(gpus: int, fits: dict[str, tuple[float, float]]) -> list[str]:
    once, layer, workers = (factor * gpus**exponent for factor, exponent in fits.values())
    cost = Cost(once, layer, workers)
    return [f"{gpus:,} (by the law)", "", *_seconds(cost), "", "", "", *_workers(cost)]


def _seconds(cost: Cost) -> list[str]:
    return [f"{cost.once_s:.2f}", f"{cost.layer_s:.2f}", f"{cost.workers_s:.2f}"]


def _workers(cost: Cost) -> list[str]:
    workers = workers_needed(cost)
    alone = cost.once_s + MODEL_LAYERS * (cost.layer_s - cost.workers_s)
    apart = int((ANSWER_S - cost.once_s) // cost.layer_s) if cost.layer_s > 0 else MODEL_LAYERS
    instances = (
        f"{math.ceil(MODEL_LAYERS / apart):,}" if apart > 0 else f"one layer takes {cost.once_s + cost.layer_s:,.0f} s"
    )
    return [f"{workers:,}" if workers is not None else f"none: the coordinator takes {alone:,.0f} s", instances]
