"""What every trade of two items does to coverage, kept up to date as items move.

An item is a replica of an expert on a place. Only what the two places of a trade hold changes with it, so few rows of
these tables are computed anew: with one replica of each expert in a view by bit sets over tokens (a union and a count
of bits), with replicas that tokens draw from by products over tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.problem.coverage import Coverage
from moe_placer.traffic.token_sets import TokenSets

__all__ = ["BitTables", "DrawnTables", "Tables", "sample", "tables"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]

_BLOCK = 1_000_000  # words in one temporary array
_MOST_KEPT = 500_000  # numbers in figures of places that are kept


def sample(sets: TokenSets, most: int) -> tuple[Ints, Ints]:
    """Return the class and the file of at most ``most`` tokens of each file, evenly spaced over its sorted sets."""
    classes, files = [], []
    for file, tokens in enumerate(sets.tokens.tolist()):
        mine = np.flatnonzero(sets.file == file)
        last = np.cumsum(sets.count[mine])
        wanted = np.arange(tokens) if tokens <= most else (np.arange(most) + 0.5) * tokens / most
        classes.append(mine[np.searchsorted(last, wanted, side="right")])
        files.append(np.full(len(wanted), file, dtype=np.int64))
    return np.concatenate(classes), np.concatenate(files)


@dataclass(frozen=True, eq=False)
class _Figures:
    """What the tables say of one place in one view; it depends on the experts alone that the place holds.

    Attributes
    ----------
    cov : float array [files]
    added : float array [files, experts]
    dropped : float array [files, items of the place]
    swapped : float array [files, items of the place, experts]
    effort : int
        Words or numbers looked at.
    """

    cov: Floats
    added: Floats
    dropped: Floats
    swapped: Floats
    effort: int


class Tables(ABC):
    """Coverage of a placement, and of its neighbours, on a sample of tokens.

    Attributes
    ----------
    place : int array [items]
        Where each item is.
    view : int array [items]
        Whose tokens see it.
    cov : float array [views, files, places]
        Share of a file's tokens that reach a place.
    dropped : float array [files, items]
        Coverage of an item's place in its view without the item.
    swapped : float array [files, items, experts]
        The same with a replica of another expert in its stead.
    added : float array [views, files, experts, places]
        Coverage of a place with a replica of an expert beside what it holds.
    evaluated : int
        Words or numbers looked at so far: deterministic effort.
    """

    def __init__(self, expert: Ints, view: Ints, views: int, files: int, experts: int, places: int) -> None:
        self.expert, self.view, self.places = expert, view, places
        self.cov = np.zeros((views, files, places))
        self.dropped = np.zeros((files, len(expert)))
        self.swapped = np.zeros((files, len(expert), experts))
        self.added = np.zeros((views, files, experts, places))
        self.evaluated = 0
        self.place = np.zeros(len(expert), dtype=np.int64)
        self._kept: dict[bytes, _Figures] = {}  # by the experts held: a search returns to what it had
        self._kept_numbers = 0

    def reset(self, place: Ints) -> None:
        """Start again from another placement; what did not change is kept."""
        known = bool(self.evaluated)
        before, self.place = self.place, place.copy()
        changed = {(int(v), int(p)) for i in np.flatnonzero(before != place) for v, p in self._sides(i, before)}
        everything = {(v, p) for v in range(len(self.cov)) for p in range(self.places)}
        for view, where in sorted(changed if known else everything):
            self._refresh(view, where)

    def _sides(self, item: np.intp, before: Ints) -> list[tuple[int, int]]:
        return [(self.view[item], before[item]), (self.view[item], self.place[item])]

    def apply(self, item: int, partner: int, to: int) -> None:
        """Put ``item`` on ``to``; ``partner`` takes its place unless it is -1."""
        here = int(self.place[item])
        self.place[item] = to
        changed = {(int(self.view[item]), here), (int(self.view[item]), to)}
        if partner >= 0:
            self.place[partner] = here
            changed |= {(int(self.view[partner]), here), (int(self.view[partner]), to)}
        for view, where in sorted(changed):
            self._refresh(view, where)

    def _refresh(self, view: int, where: int) -> None:
        """Compute what concerns one place in one view anew, unless it is known of the experts that it holds now."""
        here = np.flatnonzero((self.place == where) & (self.view == view))
        held = self.expert[here]
        found = self._kept.get(held.tobytes())
        if found is None:
            found = self._kept[held.tobytes()] = self._figures(held)
            self._kept_numbers += found.swapped.size + found.added.size
            while self._kept_numbers > _MOST_KEPT and len(self._kept) > 1:
                oldest = self._kept.pop(next(iter(self._kept)))
                self._kept_numbers -= oldest.swapped.size + oldest.added.size
        self.cov[view, :, where] = found.cov
        self.added[view, :, :, where] = found.added
        self.dropped[:, here] = found.dropped
        self.swapped[:, here] = found.swapped
        self.evaluated += found.effort  # known or not, so that the same effort ends at the same placement

    @abstractmethod
    def _figures(self, held: Ints) -> _Figures:
        """Compute the figures of a place that holds these experts, in the order of items."""


class BitTables(Tables):
    """Tables where a view sees one replica of every expert: unions of bit sets, one bit per token."""

    def __init__(self, coverage: Coverage, expert: Ints, view: Ints, most: int) -> None:
        sets, sending = coverage.sets, coverage.sending
        super().__init__(expert, view, sending.views, len(sets.tokens), sets.experts, sending.nodes)
        classes, files = sample(sets, most)
        self._bits, self._first = _bit_sets(sets, classes, files)
        self._tokens = np.bincount(files, minlength=len(sets.tokens)).astype(np.float64)

    def _figures(self, held: Ints) -> _Figures:
        mine = self._bits[held]
        whole = np.bitwise_or.reduce(mine, axis=0) if len(held) else np.zeros_like(self._bits[0])
        cov, added = self._share(whole[None])[:, 0], self._share(whole | self._bits)
        swapped = np.zeros((len(self._tokens), len(held), len(self._bits)))
        if not len(held):
            return _Figures(cov, added, np.zeros((len(self._tokens), 0)), swapped, 0)
        others = _unions_of_others(mine)
        step = max(1, _BLOCK // self._bits.size)
        for first in range(0, len(held), step):
            some = slice(first, first + step)
            swapped[:, some] = self._share(others[some, None] | self._bits)
        return _Figures(cov, added, self._share(others), swapped, self._bits.size * (1 + len(held)))

    def _share(self, unions: Bits) -> Floats:
        """Share of each file's tokens in unions [..., words], as [files, ...]."""
        counted = np.bitwise_count(unions)
        parts = zip(self._first[:-1], self._first[1:], strict=True)
        total = np.stack([counted[..., a:b].sum(axis=-1, dtype=np.int64) for a, b in parts])
        return np.asarray(total / self._tokens.reshape(-1, *[1] * (unions.ndim - 1)))


