"""Pictures of ways to follow traffic: their cost window by window, and moves against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import altair as alt

from moe_placer.experiments.report.charts import Spec, picture, specification, with_data

if TYPE_CHECKING:
    from moe_placer.experiments.follow.follow_rows import FollowedRow

__all__ = ["draw_costs", "draw_moves"]

_WIDTH, _HEIGHT = 640, 300  # pixels


def draw_costs(of_way: Mapping[str, Sequence[FollowedRow]]) -> str:
    """Return an SVG: the cost of every way over windows, to that of what runs unchanged where it is known."""
    base = [row.value for row in of_way["never"]] if "never" in of_way else None
    values: list[Spec] = [
        {"way": way, "window": row.window, "cost": row.value / base[at] - 1 if base and base[at] else row.value}
        for way, own in of_way.items()
        for at, row in enumerate(own)
    ]
    title, format_ = ("cost, to never", "+.0%") if base else ("cost", ",.4~g")
    windows = [row.window for row in next(iter(of_way.values()))]
    x = alt.X("window:O").title("window").axis(values=windows, labelAngle=0)
    y = alt.Y("cost:Q").title(title).axis(format=format_).scale(zero=False)
    legend = alt.Legend(orient="right", symbolType="stroke")
    colour = alt.Color("way:N", legend=legend).title(None).sort(list(of_way))
    base_chart = alt.Chart().encode(x=x, y=y, color=colour)
    line, point = base_chart.mark_line(strokeWidth=2), base_chart.mark_point(size=40, filled=True, aria=False)
    chart = alt.layer(line, point, data=alt.NamedData("shown"), width=_WIDTH, height=_HEIGHT)
    return picture(with_data(specification(chart), values, "Cost of each way in every window"))


def draw_moves(of_way: Mapping[str, Sequence[FollowedRow]]) -> str:
    """Return an SVG: a point for each way, its moves to the right and its cost upwards."""
    values: list[Spec] = [
        {"way": way, "moves": sum(row.moves for row in own), "cost": sum(row.value for row in own)}
        for way, own in of_way.items()
    ]
    x = alt.X("moves:Q").title("moves in all windows (square root)").scale(type="sqrt").axis(format=",")
    y = alt.Y("cost:Q").title("cost, summed over windows").axis(format=",.4~g").scale(zero=False, padding=20)
    base = alt.Chart().encode(x=x, y=y)
    colour = alt.Color("way:N", legend=None).sort(list(of_way))
    point = base.mark_point(size=90, filled=True, opacity=1, aria=False).encode(color=colour)
    text = base.mark_text(align="left", dx=9, dy=-7, aria=False).encode(text="way:N")
    chart = alt.layer(point, text, data=alt.NamedData("shown"), width=_WIDTH, height=_HEIGHT)
    return picture(with_data(specification(chart), values, "Moves against cost of each way"))
