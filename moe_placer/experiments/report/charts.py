"""The charts, as Vega-Lite specifications that Altair builds; records fill them by name, here or in the browser."""

from __future__ import annotations

import copy
import re
from typing import Any

import altair as alt

__all__ = ["CHARTS", "COLOURS", "GREY", "Spec", "config", "filled", "picture", "room_for", "specification", "with_data"]

Spec = dict[str, Any]

# Every one has a contrast of 3:1 or more with white and with the dark page (WCAG 2.2, 1.4.11); a test computes it.
COLOURS = (
    "#2f7ed8", "#d55e00", "#00946c", "#a855c8", "#d33f3f", "#0891a8", "#9a6b2f", "#d6518f", "#7d8c00", "#6a6fd8",
    "#b07800", "#4d9221", "#c2593f",
)  # fmt: skip
GREY = "#7a7f87"  # of what is beside the point
_ALARM = "#ff3b1f"
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_EXTENT = {"label": 9, "digit": 6.2, "gap": 12}  # characters, and pixels, that the labels of a y axis are given
_BAR = 19  # pixels of a row of a bar chart


def config(ink: str, background: str | None) -> Spec:
    """Return colours and fonts; `currentColor` lets a page's style decide."""
    text: Spec = {"labelColor": ink, "titleColor": ink, "labelFont": "sans-serif", "titleFont": "sans-serif"}
    sizes: Spec = {"labelFontSize": 11, "titleFontSize": 12}
    lines: Spec = {"domainColor": ink, "tickColor": ink, "gridColor": ink, "gridOpacity": 0.15}
    made = alt.Config(
        font="sans-serif",
        axis=alt.AxisConfig(**text, **sizes, **lines, labelOverlap="greedy", labelSeparation=6),
        legend=alt.LegendConfig(**text, **sizes, labelLimit=220),
        title=alt.TitleConfig(color=ink, subtitleColor=ink, anchor="start", fontSize=15, offset=12),
        text=alt.MarkConfig(color=ink),
        view=alt.ViewConfig(stroke=None),
        range=alt.RangeConfig(category=list(COLOURS), heatmap={"scheme": "viridis"}),
    )
    return {**made.to_dict(), "background": background}


def specification(chart: alt.Chart | alt.LayerChart | alt.FacetChart) -> Spec:
    """Return a chart as JSON, checked against Vega-Lite's schema; a look is for `config` to give."""
    made = chart.to_dict()
    made.pop("config", None)
    return {**made, "$schema": _SCHEMA}


def with_data(spec: Spec, values: list[Spec], description: str) -> Spec:
    """Return a chart that stands alone on white paper: with its data, and what a screen reader says of it."""
    return {**spec, "data": {"values": values}, "description": description, "config": config("#1a1a1a", "#ffffff")}


def filled(name: str, values: list[Spec], description: str, width: int, height: int | None = None) -> Spec:
    """Return a chart with its data, for a picture that stands alone; the page's program fills it alike.

    Parameters
    ----------
    name : str
        Which chart.
    values : list of Spec
        Its data, one record each.
    description : str
        What a screen reader says of it.
    width : int
        Pixels.
    height : int or None
        Pixels; None: as the chart has it.
    """
    chart = copy.deepcopy({**CHARTS[name], "data": {"values": values}, "description": description, "width": width})
    if height is not None:
        chart["height"] = height
    names = [value["row"] for value in values if "row" in value]
    return {**chart, "title": description, "config": {**config("#1a1a1a", "#ffffff"), **room_for(names)}}


def room_for(names: list[str]) -> Spec:
    """Return a fixed room for the labels of a y axis: their measured width is another one on another machine."""
    extent = round(_EXTENT["digit"] * max(map(len, names), default=_EXTENT["label"]) + _EXTENT["gap"])
    return {"axisY": {"minExtent": extent, "maxExtent": extent}}


def picture(spec: Spec) -> str:
    """Return the SVG of a chart; the same chart gives the same text."""
    import vl_convert

    return _renumbered(str(vl_convert.vegalite_to_svg(spec)))


def _renumbered(svg: str) -> str:
    """Return a picture whose clip paths and gradients count from 0; Vega counts on from one picture to the next."""
    places = {name: f"part{place}" for place, name in enumerate(dict.fromkeys(re.findall(r'\bid="(\w+)"', svg)))}
    return re.sub(r'(\bid="|url\(#)(\w+)', lambda found: found[1] + places.get(found[2], found[2]), svg)


def _layered(*layers: alt.Chart, **parts: Any) -> Spec:
    """Return a chart of layers, as wide as its page, that waits for records."""
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    paper = alt.param(name="paper", value="#ffffff")  # the ground of labels
    made = alt.layer(*layers, data=alt.NamedData("shown"), width="container", autosize=fit, **parts).add_params(paper)
    return specification(made)


