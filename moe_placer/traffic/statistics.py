"""Measures of routing: how skewed loads are, and what one choice tells about another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["correlation", "layer_information", "log_spread", "pair_excess", "pair_lift", "skew"]

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.integer]


def skew(load: Floats) -> Floats:
    """Largest over mean load of each layer, from loads [layers, experts]."""
    return np.asarray(load.max(axis=1) / load.mean(axis=1))


def log_spread(load: Floats) -> Floats:
    """Return the standard deviation of ln load over each layer's experts; those without load are left out."""
    logs = np.log(np.where(load > 0, load, np.nan))
    return np.asarray(np.nanstd(logs, axis=1))


def correlation(loads: list[Floats]) -> float:
    """Mean over layers and pairs of domains of the Pearson correlation of expert loads [layers, experts]."""
    values = [
        np.corrcoef(a[layer], b[layer])[0, 1]
        for i, a in enumerate(loads)
        for b in loads[:i]
        for layer in range(len(a))
        if a[layer].std() > 0 and b[layer].std() > 0
    ]
    return float(np.mean(values)) if values else 0.0


def pair_excess(topk: Ids, experts: int) -> float:
    """Share of the pair mass away from independence: half the sum of ``|p(a, b) - q(a, b)|`` over pairs a != b.

    ``topk`` [tokens, k] is one layer's; p is the share of chosen pairs, q the product of loads without a = b.
    """
    pairs, independent = _pairs(topk, experts)
    return float(np.abs(pairs - independent).sum() / 2)


def pair_lift(topk: Ids, experts: int, percentile: float = 99.0) -> float:
    """Percentile over pairs of ``p(a, b) / q(a, b)``, as in `pair_excess`."""
    pairs, independent = _pairs(topk, experts)
    lift = pairs[independent > 0] / independent[independent > 0]
    return float(np.percentile(lift, percentile)) if len(lift) else 1.0


def _pairs(topk: Ids, experts: int) -> tuple[Floats, Floats]:
    chosen = np.zeros((len(topk), experts))
    np.put_along_axis(chosen, topk.astype(np.int64), 1.0, axis=1)
    together = chosen.T @ chosen
    np.fill_diagonal(together, 0.0)
    load = chosen.sum(axis=0)
    independent = np.outer(load, load)
    np.fill_diagonal(independent, 0.0)
    return together / max(1.0, together.sum()), independent / max(1.0, independent.sum())


def layer_information(first: Ids, second: Ids, experts: int) -> float:
    """Mutual information in bits between a token's expert of one layer and of the next, over all pairs.

    ``first`` and ``second`` are [tokens, k] of two layers.
    """
    joint = np.zeros((experts, experts))
    for a in first.T:
        for b in second.T:
            np.add.at(joint, (a.astype(np.int64), b.astype(np.int64)), 1.0)
    joint /= joint.sum()
    product = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    some = joint > 0
    return float((joint[some] * np.log2(joint[some] / product[some])).sum())
