"""``moe-placer solvers``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import json_option

if TYPE_CHECKING:
    from moe_placer.cli.results.placing import SolverListed, SolversResult

__all__ = ["solvers"]


@click.command()
@json_option
def solvers(json_: bool) -> None:
    """List the solvers: what they do, whether they prove optimality, and whether they can run here."""
    from moe_placer.solve.registry import DEFAULT, find_solver, solver_names

    rows: list[SolverListed] = []
    for name in solver_names():
        solver = find_solver(name)
        rows.append(
            {
                "name": name,
                "default": name == DEFAULT,
                "exact": solver.exact,
                "summary": solver.summary,
                "source": solver.source,
                "unavailable": solver.unavailable(),
            }
        )
    if json_:
        content: SolversResult = {"schema": "moe-placer/solvers/1", "solvers": rows}
        click.echo(as_json(content))
        return
    width = max(len(str(row["name"])) for row in rows)
    for row in rows:
        proof = "proves optimality" if row["exact"] else "heuristic"
        away = f"  NOT AVAILABLE: {row['unavailable']}" if row["unavailable"] else ""
        click.echo(f"{row['name']!s:<{width}}  {proof:<17}  {row['summary']}{away}")
