"""Measures of routing that synthetic tokens are calibrated to: what one choice tells about another.

What real models show is of the recordings that `moe_placer.traffic.statistics` names. All but `correlation` need many
more tokens than pairs of experts: chance makes rare pairs look dependent, so that small samples overstate them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.integer]


def correlation(loads: list[Floats]) -> float:
    """Mean over layers and pairs of domains of the Pearson correlation of expert loads [layers, experts].

    Layers where all experts are alike have none and are left out. Real: 0.06 (DeepSeekMoE), 0.21 (OLMoE).
    """
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

    ``topk`` [tokens, k] is one layer's; p is the share of chosen pairs, q the product of loads without a = b, scaled to
    sum to 1. Real: 0.35 to 0.46.
    """
    pairs, independent = _pairs(topk, experts)
    return float(np.abs(pairs - independent).sum() / 2)


def pair_lift(topk: Ids, experts: int, percentile: float = 99.0) -> float:
    """Percentile over pairs of ``p(a, b) / q(a, b)``, as in `pair_excess`; real, at 99: 5 to 9."""
    pairs, independent = _pairs(topk, experts)
    lift = pairs[independent > 0] / independent[independent > 0]
    return float(np.percentile(lift, percentile)) if len(lift) else 1.0


def layer_information(first: Ids, second: Ids, experts: int) -> float:
    """Mutual information in bits between a token's expert of one layer and of the next, over all pairs.

    ``first`` and ``second`` are [tokens, k] of two layers; with p(a, b) the share of the k * k pairs of all tokens, it
    is the sum of ``p(a, b) log2(p(a, b) / (p(a) p(b)))``. Real: 0.5 to 0.9.
    """
    joint = _chosen(first, experts).T @ _chosen(second, experts)
    joint /= joint.sum()
    product = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    some = joint > 0
    return float((joint[some] * np.log2(joint[some] / product[some])).sum())


def _pairs(topk: Ids, experts: int) -> tuple[Floats, Floats]:
    chosen = _chosen(topk, experts)
    together = chosen.T @ chosen
    np.fill_diagonal(together, 0.0)
    load = chosen.sum(axis=0)
    independent = np.outer(load, load)
    np.fill_diagonal(independent, 0.0)
    return together / max(1.0, together.sum()), independent / max(1.0, independent.sum())


def _chosen(topk: Ids, experts: int) -> Floats:
    """Mark each token's experts with a 1: [tokens, experts]; products of such arrays count exactly."""
    chosen = np.zeros((len(topk), experts))
    np.put_along_axis(chosen, topk.astype(np.int64), 1.0, axis=1)
    return chosen
