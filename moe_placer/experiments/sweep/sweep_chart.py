"""The picture of a sweep: throughput over batches, or the time of a step over what else is swept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from moe_placer.experiments.report.charts import Spec, picture, room_for, specification, with_data
from moe_placer.experiments.sweep.findings import AXES, by, said, varied

__all__ = ["caption", "draw"]

Row = Mapping[str, Any]
_Panel = alt.LayerChart | alt.FacetChart  # what Altair says that layers make
_WIDTH, _HEIGHT = 380, 260  # pixels of a panel
_COLUMNS = 2
_STEP = "time of a step, ms"
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
    spec = _faceted(panel, values, caption(rows))
    if axis is not None and not all(row["fits"] for row in rows):
        note = "hollow points: memory does not hold the batch"
        spec["title"] = {"text": note, "fontSize": 11, "fontWeight": "normal", "anchor": "start", "orient": "bottom"}
    if axis is None:
        spec["config"] |= room_for([value["x"] for value in values])
    return picture(spec)


def _axis(rows: Sequence[Row]) -> str | None:
    """Choose what is drawn to the right: the first quantity that is swept, in every fabric of one that has it."""
    return next((field for field in varied(rows, AXES) if all(row[field] is not None for row in rows)), None)


def _faceted(panel: _Panel, values: list[Spec], description: str) -> Spec:
    names = [name for (name,) in by(values, "panel")]
    if len(names) == 1:
        spec = specification(panel.properties(width=2 * _WIDTH))
    else:
        header = alt.Header(labelFontSize=13, labelFontWeight="bold", labelLimit=_WIDTH)
        facet = alt.Facet("panel:N", header=header).title(None).sort(names)
        faceted = panel.properties(width=_WIDTH).facet(facet=facet, columns=_COLUMNS, data=alt.NamedData("shown"))
        spec = specification(faceted.resolve_scale(x="independent", y="independent"))
    return with_data(spec, values, description)


def _lines(axis: str, ticks: list[float]) -> _Panel:
    if axis == "oversubscription":
        scale = alt.Scale(zero=False, nice=False, padding=12)
    else:
        scale = alt.Scale(type="log", nice=False, padding=12)
    x = alt.X("x:Q", scale=scale).title(_TITLES[axis]).axis(values=ticks, format=",~g", grid=False, labelOverlap=True)
    y = alt.Y("rate:Q").title("tokens/s per GPU") if axis == "tokens_per_gpu" else alt.Y("ms:Q").title(_STEP)
    base = alt.Chart().encode(x=x, y=y.axis(format=",.6~g"))
    legend = alt.Legend(orient="top", direction="vertical", labelLimit=2 * _WIDTH, symbolType="stroke")
    line = base.mark_line(strokeWidth=2).encode(color=alt.Color("plan:N", legend=legend).title(None).sort(None))
    point = base.mark_point(size=70, strokeWidth=2, opacity=1, aria=False).encode(
        stroke=alt.Stroke("plan:N", legend=None).sort(None),
        fill=alt.Fill("plan:N", legend=None).sort(None),
        fillOpacity=alt.condition("datum.memory == 'fits the memory'", alt.value(1), alt.value(0)),
    )
    return alt.layer(line, point, data=alt.NamedData("shown"), height=_HEIGHT)


def _bars() -> _Panel:
    y = alt.Y("x:N").title(None).sort(None).axis(labelLimit=320)
    base = alt.Chart().encode(y=y, x=alt.X("ms:Q").title(_STEP).axis(format=",.6~g"))
    bar = base.mark_bar(aria=False).encode(color=alt.Color("plan:N", legend=None).sort(None))
    text = base.mark_text(align="left", dx=4, aria=False).encode(text=alt.Text("ms:Q", format=",.1f"))
    return alt.layer(bar, text, data=alt.NamedData("shown"), height=alt.Step(34))