class DrawnTables(Tables):
    """Tables where a token draws one of an expert's replicas: what misses a place is a product over experts."""

    def __init__(self, coverage: Coverage, expert: Ints, view: Ints, most: int) -> None:
        sets, sending = coverage.sets, coverage.sending
        super().__init__(expert, view, 1, len(sets.tokens), sets.experts, sending.nodes)
        classes, files = sample(sets, most)
        self._replicas = np.bincount(expert, minlength=sets.experts)
        self._choice = sets.choice[classes].astype(np.int64)
        rows = np.repeat(np.arange(len(classes)), self._choice.shape[1])
        chosen = (np.ones(len(rows)), (rows, self._choice.ravel()))
        whole = sparse.csr_array(chosen, shape=(len(classes), sets.experts))
        self._first = np.searchsorted(files, np.arange(len(sets.tokens) + 1))
        self._chosen = [whole[a:b].T.tocsr() for a, b in zip(self._first[:-1], self._first[1:], strict=True)]
        self._tokens = np.diff(self._first).astype(np.float64)

    def _figures(self, held: Ints) -> _Figures:
        count = np.bincount(held, minlength=len(self._replicas))
        present = np.unique(held)
        # One column for what is held, then one for each expert here with one replica less.
        amounts = np.repeat(count[:, None], 1 + len(present), axis=1)
        amounts[present, 1 + np.arange(len(present))] -= 1
        missed = np.ones((len(self._choice), 1 + len(present)))
        factor = 1.0 - amounts / self._replicas[:, None]
        for column in self._choice.T:
            missed *= factor[column]
        ratio = _one_more(amounts, self._replicas)
        position = 1 + np.searchsorted(present, held)
        files, experts = len(self._chosen), len(self._replicas)
        cov, added, dropped, swapped = (
            np.zeros((files, *shape)) for shape in ((), (experts,), (len(held),), (len(held), experts))
        )
        for file, chosen in enumerate(self._chosen):
            part = missed[self._first[file] : self._first[file + 1]] / self._tokens[file]
            covered = 1.0 - part.sum(axis=0)
            gained = covered[None, :] + (1.0 - ratio) * (chosen @ part)
            cov[file], added[file] = covered[0], gained[:, 0]
            dropped[file], swapped[file] = covered[position], gained[:, position].T
        return _Figures(cov, added, dropped, swapped, missed.size * (1 + self._choice.shape[1]))


def tables(coverage: Coverage, expert: Ints, replica: Ints, most: int) -> Tables:
    """Return tables for items; ``most`` tokens of each file are looked at.

    Parameters
    ----------
    coverage : Coverage
        What the layer sends: the tokens of each file, and who counts them.
    expert : int array
        Expert of each item [items].
    replica : int array
        Which replica each item is [items].
    most : int
        Tokens of each file that are looked at.
    """
    view = np.zeros_like(replica) if coverage.sending.drawn else replica
    if coverage.sending.drawn and np.bincount(expert).max() > 1:
        return DrawnTables(coverage, expert, view, most)
    return BitTables(coverage, expert, view, most)


def _bit_sets(sets: TokenSets, classes: Ints, files: Ints) -> tuple[Bits, Ints]:
    """Set a bit for every expert and token that chooses it [experts, words]; files begin at whole words."""
    parts, first = [], [0]
    for file in range(len(sets.tokens)):
        mine = classes[files == file]
        words = -(-len(mine) // 64)
        chosen = np.zeros((sets.experts, words * 64), dtype=np.uint8)
        choice = sets.choice[mine].astype(np.int64)
        chosen[choice, np.arange(len(mine))[:, None]] = 1
        parts.append(np.packbits(chosen, axis=1).view(np.uint64))
        first.append(first[-1] + words)
    return np.ascontiguousarray(np.concatenate(parts, axis=1)), np.array(first)


def _unions_of_others(sets: Bits) -> Bits:
    """Return for each row the union of all other rows."""
    before, after = np.zeros_like(sets), np.zeros_like(sets)
    np.bitwise_or.accumulate(sets[:-1], axis=0, out=before[1:])
    after[:-1] = np.bitwise_or.accumulate(sets[:0:-1], axis=0)[::-1]
    return before | after


def _one_more(amounts: Ints, replicas: Ints) -> Floats:
    """Factor of what misses a place if one more replica of an expert comes to it [experts, columns]."""
    left = replicas[:, None] - amounts
    return np.where(left > 0, (left - 1) / np.maximum(left, 1), 1.0)
