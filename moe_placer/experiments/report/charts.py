"""The charts, as Vega-Lite specifications; what they show is filled in by name, here or in the browser."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

__all__ = ["CHARTS", "COLOURS", "DASHES", "config", "filled"]

Spec = dict[str, Any]

# Every one has a contrast of 3:1 or more with white and with the dark page (WCAG 2.2, 1.4.11); a test computes it.
COLOURS = (
    "#2f7ed8", "#d55e00", "#00946c", "#a855c8", "#d33f3f", "#0891a8", "#9a6b2f", "#d6518f", "#7d8c00", "#6a6fd8",
    "#7a7f87", "#b07800", "#4d9221", "#c2593f",
)  # fmt: skip
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_SOLVER = {"field": "solver", "type": "nominal", "title": None}
_LEGEND = {"orient": "top", "columns": 3}


DASHES = ([1, 0], [7, 3], [2, 2], [8, 2, 2, 2])  # so that colour is not all that tells lines apart
_EXTENT = {"label": 9, "digit": 6.2, "gap": 12}  # characters, and pixels, that the labels of a y axis are given


def config(ink: str, background: str | None) -> Spec:
    """Return colours and fonts; `currentColor` lets a page's style decide."""
    text = {"labelColor": ink, "titleColor": ink, "labelFont": "sans-serif", "titleFont": "sans-serif"}
    sizes = {"labelFontSize": 11, "titleFontSize": 12}
    lines = {"domainColor": ink, "tickColor": ink, "gridColor": ink, "gridOpacity": 0.15}
    return {
        "background": background,
        "font": "sans-serif",
        "axis": {**text, **sizes, **lines, "labelOverlap": "greedy", "labelSeparation": 6},
        "legend": {**text, **sizes, "labelLimit": 220},
        "title": {"color": ink},
        "text": {"color": ink},
        "view": {"stroke": None},
        "range": {"category": list(COLOURS), "heatmap": {"scheme": "viridis"}, "ramp": {"scheme": "viridis"}},
    }


def filled(name: str, values: list[dict[str, Any]], description: str, width: int, solvers: Sequence[str] = ()) -> Spec:
    """Return a chart with its data, for a picture that stands alone; the page's program fills it alike."""
    chart = copy.deepcopy({**CHARTS[name], "data": {"values": values}, "description": description, "width": width})
    if "usermeta" in chart:  # a heat map is as high as its rows
        rows, heights = len({value["row"] for value in values}), chart["usermeta"]
        chart["height"] = max(heights["row"] * rows, min(heights["few"], heights["label"] * rows))
    present = [solver for solver in solvers if any(value.get("solver") == solver for value in values)]
    places = [solvers.index(solver) for solver in present]
    for channel, palette in (("color", COLOURS), ("strokeDash", DASHES), ("shape", None)):
        encoding = chart.get("encoding", {}).get(channel, {})
        if encoding.get("field") == "solver":
            shown = {"range": [palette[place % len(palette)] for place in places]} if palette else {}
            encoding["scale"] = {"domain": present, **shown}
    # A fixed room for labels: their measured width is rounded otherwise on one machine than on another.
    longest = max((len(value["row"]) for value in values if "row" in value), default=_EXTENT["label"])
    extent = round(_EXTENT["digit"] * longest + _EXTENT["gap"])
    look = config("#1a1a1a", "#ffffff")
    return {**chart, "config": {**look, "axisY": {"minExtent": extent, "maxExtent": extent}}}


def _chart(**parts: Any) -> Spec:
    return {
        "$schema": _SCHEMA,
        "data": {"name": "shown"},
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        **parts,
    }


def _number(field: str, title: str, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, **more}


# What is said of a link: plain tokens first, then their time, then the cost.
_LINK: list[Spec] = [
    _number("plain", "tokens", format=",.4~r"),
    _number("us", "µs", format=",.4~r"),
    _number("value", "cost", format=",.4~r"),
]


def _heat(row: str, value: str, said: Sequence[Spec] = ()) -> Spec:
    """Return a heat map of layers by rows; what is worst of its layer has a frame.

    ``said`` is the end of the tooltip; absent, the value.
    """
    x = {
        "field": "layer",
        "type": "ordinal",
        "title": "layer of the model",
        "axis": {"labelAngle": 0, "labelOverlap": "parity"},
    }
    y = {
        "field": "row",
        "type": "ordinal",
        "title": None,
        "sort": None,
        "axis": {"labelOverlap": "parity", "labelSeparation": 0, "labelFontSize": 10},
    }
    legend = {"orient": "top", "gradientLength": 180, "titleLimit": 300}
    tooltip = [
        {"field": "layer", "title": "layer"},
        {"field": "row", "title": row},
        *(said or [_number("value", value, format=",.4~r")]),
    ]
    return _chart(
        usermeta={"row": 6, "label": 14, "few": 224},  # pixels: a row, one with a label, and up to where each has one
        encoding={"x": x, "y": y},
        layer=[
            {
                "mark": {"type": "rect", "aria": False},
                "encoding": {"color": _number("value", value, legend=legend), "tooltip": tooltip},
            },
            {
                "transform": [{"filter": "datum.worst"}],
                "mark": {"type": "rect", "filled": False, "stroke": "#ff3b1f", "strokeWidth": 2, "aria": False},
            },
        ],
    )


