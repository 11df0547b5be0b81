"""Token choices that may be larger than memory: kept where they are stored, and read in blocks of tokens.

Choices [tokens, layers, top_k] of up to 256 MB are arrays in memory. Larger ones are arrays over a file that
is mapped: the recording itself where it holds them as they are, else a temporary file without a name. Pages of a mapped
file stay in memory until somebody needs it; reading in blocks gives them back, so that no more than a block counts.
"""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake

__all__ = [
    "KeptChoices",
    "by_group",
    "count_all",
    "count_choices",
    "draw_tokens",
    "find_repeated",
    "in_blocks",
    "is_large",
    "is_mapped",
    "joined",
    "map_choices",
]

Ids = npt.NDArray[np.integer]
Ints = npt.NDArray[np.int64]

_IN_MEMORY_BYTES = 256_000_000
_BLOCK_BYTES = 16_000_000
_COUNTED_IDS = 131_072  # at a time: their sums with the layers' offsets stay in the cache
_COMPARED_ROWS = 32_768  # likewise
_MOST_COMPARED = 16  # ids of a token that are compared pair by pair; more are sorted


class KeptChoices:
    """Choices that are collected in any order: in memory, or, where they are many, in a temporary file without a name.

    Parameters
    ----------
    shape : tuple of int
        Tokens, layers, top_k.
    dtype : dtype
        Of the ids.
    file : Path, optional
        The recording, for messages.

    Raises
    ------
    InputError
        The folder for temporary files has less room.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[np.integer], file: Path | None = None) -> None:
        self._shape, self._dtype = shape, dtype
        size = math.prod(shape) * dtype.itemsize
        if not is_large(size):
            self._flat = np.empty(math.prod(shape), dtype)
            self._stream = None
            return
        folder = tempfile.gettempdir()
        left = shutil.disk_usage(folder).free
        if size > left:
            found = f"choices of {shape[0]:,} tokens: {size / 1e9:,.1f} GB"
            expected = (
                f"at most the {left / 1e9:,.1f} GB that are left in {folder} (TMPDIR names another folder); "
                "unsigned ids of 8 or 16 bits that are stored with numpy.savez are read where they are"
            )
            raise InputError(Mistake(found, expected, "topk", file))
        self._stream = tempfile.TemporaryFile()  # noqa: SIM115 - it goes with the arrays over it
        os.truncate(self._stream.fileno(), size)

    def write(self, start: int, ids: Ids) -> None:
        """Put ids where number ``start`` of all ids is."""
        if self._stream is None:
            self._flat[start : start + ids.size] = ids.ravel()
            return
        data = np.ascontiguousarray(ids, self._dtype).reshape(-1).data.cast("B")
        at = start * self._dtype.itemsize
        try:
            while data:
                written = os.pwrite(self._stream.fileno(), data, at)
                data, at = data[written:], at + written
        except OSError as error:
            found = f"a folder for temporary files that takes no more ({error.strerror})"
            raise InputError(Mistake(found, "room for all choices (TMPDIR names another folder)")) from None

    def whole(self, fortran: bool = False) -> Ids:
        """Return all of them [tokens, layers, top_k]."""
        if self._stream is None:
            return self._flat.reshape(self._shape, order="F" if fortran else "C")
        return map_choices(self._stream.fileno(), 0, self._shape, self._dtype, fortran)


def map_choices(
    descriptor: int, offset: int, shape: tuple[int, ...], dtype: np.dtype[np.integer], fortran: bool
) -> Ids:
    """Return an array over what an open file holds; the file may be closed, but must stay as it is.

    Parameters
    ----------
    descriptor : int
        Of the open file.
    offset : int
        Bytes before the first id.
    shape : tuple of int
        Tokens, layers, top_k.
    dtype : dtype
        Of the ids.
    fortran : bool
        Whether ids of a token are far apart.

    Raises
    ------
    InputError
        There is no room for it among the addresses that this process may use.
    ValueError
        The file is shorter.
    """
    try:
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        found = f"choices of {shape[0]:,} tokens that cannot be mapped ({error.strerror})"
        expected = f"addresses for {math.prod(shape) * dtype.itemsize / 1e9:,.1f} GB, which `ulimit -v` limits"
        raise InputError(Mistake(found, expected, "topk")) from None
    flat = np.frombuffer(mapped, dtype, math.prod(shape), offset)
    return flat.reshape(shape, order="F" if fortran else "C")


def is_large(size: float) -> bool:
    """Whether choices of so many bytes stay in a file."""
    return size > _IN_MEMORY_BYTES


def is_mapped(topk: Ids) -> bool:
    """Whether choices are in a file rather than in memory."""
    return _mapping(topk) is not None


def in_blocks(topk: Ids) -> Iterator[tuple[int, Ids]]:
    """Yield blocks of tokens in order, each with the number of its first; a block is good until the next is asked for.

    ``topk`` is [tokens, layers, top_k].
    """
    mapping = _mapping(topk)
    step = max(1, _BLOCK_BYTES // (math.prod(topk.shape[1:]) * topk.itemsize))
    for first in range(0, len(topk), step):
        yield first, topk[first : first + step]
        if mapping is not None and hasattr(mapping, "madvise"):
            mapping.madvise(mmap.MADV_DONTNEED)


def count_all(topk: Ids, experts: int) -> npt.NDArray[np.float64]:
    """Count how often each expert was chosen [layers, experts], block by block; all ids are below ``experts``."""
    load: Ints = np.zeros((topk.shape[1], experts), np.int64)
    for _, ids in in_blocks(topk):
        load += count_choices(ids, experts)
    return load.astype(np.float64)


def count_choices(ids: Ids, experts: int) -> Ints:
    """Count ids [tokens, layers, top_k] by layer and expert; ids outside [0, experts) are left out.

    Returns
    -------
    int array [layers, experts]
    """
    tokens, layers, top_k = ids.shape
    offset = (np.arange(layers) * experts)[None, :, None]
    counts = np.zeros(layers * experts, np.int64)
    step = max(1, _COUNTED_IDS // max(1, layers * top_k))
    buffer = np.empty((min(step, tokens), layers, top_k), np.int64)
    for start in range(0, tokens, step):
        block = ids[start : start + step]
        sums = buffer[: len(block)]
        np.add(block, offset, out=sums, casting="unsafe")
        outside = (block < 0) | (block >= experts) if block.min() < 0 or block.max() >= experts else None
        inside = sums.ravel() if outside is None else sums[~outside]
        counts += np.bincount(inside, minlength=len(counts))
    return counts.reshape(layers, experts)


def find_repeated(ids: Ids) -> tuple[int, int] | None:
    """Find the first token and layer of ids [tokens, layers, top_k] that has one expert twice; None where none has."""
    layers, top_k = ids.shape[1:]
    rows = ids.reshape(-1, top_k)
    for start in range(0, len(rows), _COMPARED_ROWS):
        block = rows[start : start + _COMPARED_ROWS]
        if top_k > _MOST_COMPARED:
            ordered = np.sort(block, axis=1)
            same = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        else:
            columns, same = np.ascontiguousarray(block.T), np.zeros(len(block), dtype=bool)
            for one in range(top_k):
                for other in range(one):
                    same |= columns[one] == columns[other]
        if same.any():
            token, layer = divmod(start + int(np.argmax(same)), layers)
            return token, layer
    return None


def draw_tokens(total: int, keep: int, seed: int = 0) -> Ints:
    """Draw which tokens of a recording to keep: all, or so many, each with the same chance, in order."""
    if keep >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, keep, replace=False, shuffle=False))


def by_group(topk: Ids, group: Ints, groups: int) -> list[Ids]:
    """Return the tokens of each of so many groups, in order.

    ``topk`` is [tokens, layers, top_k], and ``group`` [tokens] the group of each token; below 0: of none.
    """
    if not is_mapped(topk):
        return [topk[group == one] for one in range(groups)]
    sizes = np.bincount(group[group >= 0], minlength=groups)
    start = np.concatenate([[0], np.cumsum(sizes)])
    kept = KeptChoices((int(start[-1]), *topk.shape[1:]), topk.dtype)
    at, ids_each = start[:-1].copy(), math.prod(topk.shape[1:])
    for first, ids in in_blocks(topk):
        mine = group[first : first + len(ids)]
        order = np.argsort(mine, kind="stable")
        for one in np.unique(mine[mine >= 0]).tolist():
            rows = order[slice(*np.searchsorted(mine[order], (one, one + 1)))]
            kept.write(int(at[one]) * ids_each, ids[rows])
            at[one] += len(rows)
    whole = kept.whole()
    return [whole[start[one] : start[one + 1]] for one in range(groups)]


def joined(parts: Sequence[Ids]) -> Ids:
    """Return choices one after the other; in a file where they are many."""
    if not is_large(sum(part.nbytes for part in parts)):
        return np.concatenate(parts)
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    kept, at = KeptChoices(shape, np.result_type(*parts)), 0
    for part in parts:
        for _, ids in in_blocks(part):
            kept.write(at, ids)
            at += ids.size
    return kept.whole()


def _mapping(topk: Ids) -> mmap.mmap | None:
    """Return the mapped file that an array is a view of."""
    base: object = topk
    while isinstance(base, np.ndarray):
        base = base.base
    owner = base.obj if isinstance(base, memoryview) else None
    return owner if isinstance(owner, mmap.mmap) else None
