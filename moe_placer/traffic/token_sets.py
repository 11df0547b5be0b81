"""The sets of experts that tokens choose, where recordings have every token's choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.traffic.stored_choices import in_blocks
from moe_placer.workers import available_memory

__all__ = ["TokenSets", "token_sets", "token_sets_of_layers"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Ids = npt.NDArray[np.integer]
Words = npt.NDArray[np.uint64]

_WORD_BITS = 64
_PENDING = 200_000  # tokens of a layer that wait until they are sorted, beyond which as many as there are sets
_MOST_EXCHANGED = 16  # ids of a token that are sorted by exchanging columns; more are sorted token by token
_SURELY_SMALL_BYTES = 256_000_000


@dataclass(frozen=True, eq=False)
class TokenSets:
    """The sets of experts that one layer's tokens choose, each once per file.

    Attributes
    ----------
    choice : int array [classes, top_k]
        Experts, in ascending order.
    file : int array [classes]
        The recording that the class is from; classes are in its order.
    count : int array [classes]
        Tokens of the recording with this set.
    tokens : int array [files]
        Tokens of each recording.
    experts : int
        Of the layer, chosen or not.
    """

    choice: Ids
    file: Ints
    count: Ints
    tokens: Ints
    experts: int

    @cached_property
    def weight(self) -> Floats:
        """Share of its file's tokens that each class is [classes]."""
        return np.asarray(self.count / self.tokens[self.file])


def token_sets(traffic: Traffic, index: int, experts: int) -> TokenSets:
    """Compress the index-th MoE layer of recordings that have every token's choice."""
    return token_sets_of_layers(traffic, [index], experts)[0]


def token_sets_of_layers(traffic: Traffic, layers: Sequence[int], experts: int) -> tuple[TokenSets, ...]:
    """Compress some MoE layers of recordings that have every token's choice, in one pass over these.

    It takes memory for the different sets, and for a block of tokens.

    Parameters
    ----------
    traffic : Traffic
    layers : sequence of int
        Counted among MoE layers.
    experts : int
        Of a layer.

    Raises
    ------
    InputError
        The sets would take more than half of the memory that is left.
    """
    left = _Left(len(layers))
    found = [_compress(recording, layers, experts, left) for recording in traffic.recordings]
    tokens = np.array([0 if one.topk is None else len(one.topk) for one in traffic.recordings], dtype=np.int64)
    made = []
    for at in range(len(layers)):
        parts = [distinct[at] for distinct in found]
        choice = np.concatenate([part.choice() for part in parts])
        file = np.repeat(np.arange(len(parts)), [len(part.count) for part in parts])
        made.append(TokenSets(choice, file, np.concatenate([part.count for part in parts]), tokens, experts))
        for distinct in found:
            distinct[at] = _NONE
    return tuple(made)


class _Left:
    """A budget of memory for sets: half of what was free when it was first asked for."""

    def __init__(self, layers: int) -> None:
        self._layers, self._taken, self._classes = layers, 0, 0
        self._most: float | None = None

    def take(self, classes: int, each: int) -> None:
        """Go on by so many sets of so many bytes, or refuse them."""
        self._taken, self._classes = self._taken + classes * each, self._classes + classes
        if self._taken < _SURELY_SMALL_BYTES:
            return
        if self._most is None:
            self._most = available_memory() / 2
        if self._taken > self._most:
            found = f"{self._classes:,} different sets of experts in {self._layers} MoE layers, and more"
            expected = (
                f"sets of at most {self._most / 1e9:,.1f} GB, half of the memory that is left here; "
                "traffic.sample_tokens keeps so many tokens of each recording, drawn with equal chances"
            )
            raise InputError(Mistake(found, expected, "traffic.files"))


