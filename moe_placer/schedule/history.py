"""What every link has carried, over time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["History"]

Floats = npt.NDArray[np.float64]

_NUMBERS = 4_000_000  # kept at most, so that memory is bounded: 32 MB
_FEWEST = 2_000  # moments, however many links there are


class History:
    """Bytes carried since the start, at the moments at which rates changed.

    What a link carries between two of them grows evenly, so that every mean utilization is exact. When there are too
    many to keep (62,500 for 64 links), those that are close together are merged: what lies between two of them is then
    a mean, and no byte is lost.
    """

    def __init__(self, links: int) -> None:
        self._moments: list[float] = [0.0]
        self._carried: list[Floats] = [np.zeros(links)]
        self._most = max(_FEWEST, _NUMBERS // max(1, links))
        self._apart = 0.0

    def note(self, now: float, carried: Floats) -> None:
        """Note what each link has carried until ``now`` (µs), which is not before what was noted last."""
        if len(self._moments) > 1 and now - self._moments[-2] <= self._apart:
            self._moments[-1], self._carried[-1] = now, carried
            return
        self._moments.append(now)
        self._carried.append(carried)
        if len(self._moments) > self._most:
            self._thin_out()

    def _thin_out(self) -> None:
        self._apart = 4 * self._moments[-1] / self._most
        moments, carried = self._moments, self._carried
        self._moments, self._carried = moments[:1], carried[:1]
        for now, bytes_ in zip(moments[1:], carried[1:], strict=True):
            self.note(now, bytes_)

    def utilization(self, capacity: Floats, edges: Floats) -> Floats:
        """Return the share of each link's capacity in use between neighbouring edges.

        Parameters
        ----------
        capacity : float array [K]
            Bytes/µs.
        edges : float array [B + 1]
            µs, ascending.

        Returns
        -------
        float array [K, B]
        """
        carried = np.array(self._carried)
        at_edges = np.array([np.interp(edges, self._moments, carried[:, k]) for k in range(carried.shape[1])])
        return np.asarray(np.diff(at_edges.reshape(-1, len(edges))) / np.diff(edges) / capacity[:, None])
