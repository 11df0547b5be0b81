"""How flows that cross the same links share them: max-min fairness by progressive filling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

__all__ = ["Crossings", "max_min_rates"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SAME = 1e-12  # relative: levels this close are one


@dataclass(frozen=True, eq=False)
class Crossings:
    """Which links each of P paths crosses, as rows of one width.

    Attributes
    ----------
    links : int array [P, L]
        Distinct links; ``count`` where a path has fewer than L.
    use : float array [P, L]
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

        ``more`` links, the last of ``count``, are crossed by single flows only (`max_min_rates`).
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
        return cls(links, padded, len(distinct) + more)


def max_min_rates(
    crossings: Crossings, paths: Ints, ceilings: Floats | None = None, own: tuple[Ints, Floats] | None = None
) -> Floats:
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
    own : tuple of array [F, E], optional
        Further links that each flow crosses beside those of its path, and its ``use`` of them.

    Returns
    -------
    float array [F]
        Bytes/µs of each flow.
    """
    rates = np.zeros(len(paths))
    flows = np.arange(len(paths))
    most = np.full(len(paths), np.inf) if ceilings is None else ceilings
    links, use = crossings.links[paths], crossings.use[paths]
    if own is not None:
        links, use = np.hstack([links, own[0]]), np.hstack([use, own[1]])
    width, size = links.shape[1], crossings.count + 1
    free = np.ones(size)
    while len(flows):
        load = np.bincount(links.ravel(), use.ravel(), size)
        full = np.full(size, np.inf)  # the level at which each link is full
        np.divide(free, load, out=full, where=load > 0)
        level = np.minimum(full[links].min(axis=1), most)
        lowest = np.full(size, np.inf)
        np.minimum.at(lowest, links.ravel(), level.repeat(width))
        decides = lowest >= full * (1 - _SAME)
        decides[-1] = False
        settled = decides[links].any(axis=1) | (level >= most)
        rates[flows[settled]] = level[settled]
        free -= np.bincount(links[settled].ravel(), (use[settled] * level[settled, None]).ravel(), size)
        np.maximum(free, 0.0, out=free)
        going = ~settled
        flows, links, use, most = flows[going], links[going], use[going], most[going]
    return rates
