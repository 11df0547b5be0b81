"""Routed experts that vLLM and SGLang return with a response: every token's choices, logical ids, no source ranks.

Arrays [tokens, layers, top_k] as .npy, .npz (one array for each sequence), or inside responses (.json, .jsonl) under
``routed_experts``: base64 of a .npy file, as vLLM writes it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moe_placer.engines.recordings.import_options import Options
from moe_placer.engines.recordings.recorded import Found, Recorded, finish
from moe_placer.engines.recordings.tally import MOST_EXPERTS, MOST_WINDOWS, Tally, cut_in_steps
from moe_placer.errors import InputError, Mistake
from moe_placer.files import not_json, read_bounded
from moe_placer.traffic.readers import ArrayHeader, array_of_bytes, names_of_arrays, open_array, read_rows
from moe_placer.traffic.stored_choices import count_choices, draw_tokens

__all__ = ["is_routed_experts", "read_routed_experts"]

_KIND = "routed experts: whole numbers [tokens, layers, top_k]"
_KEYS = ("routed_experts", "prompt_routed_experts")
_MOST_TEXT_BYTES = 128_000_000  # of one response
_MOST_IN_MEMORY = 512_000_000
_MOST_TOP_K = 256
_PEEKED = 1_000_000


@dataclass(frozen=True)
class _Sequence:
    """One array: of one request, or of many in a row."""

    file: Path
    name: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[npt.NDArray[Any]]]


def is_routed_experts(files: Sequence[Path]) -> bool:
    """Whether the first of some files holds token choices rather than counts."""
    file = files[0]
    suffix = file.suffix.lower()
    if suffix == ".npy":
        with _open(file, "") as (_, header):
            return len(header.shape) == 3 and header.dtype.kind in "iu"
    if suffix == ".npz":
        names = names_of_arrays(file)
        if not names or {"load", "logical_count"} & set(names):
            return False
        with _open(file, names[0]) as (_, header):
            return len(header.shape) == 3 and header.dtype.kind in "iu"
    if suffix in {".json", ".jsonl"} and file.is_file():
        with file.open("rb") as stream:
            start = stream.read(_PEEKED)
        if suffix == ".json":
            start = read_bounded(file, _MOST_TEXT_BYTES, _KIND)
        return any(f'"{key}"'.encode() in start for key in _KEYS)
    return False


def read_routed_experts(files: Sequence[Path], options: Options) -> Recorded:
    """Count all tokens and keep some; layers in which every token has expert 0 alone are dense.

    A sequence is a step. One long array has no steps: it is cut into windows of equally many tokens.
    """
    sequences = [sequence for file in files for sequence in _sequences(file)]
    if not sequences:
        raise options.wrong(files[0], "no routed_experts", _KIND)
    layers, top_k = _common_shape(sequences)
    total = sum(sequence.shape[0] for sequence in sequences)
    steps = len(sequences) if len(sequences) > 1 else min(MOST_WINDOWS, total)
    wanted = draw_tokens(total, options.keep_tokens)
    tally = Tally(layers, options.experts or 1, sources=0, steps=steps, wanted=wanted)
    with options.progress(total, "tokens") as advance:
        for number, sequence in enumerate(sequences):
            for ids in sequence.blocks():
                if len(sequences) > 1:
                    _add(tally, sequence, ids, number, number, options)
                else:
                    for step, start, end in cut_in_steps(len(ids), tally.tokens, steps, total):
                        _add(tally, sequence, ids[start:end], step, None, options)
                advance(len(ids))
    dense = _dense(tally, top_k)
    tally.load[dense], tally.by_window[:, dense] = 0, 0
    notes = ["which rank a token started on is not recorded"]
    if not options.experts:
        notes.append(f"{tally.load.shape[1]} experts are known from the largest id; --experts says how many there are")
    if len(sequences) == 1 and total > 1:
        notes.append(f"one array: cut into {tally.windows} windows of equally many tokens")
    found = Found(
        "routed experts of responses",
        "vllm",
        files,
        decoder_rows=bool(dense.any()),
        experts_known=bool(options.experts),
        top_k=top_k,
        notes=notes,
    )
    return finish(tally, found)


def _add(
    tally: Tally, sequence: _Sequence, ids: npt.NDArray[Any], step: int, number: int | None, options: Options
) -> None:
    least, most = int(ids.min()), int(ids.max())
    limit = options.experts or MOST_EXPERTS
    if least < -1 or most >= limit:
        expected = f"ids from 0 to {limit - 1}, or -1 for none"
        raise options.wrong(sequence.file, f"expert {least if least < -1 else most}", expected, sequence.name)
    experts = max(most + 1, tally.load.shape[1])
    tally.add_counts(count_choices(ids, experts), step)
    chosen = tally.next_tokens(len(ids))
    known = None if number is None else np.full(len(chosen), number)
    tally.keep(ids[chosen], step, None, known)


def _dense(tally: Tally, top_k: int) -> npt.NDArray[np.bool_]:
    """Find layers that no token was routed in: engines leave zeros there."""
    return np.asarray((tally.load[:, 1:].sum(axis=1) == 0) & (top_k > 1))


def _common_shape(sequences: Sequence[_Sequence]) -> tuple[int, int]:
    first = sequences[0]
    for sequence in sequences:
        shape = sequence.shape
        if len(shape) != 3 or not 1 <= shape[1] <= 1000 or not 1 <= shape[2] <= _MOST_TOP_K:
            raise InputError(Mistake(f"shape {list(shape)}", _KIND, sequence.name, sequence.file))
        if shape[1:] != first.shape[1:]:
            expected = f"{first.shape[1]} layers and top-{first.shape[2]} as in {first.file.name}"
            raise InputError(Mistake(f"shape {list(shape)}", expected, sequence.name, sequence.file))
    return first.shape[1], first.shape[2]


def _sequences(file: Path) -> Iterator[_Sequence]:
    """List a file's arrays without reading their values, but for responses."""
    suffix = file.suffix.lower()
    if suffix in {".npy", ".npz"}:
        for name in names_of_arrays(file) if suffix == ".npz" else [""]:
            with _open(file, name) as (_, header):
                if header.dtype.kind not in "iu":
                    raise InputError(Mistake(f"values of type {header.dtype}", _KIND, name, file))
                if header.fortran and header.bytes:
                    expected = "C order: numpy.ascontiguousarray before it is saved"
                    raise InputError(Mistake("an array in Fortran order", expected, name, file))
                yield _Sequence(file, name, header.shape, partial(_stored_blocks, file, name))
        return
    held = 0
    for line, document in _documents(file):
        for index, value in enumerate(_find(document)):
            name = f"routed_experts[{index}]" + (f" (line {line})" if line else "")
            array = _decoded(file, name, value)
            held += array.nbytes
            if held > _MOST_IN_MEMORY:
                found = f"more than {_MOST_IN_MEMORY / 1e9:g} GB of choices"
                raise InputError(Mistake(found, "less in one file, or .npz", name, file))
            yield _Sequence(file, name, array.shape, partial(_one_block, array))


