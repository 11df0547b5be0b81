"""How flows that cross the same links share them: max-min fairness by progressive filling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

__all__ = ["Crossings", "max_min_rates", "share_out"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SAME = 1e-12  # relative: levels this close are one
_UNUSED = 1e-300  # instead of no use at all, so that what is free can be divided by it


@dataclass(frozen=True, eq=False)
class Crossings:
    """Which links each of P paths crosses, as columns of one height.

    Attributes
    ----------
    links : int array [L, P]
        Distinct links; ``count`` where a path has fewer than L.
    use : float array [L, P]
        Share of a link's capacity that one byte/µs on this path takes; 0 beyond the path's last link.
    count : int
        Distinct links. Links that every path loads alike are one.
    """

    links: Ints
    use: Floats
    count: int

    @classmethod
    def compile(cls, shares: sparse.csr_array, capacity: Floats, more: int = 0) -> Crossings:
        """Compile shares ``A[k, p]`` of path p that cross link k, and capacities [K] in bytes/µs.

        ``more`` links, the last of ``count``, are crossed by single flows only (`NicEnds`).
        """
        use = sparse.csr_array(sparse.diags_array(1.0 / capacity) @ shares)
        use.sort_indices()
        distinct: dict[bytes, int] = {}
        for k in range(len(capacity)):
            row = slice(use.indptr[k], use.indptr[k + 1])
            if len(use.data[row]):
                distinct.setdefault(use.indices[row].tobytes() + use.data[row].tobytes(), k)
        by_path = sparse.csc_array(use[list(distinct.values())])
        crossed = np.diff(by_path.indptr)
        width, paths = int(crossed.max(initial=0)), len(crossed)
        at = np.arange(width)[None, :] < crossed[:, None]
        links, padded = np.full((paths, width), len(distinct) + more, dtype=np.int64), np.zeros((paths, width))
        links[at], padded[at] = by_path.indices, by_path.data
        return cls(np.ascontiguousarray(links.T), np.ascontiguousarray(padded.T), len(distinct) + more)


def max_min_rates(crossings: Crossings, paths: Ints, ceilings: Floats | None = None) -> Floats:
    """Share all links max-min fairly: no flow could be faster but at the cost of one that is no faster.

    Progressive filling (Bertsekas and Gallager, Data Networks, 1992, section 6.5.2): all rates rise together, and
    those of a link's flows stop where it is full. A link that is full before every other link of its flows decides
    these whatever happens elsewhere, so all such links are settled in one pass.

    Parameters
    ----------
    crossings : Crossings
        Which links each path crosses, and how much of each.
    paths : int array [F]
        The path of each flow.
    ceilings : float array [F], optional
        Bytes/µs that a flow does not want more than.

    Returns
    -------
    float array [F]
        Bytes/µs of each flow.
    """
    return share_out(crossings.links[:, paths], crossings.use[:, paths], crossings.count, ceilings)


def share_out(
    links: Ints, use: Floats, count: int, ceilings: Floats | None = None, *, offered: Floats | None = None
) -> Floats:
    """Share links max-min fairly, given what each flow crosses itself (`max_min_rates`).

    Parameters
    ----------
    links : int array [L, F]
        What each flow crosses; ``count`` where it crosses fewer than L.
    use : float array [L, F]
        Share of each of these that one byte/µs takes.
    count : int
        Links.
    ceilings : float array [F], optional
        Bytes/µs that a flow does not want more than.
    offered : float array [F], optional
        Filled with what links left to each flow when its rate was settled: its rate, or more above its ceiling.
    """
    # Some dozens of flows, so the number of calls is what costs: one for each step, on indices instead of masks.
    size, most = count + 1, ceilings
    rates, free, flows = np.zeros(links.shape[1]), np.ones(size), np.arange(links.shape[1])
    each = np.ones(size, dtype=bool)
    each[-1] = False
    while True:
        full = np.bincount(links.ravel(), use.ravel(), size)
        np.divide(free, np.maximum(full, _UNUSED, out=full), out=full)  # the level at which each link is full
        at = full.take(links)
        left = level = np.minimum.reduce(at, axis=0, initial=np.inf)
        if most is not None:
            level = np.minimum(left, most)
        decides = each.copy()
        decides[links[at > level * (1 + _SAME)]] = False
        settled = np.logical_or.reduce(decides.take(links), axis=0)
        if most is not None:
            settled |= level >= most
        now = settled.nonzero()[0]
        if len(now) == len(flows):
            if offered is not None:
                offered[flows] = left
            rates[flows] = level
            return rates
        if offered is not None:
            offered[flows.take(now)] = left.take(now)
        level = level.take(now)
        rates[flows.take(now)] = level
        taken = use.take(now, axis=1)
        taken *= level
        free -= np.bincount(links.take(now, axis=1).ravel(), taken.ravel(), size)
        np.maximum(free, 0.0, out=free)
        going = np.logical_not(settled, out=settled).nonzero()[0]
        flows, links, use = flows.take(going), links.take(going, axis=1), use.take(going, axis=1)
        most = most if most is None else most.take(going)