def _named(x: alt.X, y: alt.Y, **text: Any) -> tuple[alt.Chart, alt.Chart]:
    """Return labels with a rim of paper, so that lines do not cross the letters."""
    labels = alt.Chart().transform_filter("isValid(datum.label)").encode(x=x, y=y, text="label:N")
    rim = labels.mark_text(**text, stroke=alt.ExprRef("paper"), strokeWidth=4, aria=False)
    return rim, labels.mark_text(**text)


def _said(field: str, title: str, form: str = "", kind: str = "Q") -> alt.Tooltip:
    """Return a line of a tooltip."""
    return alt.Tooltip(f"{field}:{kind}", title=title, format=form or alt.Undefined)


def _x_layer() -> alt.X:
    return alt.X("layer:O").title("layer of the model").axis(labelAngle=0, labelOverlap="parity")


# What is said of a link: plain tokens first, then their time, then the cost.
_LINK = [_said("plain", "tokens", ",.4~r"), _said("us", "µs", ",.4~r"), _said("value", "cost", ",.4~r")]


def _bars(x: alt.X, said: list[alt.Tooltip], *marks: alt.Chart) -> Spec:
    """Return bars by name, each with a label after its end; `marks` are drawn over them."""
    y = alt.Y("row:N").title(None).sort(None).axis(labelLimit=320, ticks=False, domain=False, grid=False)
    bar = alt.Chart().mark_bar(aria=False, height=alt.RelativeBandSize(0.68))
    bar = bar.encode(x=x, y=y, color=alt.Color("colour:N").scale(None), tooltip=said)
    labels = _named(alt.X("until:Q"), alt.Y("row:N").sort(None), align="left", dx=6, fontSize=11)
    return _layered(bar, *marks, *labels, height=alt.Step(_BAR))


def _beside(pixels: int) -> alt.ExprRef:
    """Return where bars end, so that their labels have some pixels beside them."""
    return alt.ExprRef(f"width - {pixels}")


def _step() -> Spec:
    x = alt.X("ms:Q").title("simulated step, ms").scale(zero=True, nice=False, rangeMax=_beside(115)).axis(grid=False)
    said = [_said("row", "plan", kind="N"), _said("ms", "step, ms", ",.2f"), _said("change", "to contiguous", "+.1%")]
    return _bars(x, said)


def _held_out() -> Spec:
    # In two lines: one is wider than half a page.
    title = ["sum of busiest links over contiguous's:", "bar on held-out traffic, line on the traffic solved for"]
    x = alt.X("unseen:Q").title(title).scale(zero=True, nice=False, rangeMax=_beside(40))
    x = x.axis(format="~g", titleLimit=700, grid=False)
    said = [_said("row", "plan", kind="N"), _said("seen", "solved for", ".4f"), _said("unseen", "held out", ".4f")]
    seen = alt.Chart().mark_tick(thickness=2, color="currentColor", aria=False, bandSize=_BAR - 3)
    seen = seen.encode(x=alt.X("seen:Q"), y=alt.Y("row:N").sort(None))
    level = alt.Chart().mark_rule(strokeDash=[4, 3], color=GREY, aria=False).encode(x=alt.XDatum(1))
    return _bars(x, said, level, seen)


def _heat(row: str, value: str, said: list[alt.Tooltip] | None = None) -> Spec:
    """Return a heat map of layers by rows; what is worst of its layer has a frame.

    ``said`` is the end of the tooltip; absent, the value.
    """
    y = alt.Y("row:O").title(None).sort(None).axis(labelOverlap="parity", labelSeparation=0, labelFontSize=10)
    cells = alt.Chart().encode(x=_x_layer(), y=y)
    tooltip = [_said("layer", "layer", kind="O"), _said("row", row, kind="N")]
    tooltip += said or [_said("value", value, ",.4~r")]
    # From 0, so that a shade is an amount, here and in every other report; what is worst is told by its frame.
    colour = alt.Color("value:Q").title(value).scale(domainMin=0)
    colour = colour.legend(orient="top", gradientLength=180, titleLimit=300)
    frames = cells.transform_filter("datum.worst")
    return _layered(
        cells.mark_rect(aria=False).encode(color=colour, tooltip=tooltip),
        frames.mark_rect(filled=False, stroke=_ALARM, strokeWidth=2, aria=False),
    )


