"""The picture of a sweep: throughput over batches, or the time of a step over what else is swept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_placer.experiments.report.charts import config
from moe_placer.experiments.report.markdown import renumbered
from moe_placer.experiments.sweep.findings import AXES, by, said, varied

__all__ = ["caption", "draw"]

Row = Mapping[str, Any]
Spec = dict[str, Any]

_WIDTH, _HEIGHT = 380, 260  # pixels of a panel
_COLUMNS = 2
_TITLES = {
    "tokens_per_gpu": "tokens per GPU in one step (logarithmic)",
    "context": "context, tokens (logarithmic)",
    "oversubscription": "oversubscription of the fabric",
}


def caption(rows: Sequence[Row]) -> str:
    """Say what the picture shows."""
    axis = _axis(rows)
    if axis is None:
        return "time of a step by plan, side by side"
    what = "throughput per GPU" if axis == "tokens_per_gpu" else "time of a step"
    named = axis.replace("_", " ").replace("gpu", "GPU")
    return f"{what} by {named}, a line per plan; hollow points do not fit the memory"


def draw(rows: Sequence[Row]) -> str:
    """Return an SVG: one panel for every combination of what is swept beside the axis."""
    import vl_convert

    axis = _axis(rows)
    beside = [field for field in varied(rows) if field != axis]
    values = [
        {
            "plan": row["plan"],
            "x": row[axis] if axis else row["plan"],
            "ms": row["latency_us"] / 1e3,
            "rate": row["tokens_per_s_per_gpu"],
            "memory": "fits the memory" if row["fits"] else "does not fit",
            "panel": ", ".join(said(field, row[field]) for field in beside),
        }
        for row in rows
    ]
    panel = _bars() if axis is None else _lines(axis, sorted({value["x"] for value in values}))
    return renumbered(vl_convert.vegalite_to_svg(_faceted(panel, values, caption(rows))))


def _axis(rows: Sequence[Row]) -> str | None:
    """Choose what is drawn to the right: the first quantity that is swept, in every fabric of one that has it."""
    return next((field for field in varied(rows, AXES) if all(row[field] is not None for row in rows)), None)


def _faceted(panel: Spec, values: list[Spec], description: str) -> Spec:
    names = [name for (name,) in by(values, "panel")]
    spec: Spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": description,
        "data": {"values": values},
        "config": config("#1a1a1a", "#ffffff"),
    }
    if any(value["memory"] != "fits the memory" for value in values) and "layer" in panel:
        note = "hollow points: memory does not hold the batch"
        spec["title"] = {"text": note, "fontSize": 11, "fontWeight": "normal", "anchor": "start", "orient": "bottom"}
    if len(names) == 1:
        return {**spec, "width": 2 * _WIDTH, "height": _HEIGHT, **panel}
    facet = {"field": "panel", "type": "nominal", "title": None, "sort": names}
    header = {"labelFontSize": 13, "labelFontWeight": "bold", "labelLimit": _WIDTH}
    return {
        **spec,
        "facet": {**facet, "header": header},
        "columns": _COLUMNS,
        "resolve": {"scale": {"x": "independent", "y": "independent"}},
        "spec": {"width": _WIDTH, "height": _HEIGHT, **panel},
    }


def _lines(axis: str, ticks: list[float]) -> Spec:
    scale = {"type": "log", "nice": False} if axis != "oversubscription" else {"zero": False, "nice": False}
    x = {
        "field": "x",
        "type": "quantitative",
        "title": _TITLES[axis],
        "scale": {**scale, "padding": 12},
        "axis": {"values": ticks, "format": ",~g", "grid": False, "labelOverlap": True},
    }
    over_batches = axis == "tokens_per_gpu"
    y = {
        "field": "rate" if over_batches else "ms",
        "type": "quantitative",
        "title": "tokens/s per GPU" if over_batches else "time of a step, ms",
        "axis": {"format": ",.6~g"},
    }
    colour = {"field": "plan", "type": "nominal", "title": None, "sort": None, "legend": _legend()}
    hollow = {"condition": {"test": "datum.memory == 'fits the memory'", "value": 1}, "value": 0}
    point = {"type": "point", "size": 70, "strokeWidth": 2, "opacity": 1, "aria": False}
    return {
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, "color": colour}},
            {
                "mark": point,
                "encoding": {
                    "x": x,
                    "y": y,
                    "stroke": {**colour, "legend": None},
                    "fill": {**colour, "legend": None},
                    "fillOpacity": hollow,
                },
            },
        ]
    }


def _legend() -> Spec:
    return {"orient": "top", "direction": "vertical", "labelLimit": 2 * _WIDTH, "symbolType": "stroke"}


def _bars() -> Spec:
    y = {"field": "x", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 320}}
    x = {"field": "ms", "type": "quantitative", "title": "time of a step, ms", "axis": {"format": ",.6~g"}}
    text = {"field": "ms", "type": "quantitative", "format": ",.1f"}
    return {
        "height": {"step": 34},
        "encoding": {"y": y, "x": x},
        "layer": [
            {
                "mark": {"type": "bar", "aria": False},
                "encoding": {"color": {"field": "plan", "legend": None, "sort": None}},
            },
            {"mark": {"type": "text", "align": "left", "dx": 4, "aria": False}, "encoding": {"text": text}},
        ],
    }