def _open(file: Path, name: str) -> AbstractContextManager[tuple[IO[bytes], ArrayHeader]]:
    """Open an array; one that is not packed takes what it has on the disk, so that it may be large."""
    return open_array(file, name, streamed=True)


def _stored_blocks(file: Path, name: str) -> Iterator[npt.NDArray[Any]]:
    with _open(file, name) as (stream, header):
        if 0 not in header.shape:
            yield from read_rows(stream, header)


def _one_block(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    if array.size:
        yield array


def _documents(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield the line and content of each JSON document."""
    if file.suffix.lower() == ".json":
        yield 0, _parsed(file, read_bounded(file, _MOST_TEXT_BYTES, _KIND), None)
        return
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(_MOST_TEXT_BYTES):
            number += 1
            if line.strip():
                yield number, _parsed(file, line, number)


def _parsed(file: Path, text: bytes, line: int | None) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(Mistake(not_json(error), "a response", file=file, line=line)) from None


def _find(document: Any) -> Iterator[Any]:
    """Yield what stands under ``routed_experts`` anywhere in a document."""
    todo = [document]
    while todo:
        here = todo.pop()
        if isinstance(here, dict):
            yield from (here[key] for key in _KEYS if here.get(key) is not None)
            todo += [value for key, value in here.items() if key not in _KEYS]
        elif isinstance(here, list):
            todo += here


def _decoded(file: Path, name: str, value: Any) -> npt.NDArray[Any]:
    """Decode base64 of a .npy file, or take nested lists; keep the values in as few bytes as hold them."""
    try:
        if isinstance(value, str):
            array = array_of_bytes(base64.b64decode(value, validate=True))
        elif isinstance(value, list):
            array = np.array(value)
        else:
            raise ValueError("neither text nor a list")
        if array.dtype.kind not in "iu" or array.ndim != 3:
            raise ValueError(f"{array.dtype} of shape {list(array.shape)}")
    except (ValueError, OverflowError, EOFError) as error:
        found = f"what is no array ({str(error).splitlines()[0][:100]})"
        raise InputError(Mistake(found, f"{_KIND}, as base64 of .npy", name, file)) from None
    small = array.size and int(array.min()) >= -(2**15) and int(array.max()) < 2**15
    return array.astype(np.int16) if small else array
