"""What the charts show, as records; large tables are kept to their hottest rows and to four digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from moe_placer.experiments.report.charts import COLOURS, GREY
from moe_placer.experiments.report.fabric_positions import label_spots, lines_of, place_vertices
from moe_placer.experiments.report.link_figures import carried, per_token
from moe_placer.experiments.report.rows import Comparison, InstanceRow, RunRow
from moe_placer.experiments.report.standings import BASE, Standing, profile, standings
from moe_placer.experiments.report.view import labels

__all__ = [
    "Table",
    "cells",
    "fabric",
    "gpu_table",
    "held_out",
    "hues",
    "layers",
    "link_table",
    "profiles",
    "steps",
    "times",
]

Records = list[dict[str, Any]]
Table = dict[str, Any]
_MARKED = 4  # solvers that have a colour; the others are grey
_FEW = 4  # instances of which all solvers have a bar
_HEIGHTS = {"row": 6, "label": 14, "few": 224}  # pixels: a row, one with a label, and up to where each has one
_ROWS = {"links": 96, "gpus": 128}  # of a heat map; more cannot be told apart
_LINKS = 2000  # in a picture of the fabric
_NAMED = 40  # vertices beyond which their names would run into each other
_FAR = 1.6  # times the best sum of z; what is above would hide differences among those near the best


def _short(value: float) -> float:
    near = float(f"{value:.4g}")
    return int(near) if near.is_integer() else near


def _hottest(names: Sequence[str], matrix: Sequence[Sequence[float]], layers: Sequence[int], most: int) -> Table:
    """Return the ``most`` rows with the largest entries, in their order, as a table of layers by rows."""
    peaks = [max(column) for column in zip(*matrix, strict=True)]
    kept = sorted(sorted(range(len(names)), key=lambda row: (-peaks[row], row))[:most])
    return {
        "height": max(_HEIGHTS["row"] * len(kept), min(_HEIGHTS["few"], _HEIGHTS["label"] * len(kept))),
        "rows": [names[row] for row in kept],
        "of": len(names),
        "layers": list(layers),
        "values": [[_short(layer[row]) for row in kept] for layer in matrix],
    }


def link_table(row: InstanceRow, run: RunRow) -> Table:
    """Return the cost of the busiest links in every layer, and of each link the cost and the time (µs) of one token."""
    names, figures = [link.name for link in row.links], per_token(row)
    table = _hottest(names, run.solved_for.link_cost, row.layer_index, _ROWS["links"])
    return {**table, "perToken": [list(figures[name]) for name in table["rows"]]}


def gpu_table(row: InstanceRow, run: RunRow) -> Table:
    """Return the tokens that the busiest GPUs compute in every layer."""
    names = [f"GPU {gpu}" for gpu in range(row.gpus)]
    return _hottest(names, run.solved_for.gpu_load, row.layer_index, _ROWS["gpus"])


def cells(table: Table) -> Records:
    """Return a table's cells; the first of the largest of every layer is marked, as the page's program does too.

    None are returned where nothing flows anywhere.
    """
    records: Records = []
    if not any(map(any, table["values"])):
        return records
    for layer, values in zip(table["layers"], table["values"], strict=True):
        worst = values.index(max(values)) if any(values) else None
        for place, (name, value) in enumerate(zip(table["rows"], values, strict=True)):
            record = {"layer": layer, "row": name, "value": value, "worst": place == worst}
            if "perToken" in table:
                cost, us = table["perToken"][place]
                record |= {"plain": value / cost, "us": value / cost * us}
            records.append(record)
    return records


def fabric(row: InstanceRow, run: RunRow) -> Records:
    """Return the links with their costs summed over layers, and what they join; nothing where no link is used."""
    places, totals = place_vertices(row), [sum(column) for column in zip(*run.solved_for.link_cost, strict=True)]
    if not any(totals):
        return []
    worst = totals.index(max(totals))
    kept = set(sorted(range(len(totals)), key=lambda link: (-totals[link], link))[:_LINKS])
    records: Records = []
    figures = per_token(row)
    for place, (link, line, total) in enumerate(zip(row.links, lines_of(row, places), totals, strict=True)):
        if place in kept:
            record = {
                "kind": "link",
                "name": link.name,
                "value": _short(total),
                **dict(zip(("plain", "us"), map(_short, carried(figures, link.name, total)), strict=True)),
                "worst": place == worst,
                **dict(zip(("x", "y", "x2", "y2"), line, strict=True)),
            }
            records.append(record)
    labels = _labels(places)
    for name, (x, y) in places.items():
        vertex = {"kind": "vertex", "name": name, "label": labels[name], "x": round(x, 4), "y": round(y, 4)}
        records.append({**vertex, **_beside(x, y)})
    return records


def _labels(names: Iterable[str]) -> dict[str, str]:
    """Return short labels: nodes have numbers, after the first; so have switches where there are many vertices."""
    names = list(names)
    crowded = len(names) > _NAMED
    seen = {"node"} if crowded else set[str]()
    labels = {}
    for name in names:
        kind = name.rstrip("0123456789")
        shortened = kind in seen and (crowded or kind == "node")
        labels[name] = (name.removeprefix(kind) or name) if shortened else name
        seen.add(kind)
    return labels


def _beside(x: float, y: float) -> dict[str, Any]:
    """Return where a vertex's label stands: outside at the edges, else to the right."""
    if y <= 0.15 or y >= 0.85:
        return {"side": "center", "dx": 0, "dy": 16 if y < 0.5 else -14}
    outside_left = x < 0.5 and math.hypot(x - 0.5, y - 0.5) > 0.42
    return {"side": "right", "dx": -9, "dy": 0} if outside_left else {"side": "left", "dx": 9, "dy": 0}


