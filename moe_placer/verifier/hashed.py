"""How full the fullest of a leaf's uplinks is where flows keep the one of their hash, counted path by path.

The probability that none of ``a + b`` paths has more than m of n flows is, over the number i of flows on the first a,
the sum of ``Binomial(n, i; a / (a + b))`` times that of a paths with i flows and of b paths with n - i.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["EXACT_FLOWS", "fullest_path"]

Floats = npt.NDArray[np.float64]

EXACT_FLOWS = 512  # with more flows docs/fabrics.md counts paths as independent


@cache
def fullest_path(flows: int, paths: int) -> float:
    """Return the expected number of flows on the fullest of ``paths`` alike, over the mean; 1 where nothing flows."""
    if flows < 1 or paths == 1:
        return 1.0
    mean = flows / paths
    # More than this has a probability below 1e-20, by Chernoff's bound.
    most = min(flows, math.ceil(mean + 12 * math.sqrt(mean * (1 + math.log(paths))) + 40))
    least = math.ceil(mean)  # the fullest has as many in any case
    if flows <= EXACT_FLOWS:
        none_above = _none_above(flows, paths, np.arange(least, most + 1), flows)[:, flows]
    else:
        none_above = _poisson_sums(mean, most)[least:] ** paths
    return (least + float((1 - np.minimum(none_above, 1.0)).sum())) / mean


def _none_above(flows: int, paths: int, limits: npt.NDArray[np.int64], fewest: int) -> Floats:
    """Probability that no path has more flows than a limit, by number of flows [limits, flows + 1].

    Parameters
    ----------
    flows : int
        The largest number of flows.
    paths : int
    limits : int array
    fewest : int
        With fewer flows than this nothing is computed, and 0 is returned.
    """
    if paths == 1:
        return np.asarray(np.arange(flows + 1)[None, :] <= limits[:, None], dtype=np.float64)
    some = paths // 2
    first = _none_above(flows, some, limits, 0)
    others = first if 2 * some == paths else _none_above(flows, paths - some, limits, 0)
    found, chance = np.zeros_like(first), some / paths
    binomial = np.zeros(flows + 1)
    binomial[0] = 1.0
    for n in range(flows + 1):
        if n:
            binomial[1 : n + 1] = binomial[1 : n + 1] * (1 - chance) + binomial[:n] * chance
            binomial[0] *= 1 - chance
        if n < fewest:
            continue
        found[:, n] = (first[:, : n + 1] * others[:, n::-1]) @ binomial[: n + 1]
    return found


def _poisson_sums(mean: float, most: int) -> Floats:
    """Probability that a Poisson number is at most m, for m from 0 to ``most`` [most + 1]."""
    log_mean = math.log(mean)
    each = np.array([math.exp(m * log_mean - mean - math.lgamma(m + 1)) for m in range(most + 1)])
    return np.cumsum(each)
