"""What both forms of a report say in words and tables."""

from __future__ import annotations

from typing import Any

from moe_placer.report.figures import Standing, standings
from moe_placer.report.rows import Comparison, InstanceRow
from moe_placer.report.sentences import summary
from moe_placer.report.tables import NOT_KNOWN, TABLES, cells_of

__all__ = ["context", "labels"]

QUESTION = "Which method places the experts so that the hottest inter-node link is coolest?"


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
        "setup": _setup(comparison),
        "headings": [[title, [(c.title, c.meaning) for c in columns]] for title, columns in TABLES.items()],
    }


def _instance(comparison: Comparison, row: InstanceRow, name: str) -> dict[str, Any]:
    table = standings(comparison, row)
    tables = [
        {
            "title": title,
            "columns": columns,
            "rows": [(standing.run.solver, cells_of(columns, standing)) for standing in table],
        }
        for title, columns in TABLES.items()
    ]
    return {"name": name, "facts": _facts(row), "tables": tables if table else [], "notes": _notes(table)}


def _facts(row: InstanceRow) -> str:
    replicas = row.replicas if isinstance(row.replicas, int) else max(row.replicas, default=0)
    parts = [
        f"{row.layers} MoE layers of {row.experts} experts in {replicas} replicas",
        f"{row.gpus} GPUs in {row.nodes} nodes, {row.slots_per_gpu} slots per GPU",
        f"fabric {row.fabric.get('kind', 'unknown')} with {len(row.links)} links",
        f"dispatch {row.dispatch}, replicas chosen by {row.replica_routing}",
    ]
    if row.held_out:
        parts.append(f"held out: {', '.join(row.held_out)}")
    return "; ".join(parts)


def _notes(table: list[Standing]) -> list[str]:
    """Return what a reader of the bounds must know."""
    notes = []
    narrow = [standing.run.solver for standing in table if not standing.run.covers_copies]
    if narrow:
        notes.append(f"The bound of {', '.join(narrow)} holds for its own choice of copies, not for every choice.")
    trusting = [standing.run.solver for standing in table if not all(standing.run.recheckable)]
    if trusting:
        notes.append(
            f"In some layers of {', '.join(trusting)} the bound is the solver's word; all others were derived anew."
        )
    return notes


def _setup(comparison: Comparison) -> list[tuple[str, str]]:
    config, environment = comparison.config, comparison.environment
    pairs = [(key.replace("_", " "), _words(value)) for key, value in sorted(environment.items())]
    pairs += [(key.replace("_", " "), _words(value)) for key, value in sorted(config.parameters.items())]
    pairs += [
        ("solvers", _words(config.solvers)),
        ("seeds", _words(config.seeds)),
        ("traces", _words(config.traces)),
        ("held out", _words(config.held_out)),
    ]
    return [pair for pair in pairs if pair[1]]


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(entry)}" for key, entry in sorted(value.items()))
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return "unknown" if value is None else str(value)
