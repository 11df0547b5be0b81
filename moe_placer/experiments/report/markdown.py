"""The report as Markdown, with its pictures as files beside it."""

from __future__ import annotations

import html
import re
from importlib.resources import files

import jinja2
import vl_convert

from moe_placer.experiments.report import chart_data as records
from moe_placer.experiments.report.charts import filled
from moe_placer.experiments.report.rows import Comparison, InstanceRow
from moe_placer.experiments.report.standings import Standing, standings
from moe_placer.experiments.report.view import context, labels

__all__ = ["plain", "renumbered", "to_markdown"]

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

    def add(chart: str, title: str, values: list[dict[str, object]]) -> None:
        if values:
            svg = vl_convert.vegalite_to_svg(filled(chart, values, title, _WIDTH, comparison.solvers))
            found[f"{chart}.svg"] = (title, renumbered(svg))

    named = labels(comparison)
    add("profile", "Share of layers within a factor of the best solver", records.profiles(comparison))
    add("held-out", "Held-out traffic against the traffic solved for", records.held_out(comparison))
    best = _first_best(comparison)
    if best is not None:
        row, standing = best
        run, name = standing.run, f"{standing.run.solver} on {named[row.sha256]}"
        add(
            "time",
            f"Placement and bound against time, of solvers within 1.6 times the best, {named[row.sha256]}",
            records.times(comparison, row),
        )
        add("layers", f"Worst link and bound of every layer, {name}", records.layers(row, run))
        add("fabric", f"Load of the fabric's links, the worst in red, {name}", records.fabric(row, run))
        add("links", f"Load of every link in every layer, {name}", records.cells(records.link_table(row, run)))
        add("gpus", f"Load of every GPU in every layer, {name}", records.cells(records.gpu_table(row, run)))
    return found


def renumbered(svg: str) -> str:
    """Return a picture whose clip paths and gradients count from 0; Vega counts on from one picture to the next."""
    places = {name: f"part{place}" for place, name in enumerate(dict.fromkeys(re.findall(r'\bid="(\w+)"', svg)))}
    return re.sub(r'(\bid="|url\(#)(\w+)', lambda found: found[1] + places.get(found[2], found[2]), svg)


def _first_best(comparison: Comparison) -> tuple[InstanceRow, Standing] | None:
    """Return the first instance that uses links, or any, with its best placement."""
    best = [(row, table[0]) for row in comparison.instances if (table := standings(comparison, row))]
    return next((pair for pair in best if pair[1].run.solved_for.z_total > 0), best[0] if best else None)
