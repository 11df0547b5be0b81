"""The flows of transfers in flight, as columns: what each has left, and which links it crosses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ROUNDING", "InFlight"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ROUNDING = 1e-9  # a flow has ended when no more than this share of its bytes is left


@dataclass(slots=True, eq=False)
class InFlight:
    """F flows, those of one transfer side by side, in the order of starts.

    They are some dozens, and looked at for every span: they lie in two tables, so that few calls leave some out.

    Attributes
    ----------
    numbers : int array [2 + L, F]
        Transfer of each, its pair of nodes, and the links that it crosses, those of NICs last.
    amounts : float array [2 + L, F]
        When each started, µs; the bytes that it has ended with; and of each of its links the share that one byte/µs
        takes.
    left : float array [F]
        Bytes not yet delivered; none is without.
    first : int array [T]
        The first flow of each transfer that has flows.
    transfers : list of int
        Ids of these, in the order of starts.
    begun : float array [T]
        When each of these started, µs.
    """

    numbers: Ints
    amounts: Floats
    left: Floats
    first: Ints
    transfers: list[int]
    begun: Floats

    @classmethod
    def none(cls, height: int) -> InFlight:
        """Return no flows, of ``height`` links each."""
        return cls.of_columns(np.zeros((2 + height, 0), dtype=np.int64), np.zeros((2 + height, 0)), np.zeros(0))

    @classmethod
    def of_columns(cls, numbers: Ints, amounts: Floats, left: Floats) -> InFlight:
        """Return flows of one or several transfers, and find out where each of these begins."""
        owner = numbers[0]
        new = np.empty(len(owner), dtype=bool)
        new[:1] = True
        np.not_equal(owner[1:], owner[:-1], out=new[1:])
        first = new.nonzero()[0]
        return cls(numbers, amounts, left, first, owner.take(first).tolist(), amounts[0].take(first))

    @classmethod
    def of_transfer(cls, transfer: int, begun: float, path: Ints, sent: Floats, links: Ints, use: Floats) -> InFlight:
        """Return the flows of a transfer that starts.

        Parameters
        ----------
        transfer : int
        begun : float
            µs.
        path : int array [F]
            Pair of nodes of each flow.
        sent : float array [F]
            Bytes, above 0.
        links : int array [L, F]
            What each flow crosses.
        use : float array [L, F]
            Share of each of these that one byte/µs takes.
        """
        shape = 2 + len(links), len(path)
        numbers, amounts = np.empty(shape, dtype=np.int64), np.empty(shape)
        numbers[0], numbers[1], numbers[2:] = transfer, path, links
        amounts[0], amounts[1], amounts[2:] = begun, ROUNDING * sent, use
        return cls.of_columns(numbers, amounts, sent)

    def __len__(self) -> int:
        return len(self.left)

    @property
    def owner(self) -> Ints:
        """Transfer of each flow [F]."""
        owner: Ints = self.numbers[0]
        return owner

    @property
    def path(self) -> Ints:
        """Pair of nodes of each flow [F]."""
        path: Ints = self.numbers[1]
        return path

    @property
    def links(self) -> Ints:
        """Links that each flow crosses, those of NICs last [L, F]."""
        return self.numbers[2:]

    @property
    def use(self) -> Floats:
        """Share of each of these links that one byte/µs takes [L, F]."""
        return self.amounts[2:]

    def joined(self, *others: InFlight) -> InFlight:
        """Return these flows and then others, which started later."""
        some = [flows for flows in (self, *others) if len(flows)]
        if len(some) < 2:
            return some[0] if some else self
        return self.of_columns(
            np.concatenate([flows.numbers for flows in some], axis=1),
            np.concatenate([flows.amounts for flows in some], axis=1),
            np.concatenate([flows.left for flows in some]),
        )

    def with_left(self, left: Floats) -> InFlight:
        """Return these flows with what they have left, none of them nothing."""
        return InFlight(self.numbers, self.amounts, left, self.first, self.transfers, self.begun)

    def having(self, left: Floats) -> InFlight:
        """Return these flows with what they have left; without those that have nothing."""
        going = left.nonzero()[0]
        if len(going) == len(left):
            return self.with_left(left)
        return self.of_columns(self.numbers.take(going, axis=1), self.amounts.take(going, axis=1), left.take(going))

    def slowest(self, lasts: Floats) -> Floats:
        """Return the largest of some numbers [F] in each transfer."""
        return np.maximum.reduceat(lasts, self.first) if len(lasts) else lasts

    def over(self, left: Floats) -> list[int]:
        """Return the transfers of which nothing is left [F]."""
        if np.count_nonzero(left) == len(left):
            return []
        most = self.slowest(left).tolist()
        return [name for name, rest in zip(self.transfers, most, strict=True) if not rest]
