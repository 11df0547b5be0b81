"""The report as Markdown, with its pictures as files beside it."""

from __future__ import annotations

import html
import re
from importlib.resources import files
from typing import Any

import jinja2

from moe_placer.experiments.report import chart_data as records
from moe_placer.experiments.report.charts import filled, picture
from moe_placer.experiments.report.rows import Comparison, InstanceRow
from moe_placer.experiments.report.standings import BASE, Standing, standings
from moe_placer.experiments.report.view import context, labels

__all__ = ["plain", "to_markdown"]

_WIDTH = 760  # pixels


def to_markdown(comparison: Comparison) -> dict[str, str]:
    """Return file names and contents: `README.md` and the .svg pictures that it shows.

    Pictures of links, GPUs and the fabric are of the best placement of the first instance that got one and uses links.
    """
    pictures = _pictures(comparison)
    template = files("moe_placer.experiments.report").joinpath("report.md.j2").read_text(encoding="utf-8")
    # Escaping for HTML alone would let Markdown's own marks through, so `plain` does both.
    environment = jinja2.Environment(autoescape=False, trim_blocks=True, lstrip_blocks=True, finalize=_plain)  # noqa: S701
    shown = [(name, title) for name, (title, _) in pictures.items()]
    text = environment.from_string(template).render(**context(comparison), pictures=shown)
    return {"README.md": text.rstrip() + "\n", **{name: svg for name, (_, svg) in pictures.items()}}


def plain(text: str) -> str:
    """Return text that Markdown shows as it is: no markup, no link, no new line."""
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(one_line, quote=False))


def _plain(value: object) -> object:
    return plain(value) if isinstance(value, str) else value


def _pictures(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Return file name to title and SVG."""
    found: dict[str, tuple[str, str]] = {}

    def add(chart: str, title: str, values: list[dict[str, Any]], height: int | None = None) -> None:
        if values:
            found[f"{chart}.svg"] = (title, picture(filled(chart, values, title, _WIDTH, height)))

    named = labels(comparison)
    add("step", f"Simulated step, {', '.join(named.values())}", records.steps(comparison))
    add("held-out", _held_out_title(comparison), records.held_out(comparison))
    add("profile", "Share of layers within a factor of the best solver", records.profiles(comparison))
    best = _first_best(comparison)
    if best is not None:
        row, standing = best
        run, name = standing.run, f"{standing.run.solver} on {named[row.sha256]}"
        add("time", f"Placement and bound against time, {named[row.sha256]}", records.times(comparison, row))
        add("layers", f"Busiest link and bound of every layer, {name}", records.layers(row, run))
        add("fabric", f"Load of the fabric's links, the worst in red, {name}", records.fabric(row, run))
        for chart, what, table in (
            ("links", "link", records.link_table(row, run)),
            ("gpus", "GPU", records.gpu_table(row, run)),
        ):
            add(chart, f"Load of every {what} in every layer, {name}", records.cells(table), table["height"])
    return found


def _held_out_title(comparison: Comparison) -> str:
    """Say what the picture of held-out traffic shows, of the first instance: the best plan, and its distance."""
    title = "Busiest links on traffic that was not solved for"
    for row in comparison.instances:
        ratios = {one.run.solver: one.held_out_to_base for one in standings(comparison, row)}
        known = {solver: ratio for solver, ratio in ratios.items() if ratio is not None}
        if known:
            best = min(known, key=lambda solver: known[solver])
            return title if best == BASE else f"{title}: {best} has {1 - known[best]:.0%} less than {BASE}"
    return title


def _first_best(comparison: Comparison) -> tuple[InstanceRow, Standing] | None:
    """Return the first instance that uses links, or any, with its best placement."""
    best = [(row, table[0]) for row in comparison.instances if (table := standings(comparison, row))]
    return next((pair for pair in best if pair[1].run.solved_for.z_total > 0), best[0] if best else None)
