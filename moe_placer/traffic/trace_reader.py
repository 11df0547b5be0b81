"""Reads recorded token choices in blocks, counts them, and trusts nothing in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake, visible
from moe_placer.instance import Instance
from moe_placer.traffic.readers import ArrayHeader, open_array, read_blocks, wrong
from moe_placer.traffic.recording import Recording
from moe_placer.traffic.stored_choices import (
    KeptChoices,
    count_choices,
    find_repeated,
    in_blocks,
    is_large,
    map_choices,
)
from moe_placer.traffic.token_table import TABLE_SUFFIXES, open_token_table
from moe_placer.workers import available_memory

__all__ = ["read_trace"]

Ids = npt.NDArray[np.integer]


@dataclass(frozen=True)
class _Choices:
    """Choices of a file: their header, and their values in its order, each block with the number of its first."""

    file: Path
    header: ArrayHeader
    blocks: Iterator[tuple[int, Ids]]
    in_table: bool = False

    def place(self, token: int, layer: int, *position: int) -> str:
        """Say where in the file a token's choice is."""
        if self.in_table:
            return f"experts, row {token * self.header.shape[1] + layer}"
        return f"topk[{', '.join(map(str, (token, layer, *position)))}]"


def read_trace(file: Path, instance: Instance) -> Recording:
    """Read a .npz file with ``topk`` [tokens, MoE layers, top_k], or a table of tokens (`TokenTable`).

    What it takes is known from its header: choices of up to 256 MB take memory; larger ones that of a block,
    and where they are not stored as 8 or 16 bits that can be mapped, room for a temporary file.

    Raises
    ------
    InputError
        The file is missing, damaged, hostile, or does not fit the instance's model; or there is no room for it.
    """
    experts = instance.model.experts
    if file.suffix.lower() in TABLE_SUFFIXES:
        topk, load = _read_topk(_of_table(file, instance), experts)
    else:
        with open_array(file, "topk", streamed=True) as (stream, header):
            _check_topk_header(file, header, instance)
            row = 1 if header.fortran else math.prod(header.shape[1:])
            topk, load = _read_topk(_Choices(file, header, read_blocks(stream, header, row)), experts)
    return Recording(visible(file.name), load, np.full(len(load), float(len(topk))), topk)


def _of_table(file: Path, instance: Instance) -> _Choices:
    table = open_token_table(file)
    header = ArrayHeader((table.tokens, len(table.layers), table.top_k), False, np.dtype(np.int64))
    _check_topk_header(file, header, instance)
    if table.layers not in (tuple(range(len(table.layers))), tuple(instance.moe_layers)):
        expected = "0, 1, ... of the MoE layers, or their indices in the model"
        raise wrong(file, "layer", f"layers {', '.join(map(str, table.layers[:8]))}, ...", expected)

    def blocks() -> Iterator[tuple[int, Ids]]:
        start = 0
        for block in table.blocks(("token",)):
            yield start, block.ids.reshape(-1)
            start += block.ids.size

    return _Choices(file, header, blocks(), in_table=True)


def _read_topk(choices: _Choices, experts: int) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Return the ids [tokens, layers, top_k], and how often each expert was chosen [layers, experts]."""
    file, header = choices.file, choices.header
    layers, top_k = header.shape[1:]
    kind: np.dtype[np.integer] = np.dtype(np.uint8) if experts <= 256 else np.dtype(np.uint16)
    large = is_large(math.prod(header.shape) * kind.itemsize)
    if not large:
        _refuse_more_than_memory(file, header, kind)
    # The open file is mapped, not its name: whatever that comes to mean, what was checked is what is used.
    place = header.place if large and header.dtype in (np.uint8, np.uint16) else None
    kept = None if place else KeptChoices(header.shape, kind, file)
    load = np.zeros((layers, experts), np.int64)
    # In C order a block is whole tokens, so what is wrong with one is told at once.
    for start, block in choices.blocks:
        _check_ids(choices, block, start, experts)
        narrow = block.astype(kind, copy=False)
        if kept is not None:
            kept.write(start, narrow)
        if not header.fortran:
            ids = narrow.reshape(-1, layers, top_k)
            _check_different(choices, ids, start // (layers * top_k))
            load += count_choices(ids, experts)
    if kept is not None:
        topk = kept.whole(header.fortran)
    else:
        assert place is not None
        topk = map_choices(*place, header.shape, header.dtype, header.fortran)
    if header.fortran:
        for first, ids in in_blocks(topk):
            ids = np.ascontiguousarray(ids)
            _check_different(choices, ids, first)
            load += count_choices(ids, experts)
    return topk, load.astype(np.float64)


def _refuse_more_than_memory(file: Path, header: ArrayHeader, kind: np.dtype[np.integer]) -> None:
    needed, left = math.prod(header.shape) * kind.itemsize, available_memory()
    if needed > left:
        found = f"choices of {header.shape[0]:,} tokens: {needed / 1e9:,.1f} GB"
        raise wrong(file, "topk", found, f"at most the {left / 1e9:,.1f} GB of memory that are left here")


def _check_topk_header(file: Path, header: ArrayHeader, instance: Instance) -> None:
    """Refuse what does not fit the model before any memory is taken for it."""
    layers, top_k = len(instance.moe_layers), instance.model.top_k
    if header.dtype.kind not in "iu":
        raise wrong(file, "topk", f"values of type {header.dtype}", "whole numbers (expert ids)")
    if len(header.shape) != 3:
        raise wrong(file, "topk", f"shape {header.shape}", f"[tokens, {layers} MoE layers, top_k {top_k}]")
    mistakes = []
    if header.shape[0] == 0:
        mistakes.append(Mistake("no tokens", "at least one token", "topk", file))
    if header.shape[1] != layers:
        mistakes.append(Mistake(f"{header.shape[1]} layers", f"{layers} (the instance's MoE layers)", "topk", file))
    if header.shape[2] != top_k:
        mistakes.append(Mistake(f"{header.shape[2]} experts a token", f"model.top_k ({top_k})", "topk", file))
    if mistakes:
        raise InputError(mistakes)


def _check_ids(choices: _Choices, block: Ids, start: int, experts: int) -> None:
    """Check a block of ids whose first is number ``start`` of the file."""
    if block.min() < 0 or block.max() >= experts:
        first = int(np.argmax((block < 0) | (block >= experts)))
        at = np.unravel_index(start + first, choices.header.shape, "F" if choices.header.fortran else "C")
        found, expected = f"expert id {block[first]}", f"ids from 0 to {experts - 1} (model.experts)"
        raise wrong(choices.file, choices.place(*map(int, at)), found, expected)


def _check_different(choices: _Choices, ids: Ids, first: int) -> None:
    """Check that no token [tokens, MoE layers, top_k], the first being number ``first``, has one expert twice."""
    at = find_repeated(ids)
    if at is not None:
        token, layer = at
        found = f"one expert twice: {list(map(int, ids[token, layer]))}"
        raise wrong(choices.file, choices.place(first + token, layer), found, "different experts")
