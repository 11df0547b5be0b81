"""vLLM's load statistics, JSON lines of ``eplb_load_stats`` (proposed, pull request 41141): counts by physical slot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.engines.recordings.import_options import Options
from moe_placer.engines.recordings.recorded import Found, Recorded, finish
from moe_placer.engines.recordings.tally import MOST_EXPERTS, Ints, Tally
from moe_placer.errors import InputError, Mistake
from moe_placer.files import not_json

__all__ = ["read_load_stats"]

_RECORD = "eplb_load_stats"
_KIND = f"lines of JSON with record_type {_RECORD}"
_MOST_LINE_BYTES = 64_000_000
_MOST = 2**53  # of one count


def read_load_stats(files: Sequence[Path], options: Options) -> Recorded:
    """Read ``expert_load`` [MoE layers, slots] of each step, and add it up by ``p2l_map`` [MoE layers, slots].

    Other record types, as the proposal has several, are counted and left out.
    """
    steps = sum(1 for _ in _records(files, []))
    other: list[str] = []
    tally: Tally | None = None
    with options.progress(max(1, steps), "steps") as advance:
        for step, (file, line, record) in enumerate(_records(files, other)):
            counts = _logical(file, line, record)
            if tally is None:
                tally = Tally(*counts.shape, sources=0, steps=steps)
            if counts.shape != tally.load.shape:
                raise _wrong(file, line, f"{list(counts.shape)} layers and experts", f"{list(tally.load.shape)}")
            if counts.any():
                tally.add_counts(counts, step)
            else:
                tally.empty_steps += 1
            advance(1)
    if tally is None:
        raise options.wrong(files[0], f"no {_RECORD}", _KIND)
    notes = ["which rank a token started on is not recorded"]
    if other:
        notes.append(f"{len(other)} lines of other record types are left out ({', '.join(sorted(set(other)))})"[:300])
    return finish(tally, Found("vLLM eplb_load_stats", "vllm", files, decoder_rows=False, notes=notes))


def _records(files: Sequence[Path], other: list[str]) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Yield file, line and content of each step's record."""
    for file in files:
        if not file.is_file():
            found = "a folder" if file.is_dir() else "no ordinary file" if file.exists() else "no such file"
            raise InputError(Mistake(found, _KIND, file=file))
        with file.open("rb") as stream:
            number = 0
            while text := stream.readline(_MOST_LINE_BYTES):
                number += 1
                if text.strip():
                    record = _parsed(file, number, text)
                    if record.get("record_type") == _RECORD:
                        yield file, number, record
                    else:
                        other.append(str(record.get("record_type"))[:40])


def _parsed(file: Path, line: int, text: bytes) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(file, line, not_json(error), _KIND) from None
    if not isinstance(record, dict):
        raise _wrong(file, line, "no JSON object", _KIND)
    return record


def _logical(file: Path, line: int, record: dict[str, Any]) -> Ints:
    """Add up a record's counts by logical expert [MoE layers, experts]."""
    load = _table(file, line, record, "expert_load", _MOST)
    p2l = _table(file, line, record, "p2l_map", MOST_EXPERTS - 1)
    if load.shape != p2l.shape:
        raise _wrong(file, line, f"shape {list(p2l.shape)}", f"{list(load.shape)} as expert_load", "p2l_map")
    counts = np.zeros((len(load), int(p2l.max()) + 1), np.int64)
    np.add.at(counts, (np.arange(len(load))[:, None], p2l), load)
    return counts


def _table(file: Path, line: int, record: dict[str, Any], key: str, most: int) -> Ints:
    expected = f"whole numbers from 0 to {most:,} in rows of one length [MoE layers, slots]"
    try:
        table: npt.NDArray[Any] = np.array(record.get(key))
    except (ValueError, OverflowError):
        raise _wrong(file, line, "rows of several lengths", expected, key) from None
    if table.dtype.kind == "f" and ((abs(table) <= _MOST) & (table == np.floor(table))).all():
        table = table.astype(np.int64)
    if table.dtype.kind not in "iu" or table.ndim != 2 or not table.size or len(table) > 1000:
        raise _wrong(file, line, f"{table.dtype} of shape {list(table.shape)}", expected, key)
    if table.min() < 0 or table.max() > most:
        raise _wrong(file, line, f"{table.min() if table.min() < 0 else table.max()}", expected, key)
    return table.astype(np.int64)


def _wrong(file: Path, line: int, found: str, expected: str, path: str = "") -> InputError:
    return InputError(Mistake(found, expected, path, file, line))
