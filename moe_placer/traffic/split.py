"""Splits a recording into parts of whole sequences: to solve on one part, and to measure on another."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake
from moe_placer.files import replaced_atomically
from moe_placer.traffic.readers import open_array, read_array, read_rows, wrong
from moe_placer.traffic.token_table import TABLE_SUFFIXES, open_token_table

__all__ = ["split_recording"]

NAMES = ("even", "odd")  # of two parts; more are numbered
_MOST_OPEN = 64  # parts that are written at a time; more take more passes over the recording
_MOST_ID = 8191

Ids = npt.NDArray[Any]
Ints = npt.NDArray[np.integer]


def split_recording(file: Path, folder: Path, parts: int = 2) -> list[Path]:
    """Write a recording's sequences in turn to ``parts`` files: sequence n goes to part n modulo ``parts``.

    Tokens of one sequence resemble each other, so a fair measurement keeps sequences whole. The parts are named after
    the recording: ``NAME_even.npz`` and ``NAME_odd.npz``, or ``NAME_0.npz``, ``NAME_1.npz``, ... where there are more.
    Choices are read and written in blocks of tokens.

    Parameters
    ----------
    file : Path
        A .npz file with ``topk`` [tokens, MoE layers, top_k] and ``seq`` [tokens], the number of each token's sequence;
        or a table of tokens with the column ``seq``.
    folder : Path
        Where the parts go; made where it does not exist.
    parts : int
        2 or more.

    Raises
    ------
    InputError
        The file is missing or damaged, has no sequences, or too few of them.
    """
    shape, dtype, seq = _declared(file)
    if seq.shape != shape[:1] or seq.dtype.kind not in "iu":
        expected = f"a whole number for each of the {shape[0]:,} tokens"
        raise InputError(Mistake(f"{seq.dtype} of shape {seq.shape}", expected, "seq", file))
    part = seq.astype(np.int64) % parts
    if len(np.unique(part)) < parts:
        found = f"{len(np.unique(seq)):,} sequences that fill {len(np.unique(part))} of {parts} parts"
        raise InputError(Mistake(found, "sequences for every part", "seq", file))
    names = [NAMES[index] if parts == len(NAMES) else str(index) for index in range(parts)]
    written = [folder / f"{file.stem}_{name}.npz" for name in names]
    for first in range(0, parts, _MOST_OPEN):
        some = range(first, min(parts, first + _MOST_OPEN))
        _write_parts(file, [written[index] for index in some], part - first, (shape, dtype), seq)
    return written


def _declared(file: Path) -> tuple[tuple[int, ...], np.dtype[Any], Ints]:
    """Return shape and type of the choices, and each token's sequence."""
    if file.suffix.lower() in TABLE_SUFFIXES:
        table = open_token_table(file)
        if "seq" not in table.names:
            raise wrong(file, "", "no column seq", "the number of each token's sequence")
        seq = np.concatenate(list(table.numbers("seq")))
        return (table.tokens, len(table.layers), table.top_k), np.dtype(np.uint16), seq
    with open_array(file, "topk", streamed=True) as (_, header):
        if not header.bytes or not header.shape:
            raise wrong(file, "topk", f"shape {header.shape}", "at least one entry")
        return header.shape, header.dtype, read_array(file, "seq")


def _blocks(file: Path) -> Iterator[Ids]:
    """Yield all choices in order, in blocks of tokens."""
    if file.suffix.lower() in TABLE_SUFFIXES:
        for block in open_token_table(file).blocks(("token",)):
            if block.ids.min() < 0 or block.ids.max() > _MOST_ID:
                found = f"ids from {block.ids.min()} to {block.ids.max()}"
                raise wrong(file, "experts", found, f"ids from 0 to {_MOST_ID:,}")
            yield block.ids.astype(np.uint16)
        return
    with open_array(file, "topk", streamed=True) as (stream, header):
        if not header.fortran:
            yield from read_rows(stream, header)
            return
    yield read_array(file, "topk")


def _write_parts(
    file: Path, paths: Sequence[Path], part: Ints, form: tuple[tuple[int, ...], np.dtype[Any]], seq: Ints
) -> None:
    """Write the tokens of parts 0, 1, ... to .npz files, all in one pass; of a token in none, nothing.

    Parameters
    ----------
    file : Path
        The recording.
    paths : sequence of Path
        One for each part.
    part : int array [tokens]
        Which part each token goes to.
    form : tuple
        Shape and type of all choices.
    seq : int array [tokens]
        Number of each token's sequence.
    """
    shape, dtype = form
    with ExitStack() as archives:
        opened = []
        for path in paths:
            stream = archives.enter_context(replaced_atomically(path))
            opened.append(archives.enter_context(zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED)))
        with ExitStack() as members:
            choices = [members.enter_context(_member(archive, "topk")) for archive in opened]
            for index, member in enumerate(choices):
                _write_header(member, (int((part == index).sum()), *shape[1:]), dtype)
            first = 0
            for ids in _blocks(file):
                mine = part[first : first + len(ids)]
                for index, member in enumerate(choices):
                    member.write(ids[mine == index].tobytes())
                first += len(ids)
        for index, archive in enumerate(opened):
            with _member(archive, "seq") as member:
                numbers = seq[part == index]
                _write_header(member, numbers.shape, numbers.dtype)
                member.write(numbers.tobytes())


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(f"{name}.npy", "w", force_zip64=True)


def _write_header(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    content = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, content)