def _fabric() -> Spec:
    square: Spec = {"domain": [0, 1], "padding": 24}
    x, y = alt.X("x:Q").axis(None).scale(**square), alt.Y("y:Q").axis(None).scale(**square)
    # Thin lines must be seen on light and dark, so no ramp starts from white or black.
    colour = alt.Color("value:Q").title("cost, summed over layers")
    colour = colour.scale(range=["#8f99a8", COLOURS[0], COLOURS[1]], interpolate="lab", domainMin=0)
    colour = colour.legend(orient="top", gradientLength=180, titleLimit=300)
    line = alt.Chart().encode(x=x, y=y, x2="x2:Q", y2="y2:Q")
    links = line.transform_filter("datum.kind == 'link'").mark_rule(strokeWidth=2.2, aria=False)
    worst = line.transform_filter("datum.worst").mark_rule(strokeWidth=6, color=_ALARM, aria=False)
    vertices = alt.Chart().transform_filter("datum.kind == 'vertex'").encode(x=x, y=y)
    text: Spec = {name: alt.ExprRef(f"datum.{name}") for name in ("dx", "dy")}
    return _layered(
        links.encode(color=colour, tooltip=[_said("name", "link", kind="N"), *_LINK]),
        worst,
        vertices.mark_circle(size=70, opacity=1, color=GREY, aria=False).encode(
            tooltip=[_said("name", "vertex", kind="N")]
        ),
        *_named(x, y, **text, align=alt.ExprRef("datum.side"), fontSize=12),
        height=360,
        padding={"left": 28, "right": 5, "top": 5, "bottom": 5},
    )


def _layers() -> Spec:
    order = ["busiest link z", "lower bound"]
    said = [_said("layer", "layer", kind="O"), _said("what", "what", kind="N"), _said("cost", "cost", ",.5~r")]
    legend = alt.Legend(orient="top", title=None)
    shape = alt.Shape("what:N", legend=legend).title(None).scale(domain=order, range=["circle", "stroke"])
    points = alt.Chart().mark_point(filled=False, size=60, strokeWidth=2, opacity=1, aria=False)
    points = points.encode(
        x=_x_layer(),
        y=alt.Y("cost:Q").title("cost per step").scale(zero=False),
        color=alt.Color("what:N", legend=legend).title(None).scale(domain=order),
        shape=shape,
        tooltip=said,
    )
    return _layered(points, height=240)


def _lines(x: alt.X, y: alt.Y, said: list[alt.Tooltip], *marks: alt.Chart, **more: Any) -> Spec:
    """Return a stepped line for every solver, in its colour, with the names of those that have one on the line."""
    told = alt.Chart().transform_filter("!isValid(datum.label)").encode(x=x, y=y)
    lines = told.mark_line(interpolate="step-after", clip=True, aria=False)
    lines = lines.encode(
        color=alt.Color("colour:N").scale(None),
        strokeWidth=alt.StrokeWidth("width:Q").scale(None),
        detail="solver:N",
        tooltip=[_said("solver", "solver", kind="N"), *said],
        **more,
    )
    return _layered(lines, *marks, *_named(x, y, align="left", dx=6, dy=-7, fontSize=12), height=280)


def _time() -> Spec:
    seconds = "seconds since the run began (logarithmic)"
    x = alt.X("seconds:Q").title(seconds).scale(type="log", nice=False).axis(format="~g")
    y = alt.Y("cost:Q").title("cost, summed over layers").scale(zero=False)
    said = [_said("what", "what", kind="N"), _said("seconds", "seconds", ",.3~r"), _said("cost", "cost", ",.0f")]
    dash = alt.StrokeDash("what:N").title(None).legend(orient="bottom", symbolStrokeColor=GREY)
    ends = alt.Chart().transform_filter("datum.end").mark_point(filled=True, size=40, opacity=1, aria=False)
    ends = ends.encode(x=x, y=y, color=alt.Color("colour:N").scale(None))
    return _lines(x, y, said, ends, strokeDash=dash.scale(domain=["placement", "bound"], range=[[1, 0], [5, 4]]))


def _profile() -> Spec:
    factor = "busiest link over the best solver's of that layer"
    x = alt.X("factor:Q").title(factor).scale(zero=False, nice=False)
    y = alt.Y("share:Q").title("share of layers within it").axis(format="%").scale(domain=[0, 1])
    return _lines(x, y, [_said("factor", factor, ".3f"), _said("share", "share", ".0%")], order="factor:Q")


CHARTS: dict[str, Spec] = {
    "step": _step(),
    "held-out": _held_out(),
    "layers": _layers(),
    "links": _heat("link", "cost per step", _LINK),
    "fabric": _fabric(),
    "gpus": _heat("GPU", "tokens computed per step"),
    "time": _time(),
    "profile": _profile(),
}
