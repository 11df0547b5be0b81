"""Statistics of a cross-check's rows: our times over SimGrid's, and how alike both rank placements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.simgrid.models import MODELS

__all__ = ["Agreement", "Ranking", "agreement", "beside", "by", "excess", "predicted_us", "ranking", "ratio"]

Row = dict[str, Any]
Rows = Sequence[Row]


@dataclass(frozen=True)
class Agreement:
    """Our time over SimGrid's, minus 1, of some rows.

    Attributes
    ----------
    median, lowest, highest : float
    within : float
        Share of rows within 10%.
    """

    median: float
    lowest: float
    highest: float
    within: float


@dataclass(frozen=True)
class Ranking:
    """How alike two ways rank the placements of an instance (Spearman's rank correlation).

    Attributes
    ----------
    placements : int
    steps : float
        By their sums over layers.
    worst_layer, median_layer : float
        Layer by layer.
    """

    placements: int
    steps: float
    worst_layer: float
    median_layer: float


def predicted_us(row: Row, model: str) -> float:
    """Our time: the network's, and the latency of the longest path, which the schedule adds to it."""
    return float(row["network_us"] + row["hops"] * MODELS[model].latency_us)


def ratio(row: Row, model: str) -> float:
    """Our time over SimGrid's."""
    return predicted_us(row, model) / float(row["simgrid_us"][model])


def beside(row: Row, model: str) -> list[float]:
    """Our times of a dispatch and of a combine beside it, over SimGrid's."""
    latency, both = row["hops"] * MODELS[model].latency_us, row["both_us"]
    return [(ours + latency) / theirs for ours, theirs in zip(both["network"], both[model], strict=True)]


def agreement(rows: Rows, model: str) -> Agreement:
    """Compare the times of rows."""
    off = np.array([ratio(row, model) - 1 for row in rows])
    return Agreement(float(np.median(off)), float(off.min()), float(off.max()), float((np.abs(off) <= 0.1).mean()))


def excess(rows: Rows) -> npt.NDArray[np.float64]:
    """Return by how much each row's time exceeds what its worst link needs, as a share of that."""
    return np.array([row["network_us"] / row["bottleneck_us"] - 1 for row in rows])


def ranking(rows: Rows, ours: str, theirs: str) -> Ranking:
    """Compare how two times rank placements.

    Parameters
    ----------
    rows : sequence of rows
        Of one instance and one size.
    ours, theirs : str
        ``network``, ``bottleneck`` (what placements are optimised for), or one of SimGrid's models.
    """
    layers = sorted({row["layer"] for row in rows})
    placements = sorted({(row["solver"], row["seed"]) for row in rows})
    of = {(row["solver"], row["seed"], row["layer"]): row for row in rows}
    a, b = (
        np.array([[_time(of[*placement, layer], what) for layer in layers] for placement in placements])
        for what in (ours, theirs)
    )
    by_layer = [_spearman(a[:, column], b[:, column]) for column in range(len(layers))]
    return Ranking(len(placements), _spearman(a.sum(axis=1), b.sum(axis=1)), min(by_layer), float(np.median(by_layer)))


def by(rows: Rows, *fields: str) -> dict[tuple[Any, ...], list[Row]]:
    """Group rows by fields, in order of these."""

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row[field] for field in fields)

    return {found: list(group) for found, group in groupby(sorted(rows, key=key), key)}


def _time(row: Row, what: str) -> float:
    if what in {"network", "bottleneck"}:
        return float(row[f"{what}_us"])
    return float(row["simgrid_us"][what])


def _spearman(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    from scipy.stats import spearmanr  # here, for it takes a second to import

    # Times that differ by rounding alone are ties.
    rounded = [[float(f"{value:.5g}") for value in values] for values in (a, b)]
    return float(spearmanr(*rounded).statistic)
