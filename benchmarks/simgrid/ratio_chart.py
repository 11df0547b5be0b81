"""The picture of a cross-check: our time over SimGrid's, by size of messages."""

from __future__ import annotations

import altair as alt
import numpy as np

from benchmarks.simgrid.agreement import Rows, by, ratio
from benchmarks.simgrid.models import MODELS
from moe_placer.experiments.report.charts import COLOURS, Spec, picture, specification, with_data

__all__ = ["draw"]

_WIDTH, _HEIGHT = 240, 180  # pixels of a panel


def draw(rows: Rows) -> str:
    """Return an SVG: one panel per model of SimGrid, the median over all rows of a size, and the range of these."""
    values = []
    for (tokens,), group in by(rows, "tokens_per_gpu").items():
        for model in MODELS:
            ratios = np.array([ratio(row, model) for row in group])
            low, middle, high = float(ratios.min()), float(np.median(ratios)), float(ratios.max())
            values.append({"model": model, "tokens": tokens, "low": low, "median": middle, "high": high})
    chart = _chart(sorted({value["tokens"] for value in values}))
    what = "Our time over SimGrid's by tokens per GPU, one panel per network model"
    return picture(with_data(chart, values, what))


def _chart(ticks: list[float]) -> Spec:
    x = alt.X("tokens:Q").title("tokens per GPU (logarithmic)").scale(type="log")
    x = x.axis(values=ticks, format=",~g", grid=False)
    y = alt.Y("low:Q").title("our time / SimGrid's").scale(zero=False).axis(format=".2f")
    within = alt.Chart(alt.InlineData([{}])).mark_rect(color=COLOURS[2], opacity=0.15)
    within = within.encode(y=alt.YDatum(0.9), y2=alt.Y2Datum(1.1))
    spread = alt.Chart().mark_area(opacity=0.25).encode(x=x, y=y, y2="high:Q")
    middle = alt.Chart().mark_line(point=True).encode(x=x, y=alt.Y("median:Q"))
    header = alt.Header(labelFontSize=13, labelFontWeight="bold")
    panels = alt.layer(within, spread, middle, width=_WIDTH, height=_HEIGHT)
    facet = alt.Facet("model:N", header=header).title(None).sort(list(MODELS))
    faceted = panels.facet(facet=facet, columns=3, data=alt.NamedData("shown"))
    return specification(faceted.resolve_axis(x="independent"))
