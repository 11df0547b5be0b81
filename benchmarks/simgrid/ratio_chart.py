"""The picture of a cross-check: our time over SimGrid's, by size of messages."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.simgrid.agreement import Rows, by, ratio
from benchmarks.simgrid.models import MODELS
from moe_placer.experiments.report.charts import config

__all__ = ["draw"]

_WIDTH, _HEIGHT = 240, 180  # pixels of a panel


def draw(rows: Rows) -> str:
    """Return an SVG: one panel per model of SimGrid, the median over all rows of a size, and the range of these."""
    import vl_convert

    values = []
    for (tokens,), group in by(rows, "tokens_per_gpu").items():
        for model in MODELS:
            ratios = np.array([ratio(row, model) for row in group])
            low, middle, high = float(ratios.min()), float(np.median(ratios)), float(ratios.max())
            values.append({"model": model, "tokens": tokens, "low": low, "median": middle, "high": high})
    picture: str = vl_convert.vegalite_to_svg(_chart(values))
    return picture


def _chart(values: list[dict[str, Any]]) -> dict[str, Any]:
    x = {
        "field": "tokens",
        "type": "quantitative",
        "title": "tokens per GPU (logarithmic)",
        "scale": {"type": "log"},
        "axis": {"values": sorted({value["tokens"] for value in values}), "format": ",~g", "grid": False},
    }
    y = {"type": "quantitative", "title": "our time / SimGrid's", "scale": {"zero": False}, "axis": {"format": ".2f"}}
    within = {
        "data": {"values": [{}]},
        "mark": {"type": "rect", "color": "#00946c", "opacity": 0.15},
        "encoding": {"y": {"datum": 0.9}, "y2": {"datum": 1.1}},
    }
    spread = {
        "mark": {"type": "area", "opacity": 0.25},
        "encoding": {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}},
    }
    middle = {
        "mark": {"type": "line", "point": True},
        "encoding": {"x": x, "y": {"field": "median", **y}},
    }
    panel = {"field": "model", "type": "nominal", "title": None}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": "Our time over SimGrid's by tokens per GPU, one panel per network model",
        "data": {"values": values},
        "facet": {**panel, "sort": list(MODELS), "header": {"labelFontSize": 13, "labelFontWeight": "bold"}},
        "columns": 3,
        "resolve": {"axis": {"x": "independent"}},
        "spec": {"width": _WIDTH, "height": _HEIGHT, "layer": [within, spread, middle]},
        "config": config("#1a1a1a", "#ffffff"),
    }