class _Distinct:
    """The different sets of one layer and recording, as numbers in ascending order: experts as digits.

    Parameters
    ----------
    experts, top_k : int
        Of a layer, and of a token in it.
    dtype : dtype
        Of ids.
    """

    def __init__(self, experts: int, top_k: int, dtype: np.dtype[np.integer]) -> None:
        self._bits = max(1, (experts - 1).bit_length())
        self._top_k, self._dtype, self._in_word = top_k, dtype, _WORD_BITS // self._bits
        self._words: Words = np.zeros((-(-top_k // self._in_word), 0), np.uint64)
        self._pending: list[Words] = []
        self._waiting = 0
        self.count: Ints = np.zeros(0, np.int64)

    @property
    def bytes_of_class(self) -> int:
        """What one set takes here and in `TokenSets`."""
        return 8 * len(self._words) + 4 * 8 + self._top_k * self._dtype.itemsize

    def add(self, chosen: Ids) -> int:
        """Add tokens' choices [tokens, top_k]; return by how many the sets became more, where they were sorted."""
        packed: Words = np.zeros((len(self._words), len(chosen)), np.uint64)
        for position, column in enumerate(_sorted_columns(chosen)):
            word = packed[position // self._in_word]
            word <<= np.uint64(self._bits)
            word |= column.astype(np.uint64)
        self._pending.append(packed)
        self._waiting += len(chosen)
        return self.sort() if self._waiting >= max(_PENDING, len(self.count)) else 0

    def sort(self) -> int:
        """Count what is pending; return by how many the sets became more."""
        if not self._pending:
            return 0
        before = len(self.count)
        words, count = _counted(_ordered(np.concatenate(self._pending, axis=1)), None)
        self._pending, self._waiting = [], 0
        if before:
            words, count = np.concatenate([self._words, words], axis=1), np.concatenate([self.count, count])
            order = np.lexsort(words[::-1])  # of two parts in order: merged in one pass
            words, count = _counted(words[:, order], count[order])
        self._words, self.count = words, count
        return len(count) - before

    def choice(self) -> Ids:
        """Return the sets [classes, top_k]."""
        choice = np.empty((len(self.count), self._top_k), self._dtype)
        for position in range(self._top_k):
            at, place = divmod(position, self._in_word)
            in_word = min(self._in_word, self._top_k - at * self._in_word)
            shifted = self._words[at] >> np.uint64(self._bits * (in_word - 1 - place))
            choice[:, position] = shifted & np.uint64((1 << self._bits) - 1)
        return choice


_NONE = _Distinct(1, 1, np.dtype(np.uint8))


def _compress(recording: Recording, layers: Sequence[int], experts: int, left: _Left) -> list[_Distinct]:
    topk = recording.topk
    assert topk is not None
    found = [_Distinct(experts, topk.shape[2], topk.dtype) for _ in layers]
    for _, ids in in_blocks(topk):
        for layer, distinct in zip(layers, found, strict=True):
            left.take(distinct.add(ids[:, layer]), distinct.bytes_of_class)
    for distinct in found:
        left.take(distinct.sort(), distinct.bytes_of_class)
    return found


def _sorted_columns(chosen: Ids) -> Iterator[Ids]:
    """Yield the smallest id of every token, the next, and so on; ``chosen`` is [tokens, top_k]."""
    top_k = chosen.shape[1]
    if top_k > _MOST_EXCHANGED:
        yield from np.ascontiguousarray(np.sort(chosen, axis=1).T)
        return
    columns = chosen.T.copy()
    for start in range(top_k):  # as many rounds of exchanges between neighbours sort any order
        for one in range(start % 2, top_k - 1, 2):
            least = np.minimum(columns[one], columns[one + 1])
            np.maximum(columns[one], columns[one + 1], out=columns[one + 1])
            columns[one] = least
    yield from columns


def _ordered(words: Words) -> Words:
    """Sort numbers of several words [words, numbers], the first of which counts most."""
    return np.sort(words, axis=1) if len(words) == 1 else words[:, np.lexsort(words[::-1])]


def _counted(words: Words, count: Ints | None) -> tuple[Words, Ints]:
    """Return different ones of sorted numbers [words, numbers], and how often each is there, or what they count."""
    first = np.ones(words.shape[1], dtype=bool)
    first[1:] = (words[:, 1:] != words[:, :-1]).any(axis=0)
    start = np.flatnonzero(first)
    if count is None:
        return words[:, start], np.diff(start, append=words.shape[1])
    return words[:, start], np.add.reduceat(count, start)