def layers(row: InstanceRow, run: RunRow) -> Records:
    """Return z and bound of every layer; none where no layer uses a link."""
    records: Records = []
    if not any(run.z):
        return records
    for layer, z, bound in zip(row.layer_index, run.z, run.bound, strict=True):
        records.append({"layer": layer, "what": "busiest link z", "cost": z})
        if bound is not None:
            records.append({"layer": layer, "what": "lower bound", "cost": bound})
    return records


def hues(comparison: Comparison) -> dict[str, str]:
    """Return a colour for the solvers that a reader looks for; the others are grey.

    They are the best two by their mean distance from the best, the baseline, and EPLB.
    """
    above: dict[str, list[float]] = {}
    for row in comparison.instances:
        for standing in standings(comparison, row):
            above.setdefault(standing.run.solver, []).append(standing.above_best)
    best = sorted(above, key=lambda solver: (-len(above[solver]), sum(above[solver]), solver))
    marked = [solver for solver in dict.fromkeys([*best[:1], BASE, "eplb", *best]) if solver in above][:_MARKED]
    return dict(zip(marked, COLOURS, strict=False))


def times(comparison: Comparison, row: InstanceRow) -> Records:
    """Return incumbent and bound against time, of the shown runs of solvers that are not far above the best.

    None are returned where the best is 0.
    """
    records: Records = []
    table = standings(comparison, row)
    most = _FAR * table[0].run.solved_for.z_total if table else 0.0
    if most == 0:
        return records
    for run in (standing.run for standing in table if standing.run.solved_for.z_total <= most):
        points = list(run.trajectory)
        end = run.seconds.total
        if points and end and end > points[-1][0]:
            points.append((end, *points[-1][1:]))
        for place, (seconds, z, bound) in enumerate(points):
            common = {"solver": run.solver, "seconds": max(seconds, 1e-3)}  # a logarithm needs more than 0
            common["end"] = place == len(points) - 1
            if z <= most:
                records.append({**common, "what": "placement", "cost": z})
            if bound is not None and bound > 0:
                records.append({**common, "what": "bound", "cost": bound})
    return _coloured(records, hues(comparison), ("seconds", "cost"), logarithmic=True)


def _coloured(
    records: Records, colours: Mapping[str, str], axes: tuple[str, str], *, logarithmic: bool = False
) -> Records:
    """Give the records of lines their colours, the grey ones first, and those with a colour a name on the line."""
    x, y = axes
    lines: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if record.get("what") != "bound":
            at = math.log(record[x]) if logarithmic else record[x]
            lines.setdefault(record["solver"], []).append((at, record[y]))
    for record in records:
        marked = record["solver"] in colours
        record |= {"colour": colours.get(record["solver"], GREY), "width": 2.5 if marked else 1}
    spots = label_spots(lines, [solver for solver in colours if solver in lines])
    names = [
        {x: math.exp(at) if logarithmic else at, y: value, "label": solver, "solver": solver}
        for solver, (at, value) in spots.items()
    ]
    return [*sorted(records, key=lambda record: record["solver"] in colours), *names]


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
    return _coloured(records, hues(comparison), ("factor", "share"))


def steps(comparison: Comparison) -> Records:
    """Return the simulated step of every plan, the shortest first, and how far it is from contiguous's."""
    records: Records = []
    for record, standing, base in _plans(comparison, lambda run: run.solved_for.step_us):
        step = standing.run.solved_for.step_us or 0.0
        ms = round(step / 1e3, 3)
        shown = {**record, "ms": ms, "until": ms, "label": f"{ms:,.1f} ms"}
        if base and standing.run.solver != BASE:
            shown |= {"change": round(step / base - 1, 5), "label": f"{ms:,.1f} ms, {step / base - 1:+.1%}"}
        records.append(shown)
    return records


def held_out(comparison: Comparison) -> Records:
    """Return every plan's ratios to contiguous, on held-out traffic and on the traffic solved for; the least first."""
    records: Records = []
    for record, standing, _ in _plans(comparison, _held_out_total):
        if standing.to_base is not None and standing.held_out_to_base is not None:
            seen, unseen = round(standing.to_base, 5), round(standing.held_out_to_base, 5)
            ends = {"seen": seen, "unseen": unseen, "until": max(seen, unseen)}
            records.append({**record, **ends, "label": f"{unseen:.2f}"})
    return records


def _held_out_total(run: RunRow) -> float | None:
    return run.traffic.held_out.z_total if run.traffic and run.traffic.held_out else None


def _plans(
    comparison: Comparison, figure: Callable[[RunRow], float | None]
) -> Iterator[tuple[dict[str, Any], Standing, float | None]]:
    """Yield solver, name and colour of a bar, the standing, and contiguous's figure, by instance, the least first."""
    colours, named = hues(comparison), labels(comparison)
    for row in comparison.instances:
        known = [(value, one) for one in standings(comparison, row) if (value := figure(one.run)) is not None]
        base = next((value for value, one in known if one.run.solver == BASE), None)
        for _, standing in sorted(known, key=lambda pair: (pair[0], pair[1].run.solver)):
            solver = standing.run.solver
            if len(comparison.instances) <= _FEW or solver in colours:
                name = solver if len(comparison.instances) == 1 else f"{named[row.sha256]}: {solver}"
                yield {"solver": solver, "row": name, "colour": colours.get(solver, GREY)}, standing, base
