"""What the charts show, as records; large tables are kept to their hottest rows and to four digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe_placer.report.figures import profile, standings
from moe_placer.report.layout import lines_of, place_vertices
from moe_placer.report.rows import Comparison, InstanceRow, RunRow

__all__ = ["Table", "cells", "fabric", "gpu_table", "held_out", "layers", "link_table", "profiles", "times"]

Records = list[dict[str, Any]]
Table = dict[str, Any]
_ROWS = {"links": 96, "gpus": 128}  # of a heat map; more cannot be told apart
_LINKS = 2000  # in a picture of the fabric


def _short(value: float) -> float:
    near = float(f"{value:.4g}")
    return int(near) if near.is_integer() else near


def _hottest(names: Sequence[str], matrix: Sequence[Sequence[float]], layers: Sequence[int], most: int) -> Table:
    """Return the ``most`` rows with the largest entries, in their order, as a table of layers by rows."""
    peaks = [max(column) for column in zip(*matrix, strict=True)]
    kept = sorted(sorted(range(len(names)), key=lambda row: (-peaks[row], row))[:most])
    return {
        "rows": [names[row] for row in kept],
        "of": len(names),
        "layers": list(layers),
        "values": [[_short(layer[row]) for row in kept] for layer in matrix],
    }


def link_table(row: InstanceRow, run: RunRow) -> Table:
    """Return the cost of the hottest links in every layer."""
    names = [link.name for link in row.links]
    return _hottest(names, run.solved_for.link_cost, row.layer_index, _ROWS["links"])


def gpu_table(row: InstanceRow, run: RunRow) -> Table:
    """Return the tokens that the busiest GPUs compute in every layer."""
    names = [f"GPU {gpu}" for gpu in range(row.gpus)]
    return _hottest(names, run.solved_for.gpu_load, row.layer_index, _ROWS["gpus"])


def cells(table: Table) -> Records:
    """Return a table's cells; the first of the largest of every layer is marked, as the page's program does too."""
    records = []
    for layer, values in zip(table["layers"], table["values"], strict=True):
        worst = values.index(max(values))
        for place, (name, value) in enumerate(zip(table["rows"], values, strict=True)):
            records.append({"layer": layer, "row": name, "value": value, "worst": place == worst})
    return records


def fabric(row: InstanceRow, run: RunRow) -> Records:
    """Return the links with their costs summed over layers, and the vertices that they join."""
    places, totals = place_vertices(row), [sum(column) for column in zip(*run.solved_for.link_cost, strict=True)]
    worst = totals.index(max(totals))
    kept = set(sorted(range(len(totals)), key=lambda link: (-totals[link], link))[:_LINKS])
    records: Records = []
    for place, (link, line, total) in enumerate(zip(row.links, lines_of(row, places), totals, strict=True)):
        if place in kept:
            record = {
                "kind": "link",
                "name": link.name,
                "value": _short(total),
                "worst": place == worst,
                **dict(zip(("x", "y", "x2", "y2"), line, strict=True)),
            }
            records.append(record)
    crowded = len(places) > 40
    for name, (x, y) in places.items():
        label = name.lstrip("abcdefghijklmnopqrstuvwxyz") if crowded or name.startswith("node") else name
        records.append(
            {
                "kind": "vertex",
                "name": name,
                "label": label or name,
                "x": round(x, 4),
                "y": round(y, 4),
                "below": y < 0.5,
            }
        )
    return records


def layers(row: InstanceRow, run: RunRow) -> Records:
    """Return z and bound of every layer."""
    records: Records = []
    for layer, z, bound in zip(row.layer_index, run.z, run.bound, strict=True):
        records.append({"layer": layer, "what": "worst link z", "tokens": z})
        if bound is not None:
            records.append({"layer": layer, "what": "lower bound", "tokens": bound})
    return records


def times(comparison: Comparison, row: InstanceRow) -> Records:
    """Return incumbent and bound against time, of every solver's shown run."""
    records: Records = []
    for standing in standings(comparison, row):
        run = standing.run
        points = list(run.trajectory)
        end = run.seconds.total
        if points and end and end > points[-1][0]:
            points.append((end, *points[-1][1:]))
        for seconds, z, bound in points:
            at = max(seconds, 1e-3)  # a logarithm needs more than 0
            records.append({"solver": run.solver, "what": "placement", "seconds": at, "tokens": z})
            if bound is not None and bound > 0:
                records.append({"solver": run.solver, "what": "bound", "seconds": at, "tokens": bound})
    return records


def profiles(comparison: Comparison) -> Records:
    """Return the performance profiles' corners, at most 200 a solver."""
    ratios = profile(comparison)
    all_layers = max((len(factors) for factors in ratios.values()), default=0)
    end = max((factors[-1] for factors in ratios.values() if factors), default=1.0)
    records: Records = []
    for solver, factors in ratios.items():
        corners = dict.fromkeys([1.0, *factors], 0.0)
        for place, factor in enumerate(factors):
            corners[factor] = (place + 1) / all_layers
        steps = sorted(corners.items())
        thinned = [*steps[:: max(1, len(steps) // 200)], steps[-1]]
        shares = [*thinned, (end, thinned[-1][1])]
        records += [{"solver": solver, "factor": round(x, 5), "share": round(y, 5)} for x, y in shares]
    return records


def held_out(comparison: Comparison) -> Records:
    """Return every solver's ratios to contiguous, on the traffic solved for and on held-out traffic."""
    records: Records = []
    for row in comparison.instances:
        for standing in standings(comparison, row):
            if standing.to_base is not None and standing.held_out_to_base is not None:
                record = {
                    "instance": row.name,
                    "solver": standing.run.solver,
                    "seen": round(standing.to_base, 5),
                    "unseen": round(standing.held_out_to_base, 5),
                }
                records.append(record)
    return records
