"""Splits a recording into parts of whole sequences: to solve on one part, and to measure on another."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from moe_placer.errors import InputError, Mistake
from moe_placer.files import write_atomically
from moe_placer.traffic.readers import read_array

__all__ = ["split_recording"]

NAMES = ("even", "odd")  # of two parts; more are numbered


def split_recording(file: Path, folder: Path, parts: int = 2) -> list[Path]:
    """Write a recording's sequences in turn to ``parts`` files: sequence n goes to part n modulo ``parts``.

    Tokens of one sequence resemble each other, so a fair measurement keeps sequences whole. The parts are named after
    the recording: ``NAME_even.npz`` and ``NAME_odd.npz``, or ``NAME_0.npz``, ``NAME_1.npz``, ... where there are more.

    Parameters
    ----------
    file : Path
        A .npz file with ``topk`` [tokens, MoE layers, top_k] and ``seq`` [tokens], the number of each token's sequence.
    folder : Path
        Where the parts go; made where it does not exist.
    parts : int
        2 or more.

    Raises
    ------
    InputError
        The file is missing or damaged, has no sequences, or too few of them.
    """
    topk, seq = read_array(file, "topk"), read_array(file, "seq")
    if seq.shape != topk.shape[:1] or seq.dtype.kind not in "iu":
        expected = f"a whole number for each of the {len(topk):,} tokens"
        raise InputError(Mistake(f"{seq.dtype} of shape {seq.shape}", expected, "seq", file))
    part = seq.astype(np.int64) % parts
    if len(np.unique(part)) < parts:
        found = f"{len(np.unique(seq)):,} sequences that fill {len(np.unique(part))} of {parts} parts"
        raise InputError(Mistake(found, "sequences for every part", "seq", file))
    written = []
    for index in range(parts):
        name = NAMES[index] if parts == len(NAMES) else str(index)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, topk=topk[part == index], seq=seq[part == index])
        written.append(folder / f"{file.stem}_{name}.npz")
        write_atomically(written[-1], buffer.getvalue())
    return written
