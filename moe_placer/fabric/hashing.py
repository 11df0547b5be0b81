"""How full the fullest of several equal paths is where every flow keeps the one that its hash gives it (ECMP)."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["fullest_over_mean"]

Floats = npt.NDArray[np.float64]

_EXACT = 512  # flows up to which the distribution is exact; with more, paths count as independent


@cache
def fullest_over_mean(flows: int, paths: int) -> float:
    """Return the expected load of the fullest path over the mean, for equal flows that each take a path at random.

    That the fullest has at most m flows is the probability that so many independent Poisson numbers are at most m,
    given their sum (Raab and Steger, "Balls into Bins", 1998); with many flows the condition is left out, which changes
    the result by less than 0.5%.
    """
    if paths == 1 or flows < 1:
        return 1.0
    from scipy.special import pdtr  # here, for it is slow to import

    mean = flows / paths
    least = math.ceil(mean)  # what the fullest has in any case
    most = min(flows, math.ceil(mean + 12 * math.sqrt(mean * math.log(paths)) + 40))
    counts = np.arange(least, most + 1)
    if flows <= _EXACT:
        at_most = np.array([_exact(flows, paths, m) for m in counts.tolist()])
    else:
        at_most = np.asarray(pdtr(counts, mean)) ** paths
    # The mean of a whole number is the sum over m of the probability that it is above m.
    return (least + float((1 - np.minimum(1.0, at_most)).sum())) / mean


def _exact(flows: int, paths: int, most: int) -> float:
    """Probability that no path has more than so many flows."""
    if most * paths < flows:
        return 0.0
    from scipy.special import gammaln  # here, for it is slow to import

    mean = flows / paths
    counts = np.arange(min(most, flows) + 1)
    one: Floats = np.exp(counts * math.log(mean) - mean - gammaln(counts + 1.0))
    total = np.ones(1)
    power = paths
    while power:  # the distribution of the sum, by squaring
        if power & 1:
            total = np.convolve(total, one)[: flows + 1]
        power >>= 1
        if power:
            one = np.convolve(one, one)[: flows + 1]
    if len(total) <= flows:
        return 0.0
    return float(total[flows] / math.exp(flows * math.log(flows) - flows - float(gammaln(flows + 1.0))))
