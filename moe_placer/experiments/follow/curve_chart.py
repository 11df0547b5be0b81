"""The picture of a curve: by how much links, NICs, GPUs and steps fall with how many moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from moe_placer.experiments.report.charts import Spec, picture, specification, with_data

__all__ = ["draw_curve"]

_WIDTH, _HEIGHT = 640, 320  # pixels


def draw_curve(points: Sequence[Mapping[str, Any]], measures: Mapping[str, str]) -> str:
    """Return an SVG with a line for each measure, as its change from the first point.

    Parameters
    ----------
    points : sequence of mapping
        By ``moves``; a measure that is None, or 0 at first, is left out.
    measures : mapping
        Key to name.
    """
    values: list[Spec] = [
        {"measure": name, "moves": point["moves"], "change": point[key] / points[0][key] - 1}
        for key, name in measures.items()
        if points[0][key]
        for point in points
    ]
    shown = list(dict.fromkeys(value["measure"] for value in values))
    x = alt.X("moves:Q").title("moves (square root)").scale(type="sqrt", nice=False).axis(format=",", grid=False)
    y = alt.Y("change:Q").title("change from what runs now").axis(format="+.1%")
    legend = alt.Legend(orient="right", symbolType="stroke")
    base = alt.Chart().encode(x=x, y=y, color=alt.Color("measure:N", legend=legend).title(None).sort(shown))
    line, point = base.mark_line(strokeWidth=2), base.mark_point(size=40, filled=True, aria=False)
    chart = alt.layer(line, point, data=alt.NamedData("shown"), width=_WIDTH, height=_HEIGHT)
    description = "Change of busiest links, NICs, GPUs and times with the number of moves"
    return picture(with_data(specification(chart), values, description))
