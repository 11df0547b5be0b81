"""The flows of transfers in flight, as columns: what each has left, and which links it crosses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = ["InFlight"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class InFlight:
    """F flows, those of one transfer side by side, in the order of starts.

    Attributes
    ----------
    owner : int array [F]
        Transfer of each.
    begun : float array [F]
        When it started, µs.
    path : int array [F]
        Pair of nodes.
    sent, left : float array [F]
        Bytes in all, and not yet delivered; none is without.
    links : int array [L, F]
        Links that each crosses, those of NICs last.
    use : float array [L, F]
        Share of each that one byte/µs takes.
    """

    owner: Ints
    begun: Floats
    path: Ints
    sent: Floats
    left: Floats
    links: Ints
    use: Floats

    @classmethod
    def none(cls, height: int) -> InFlight:
        """Return no flows, of ``height`` links each."""
        ids, sizes = np.zeros(0, dtype=np.int64), np.zeros(0)
        return cls(ids, sizes, ids, sizes, sizes, np.zeros((height, 0), dtype=np.int64), np.zeros((height, 0)))

    def __len__(self) -> int:
        return len(self.owner)

    def joined(self, others: InFlight) -> InFlight:
        """Return these flows and then others, which started later."""
        if not len(others):
            return self
        if not len(self):
            return others
        return InFlight(
            np.concatenate([self.owner, others.owner]),
            np.concatenate([self.begun, others.begun]),
            np.concatenate([self.path, others.path]),
            np.concatenate([self.sent, others.sent]),
            np.concatenate([self.left, others.left]),
            np.concatenate([self.links, others.links], axis=1),
            np.concatenate([self.use, others.use], axis=1),
        )

    def having(self, left: Floats) -> InFlight:
        """Return these flows with what they have left; without those that have nothing."""
        going = left > 0
        if going.all():
            return replace(self, left=left)
        return InFlight(
            self.owner.compress(going),
            self.begun.compress(going),
            self.path.compress(going),
            self.sent.compress(going),
            left.compress(going),
            self.links.compress(going, axis=1),
            self.use.compress(going, axis=1),
        )

    @cached_property
    def first(self) -> Ints:
        """The first flow of each transfer."""
        new = np.ones(len(self.owner), dtype=bool)
        np.not_equal(self.owner[1:], self.owner[:-1], out=new[1:])
        return np.flatnonzero(new)

    @cached_property
    def transfers(self) -> list[int]:
        """Ids of the transfers that have flows, in the order of starts."""
        ids: list[int] = self.owner[self.first].tolist()
        return ids

    def slowest(self, lasts: Floats) -> Floats:
        """Return the largest of some numbers [F] in each transfer."""
        return np.maximum.reduceat(lasts, self.first) if len(lasts) else lasts

    def over(self, left: Floats) -> list[int]:
        """Return the transfers of which nothing is left [F]."""
        if not len(left) or (going := np.logical_or.reduceat(left > 0, self.first)).all():
            return []
        return [name for name, goes in zip(self.transfers, going.tolist(), strict=True) if not goes]
