"""The report as one HTML page that needs no network."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import vl_convert

from moe_placer.experiments.report import chart_data as records
from moe_placer.experiments.report.charts import CHARTS, config
from moe_placer.experiments.report.link_figures import carried, per_token
from moe_placer.experiments.report.rows import Comparison, InstanceRow
from moe_placer.experiments.report.standings import Standing, standings
from moe_placer.experiments.report.view import context, labels
from moe_placer.files import policy_hash

__all__ = ["to_page"]

_ROOM = 4_500_000  # bytes of base64 for details of runs; with program and tables the page stays under 6 MB


def to_page(comparison: Comparison) -> str:
    """Return the page: text and tables as HTML, charts drawn by the Vega program that is part of it.

    What the rows say is escaped by the template, or is JSON that the program shows as text. The content security
    policy runs no other program and loads nothing; Vega interprets its expressions, so that it need not evaluate code.
    """
    folder = files("moe_placer.experiments.report")
    style, own, template = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js", "report.html.j2")
    )
    library = _library()
    scripts = f"{policy_hash(library)} {policy_hash(own)}"
    policy = f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:"
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        **context(comparison), style=style, library=library, own=own, policy=policy, data=_json(_data(comparison))
    )


@cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one program."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _data(comparison: Comparison) -> dict[str, Any]:
    """Return what the charts show; a run's large tables are packed, as many as there is room for."""
    named = labels(comparison)
    packed = dict(_packed_runs(comparison))
    instances = [
        {
            "name": named[row.sha256],
            "gpuNode": row.gpu_node,
            "times": records.times(comparison, row),
            "runs": [
                {
                    "solver": standing.run.solver,
                    "layers": records.layers(row, standing.run),
                    "table": _layer_table(row, standing),
                    "details": packed.get(standing.run.key),
                }
                for standing in standings(comparison, row)
            ],
        }
        for row in comparison.instances
    ]
    return {
        "charts": CHARTS,
        "config": config("currentColor", None),
        "step": records.steps(comparison),
        "profile": records.profiles(comparison),
        "heldOut": records.held_out(comparison),
        "instances": [instance for instance in instances if instance["runs"]],
    }


def _layer_table(row: InstanceRow, standing: Standing) -> list[list[Any]]:
    run = standing.run
    figures, worst = per_token(row), run.solved_for.worst_link
    plain = [carried(figures, link, z) for link, z in zip(worst, run.z, strict=True)]
    columns = (row.layer_index, run.z, run.bound, run.proof, run.recheckable, worst, *zip(*plain, strict=True))
    return [list(layer) for layer in zip(*columns, strict=True)]


def _packed_runs(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield key and packed details of runs, the best of every instance first, while there is room."""
    tables = [(row, standings(comparison, row)) for row in comparison.instances]
    room = _ROOM
    for rank in range(max((len(table) for _, table in tables), default=0)):
        for row, table in tables:
            if rank < len(table):
                details = _packed(_details(row, table[rank]))
                if len(details) <= room:
                    room -= len(details)
                    yield table[rank].run.key, details


def _details(row: InstanceRow, standing: Standing) -> dict[str, Any]:
    return {
        "links": records.link_table(row, standing.run),
        "gpus": records.gpu_table(row, standing.run),
        "fabric": records.fabric(row, standing.run),
        "gpu": standing.run.gpu,
    }


def _packed(value: Any) -> str:
    # Without a time, so that the same rows give the same bytes.
    return base64.b64encode(gzip.compress(_compact(value).encode(), 6, mtime=0)).decode()


def _json(value: Any) -> str:
    """Return JSON that can stand in a script element: no `<` that could end it."""
    return _compact(value).replace("<", "\\u003c")


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