def _fabric() -> Spec:
    hidden = {"axis": None, "scale": {"domain": [0, 1], "padding": 24}}
    x, y = ({"field": field, "type": "quantitative", **hidden} for field in ("x", "y"))
    legend = {"orient": "top", "gradientLength": 180, "titleLimit": 300}
    # Thin lines must be seen on light and dark, so no ramp starts from black.
    scale = {"range": [COLOURS[0], COLOURS[11]], "interpolate": "lab"}
    line = {"x": x, "y": y, "x2": {"field": "x2"}, "y2": {"field": "y2"}}
    text = {"align": {"expr": "datum.side"}, "dx": {"expr": "datum.dx"}, "dy": {"expr": "datum.dy"}, "fontSize": 12}
    label = {"x": x, "y": y, "text": {"field": "label"}}
    vertices = [{"filter": "datum.kind == 'vertex'"}]
    return _chart(
        params=[{"name": "paper", "value": "#ffffff"}],
        height=360,
        padding={"left": 28, "right": 5, "top": 5, "bottom": 5},
        layer=[
            {
                "transform": [{"filter": "datum.kind == 'link'"}],
                "mark": {"type": "rule", "strokeWidth": 2.2, "aria": False},
                "encoding": {
                    **line,
                    "color": _number("value", "cost, summed over layers", legend=legend, scale=scale),
                    "tooltip": [{"field": "name", "title": "link"}, *_LINK],
                },
            },
            {
                "transform": [{"filter": "datum.worst"}],
                "mark": {"type": "rule", "strokeWidth": 6, "color": "#ff3b1f", "aria": False},
                "encoding": line,
            },
            {
                "transform": vertices,
                "mark": {"type": "circle", "size": 70, "opacity": 1, "color": "#7a7f87", "aria": False},
                "encoding": {"x": x, "y": y, "tooltip": [{"field": "name", "title": "vertex"}]},
            },
            {  # a rim of paper, so that lines do not cross the letters
                "transform": vertices,
                "mark": {**text, "type": "text", "stroke": {"expr": "paper"}, "strokeWidth": 4, "aria": False},
                "encoding": label,
            },
            {"transform": vertices, "mark": {**text, "type": "text"}, "encoding": label},
        ],
    )


def _layers() -> Spec:
    x = {
        "field": "layer",
        "type": "ordinal",
        "title": "layer of the model",
        "axis": {"labelAngle": 0, "labelOverlap": "parity"},
    }
    y = _number("cost", "cost per step", scale={"zero": False})
    order = ["worst link z", "lower bound"]
    series = {"field": "what", "type": "nominal", "title": None, "legend": {"orient": "top"}}
    tooltip = [
        {"field": "layer", "title": "layer"},
        {"field": "what", "title": "what"},
        _number("cost", "cost", format=",.5~r"),
    ]
    mark = {"type": "point", "filled": False, "size": 60, "strokeWidth": 2, "opacity": 1, "aria": False}
    shape = {**series, "scale": {"domain": order, "range": ["circle", "stroke"]}}
    colour = {**series, "scale": {"domain": order}}
    return _chart(height=240, mark=mark, encoding={"x": x, "y": y, "color": colour, "shape": shape, "tooltip": tooltip})


def _time() -> Spec:
    x = _number(
        "seconds",
        "seconds since the run began (logarithmic)",
        scale={"type": "log", "nice": False},
        axis={"format": "~g"},
    )
    y = _number("cost", "cost, summed over layers", scale={"zero": False})
    dash = {"field": "what", "type": "nominal", "title": None, "legend": {"orient": "bottom"}}
    dashes = {"domain": ["placement", "bound"], "range": [[1, 0], [5, 4]]}
    encoding = {
        "x": x,
        "y": y,
        "color": {**_SOLVER, "legend": {**_LEGEND, "symbolType": "stroke", "symbolStrokeWidth": 3}},
        "tooltip": [{**_SOLVER, "title": "solver"}, {**dash, "title": "what"}, x, y],
    }
    return _chart(
        height=260,
        encoding=encoding,
        layer=[
            {
                "mark": {"type": "line", "interpolate": "step-after", "aria": False},
                "encoding": {"strokeDash": {**dash, "scale": dashes}},
            },
            {
                "transform": [{"filter": "datum.end"}],
                "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1, "aria": False},
            },
        ],
    )


def _profile() -> Spec:
    x = _number("factor", "worst link over the best solver's of that layer", scale={"zero": False, "nice": False})
    y = _number("share", "share of layers within it", axis={"format": "%"}, scale={"domain": [0, 1]})
    return _chart(
        height=260,
        mark={"type": "line", "interpolate": "step-after", "clip": True, "strokeWidth": 2.5, "aria": False},
        encoding={
            "x": x,
            "y": y,
            "color": {**_SOLVER, "legend": _LEGEND},
            "strokeDash": {**_SOLVER, "legend": _LEGEND},
            "order": x,
            "tooltip": [{**_SOLVER, "title": "solver"}, {**x, "format": ".3f"}, {**y, "format": ".0%"}],
        },
    )


def _held_out() -> Spec:
    x = _number("seen", "solved for, over contiguous", scale={"zero": False}, axis={"format": ".2f"})
    y = _number("unseen", "held out, over contiguous", scale={"zero": False}, axis={"format": ".2f"})
    tooltip = [
        {"field": "instance", "title": "instance"},
        {"field": "solver", "title": "solver"},
        {**x, "title": "solved for", "format": ".4f"},
        {**y, "title": "held out", "format": ".4f"},
    ]
    return _chart(
        height=300,
        mark={"type": "point", "filled": True, "size": 90, "opacity": 1, "aria": False},
        encoding={
            "x": x,
            "y": y,
            "color": {**_SOLVER, "legend": _LEGEND},
            "shape": {**_SOLVER, "legend": _LEGEND},
            "tooltip": tooltip,
        },
    )


CHARTS: dict[str, Spec] = {
    "layers": _layers(),
    "links": _heat("link", "cost per step", _LINK),
    "fabric": _fabric(),
    "gpus": _heat("GPU", "tokens computed per step"),
    "time": _time(),
    "profile": _profile(),
    "held-out": _held_out(),
}
