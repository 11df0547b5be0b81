"""The content of a report, in words and tables, for its HTML and its Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moe_placer.experiments.report.growth import MEANING, growths
from moe_placer.experiments.report.rows import Comparison, InstanceRow
from moe_placer.experiments.report.sentences import summary
from moe_placer.experiments.report.standings import BASE, Standing, standings
from moe_placer.experiments.report.tables import NOT_KNOWN, TABLES, cells_of, columns_of

__all__ = ["context", "labels"]

QUESTION = "Which method places the experts so that the hottest inter-node link is coolest?"

_WITH_UNITS = {"memory_gb": "memory, GB", "time_limit_s": "time limit, s", "gap": "gap to stop at", "cpu": "CPU"}


def labels(comparison: Comparison) -> dict[str, str]:
    """Return a name for each instance's hash; names that recur get the start of their hash."""
    names = [row.name for row in comparison.instances]
    return {
        row.sha256: row.name if names.count(row.name) == 1 else f"{row.name} ({row.sha256[:8]})"
        for row in comparison.instances
    }


def context(comparison: Comparison) -> dict[str, Any]:
    """Return what the templates fill in."""
    named = labels(comparison)
    return {
        "name": comparison.config.name,
        "question": comparison.config.question or QUESTION,
        "summary": summary(comparison),
        "date": comparison.environment.get("date"),
        "instances": [_instance(comparison, row, named[row.sha256]) for row in comparison.instances],
        "failed": [
            {
                "instance": named[run.instance_sha256],
                "solver": run.solver,
                "seed": NOT_KNOWN if run.seed is None else run.seed,
                "status": run.status,
                "reason": run.reason or "no reason given",
            }
            for run in comparison.failed
        ],
        "growths": growths(comparison),
        "growth_meaning": MEANING,
        "setup": _setup(comparison),
        "headings": _headings(comparison),
    }


def _headings(comparison: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what columns mean, by table, of those that are shown anywhere; each heading once in a table."""
    shown = [standing for row in comparison.instances for standing in standings(comparison, row)]
    headings = [
        (title, [(column.title, column.meaning) for column in columns_of(columns, shown)])
        for title, columns in TABLES.items()
    ]
    return [(title, columns) for title, columns in headings if columns]


def _instance(comparison: Comparison, row: InstanceRow, name: str) -> dict[str, Any]:
    table = standings(comparison, row)
    tables = []
    for title, all_columns in TABLES.items():
        if columns := columns_of(all_columns, table):
            rows = [(standing.run.solver, cells_of(columns, standing)) for standing in table]
            tables.append({"title": title, "columns": columns, "rows": rows})
    return {"name": name, "facts": _facts(row), "tables": tables, "notes": _notes(table)}


def _facts(row: InstanceRow) -> str:
    replicas = row.replicas if isinstance(row.replicas, int) else max(row.replicas, default=0)
    parts = [
        f"{row.layers} MoE layers of {row.experts} experts in {replicas} replicas",
        f"{row.gpus} GPUs in {row.nodes} nodes, {row.slots_per_gpu} slot{'s' if row.slots_per_gpu > 1 else ''} per GPU",
        f"fabric {row.fabric.get('kind', 'unknown')} with {len(row.links)} links",
        f"dispatch {row.dispatch}, replicas chosen by {row.replica_routing}",
    ]
    parts += [line.rstrip(".") for line in row.nics]
    if row.held_out:
        parts.append(f"held out: {', '.join(row.held_out)}")
    if row.current:
        parts.append(f"moves counted from the current plan {row.current}")
    return "; ".join(parts)


def _notes(table: list[Standing]) -> list[str]:
    """Return what a reader of the bounds must know."""
    notes = [*_beyond_base(table)]
    narrow = [standing.run.solver for standing in table if not standing.run.covers_copies]
    if narrow:
        notes.append(f"The bound of {', '.join(narrow)} holds for its own choice of replicas, not for every choice.")
    trusting = [standing.run.solver for standing in table if not all(standing.run.recheckable)]
    if trusting:
        notes.append(
            f"In some layers of {', '.join(trusting)} the bound is the solver's word; all others were derived anew."
        )
    return notes


def _beyond_base(table: list[Standing]) -> Iterator[str]:
    """Name plans that have more on the busiest links than `BASE` where traffic was not seen, and whether any has less.

    Ratios that differ by rounding alone are equal.
    """
    unseen = [(one.run.solver, one.held_out_to_base) for one in table if one.held_out_to_base is not None]
    more = [solver for solver, ratio in unseen if ratio > 1 + 1e-9]
    less = [solver for solver, ratio in unseen if ratio < 1 - 1e-9]
    if more:
        other = f"{', '.join(less)} less" if less else "no plan here has less"
        yield f"On held-out traffic {', '.join(more)} put more on the busiest links than {BASE}; {other}."


def _setup(comparison: Comparison) -> list[tuple[str, str]]:
    config, environment = comparison.config, comparison.environment
    named = [*sorted(environment.items()), *sorted(config.parameters.items())]
    pairs = [(_WITH_UNITS.get(key, key.replace("_", " ")), _words(value)) for key, value in named]
    pairs += [
        ("solvers", _words(config.solvers)),
        ("seeds", _words(config.seeds)),
        ("traces", _words(config.traces)),
        ("held out", _words(config.held_out)),
        ("current plans", _words(config.current)),
    ]
    return [pair for pair in pairs if pair[1]]


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(entry)}" for key, entry in sorted(value.items()))
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return "unknown" if value is None else str(value)
