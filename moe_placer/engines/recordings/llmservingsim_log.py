"""LLMServingSim's log: what its gate assigned to the experts of each layer and batch (policies RR and RAND, EP 1).

Lines are of `GateRouter.route`: ``layer=3 policy=RAND E=8 k=2 batch=17 tokens=4 assigned=[1, 0, 2, ...]``. What stands
before and between them is other messages; a list may be broken over lines. With expert parallelism the simulator logs
tokens by rank instead, which say nothing of single experts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_placer.engines.recordings.import_options import Options
from moe_placer.engines.recordings.recorded import Found, Recorded, finish
from moe_placer.engines.recordings.tally import MOST_EXPERTS, Tally
from moe_placer.errors import InputError, Mistake
from moe_placer.files import read_bounded

__all__ = ["LOG_SUFFIXES", "read_gate_log"]

LOG_SUFFIXES = {".log", ".txt"}
_KIND = "a log of LLMServingSim with lines `layer=... policy=... E=... k=... batch=... tokens=... assigned=[...]`"
_MOST_BYTES = 500_000_000
_MOST_LAYERS = 10_000
_MOST_COUNT = 2**53
_ASSIGNED = re.compile(
    r"layer=(\d{1,9}) policy=\w+ E=(\d{1,9}) k=(\d{1,9}) batch=(\S{1,80}) tokens=(\d{1,18}) assigned=\[([^\]\[=]*)\]"
)
_BY_RANK = re.compile(r"layer=\d+ policy=\w+ E=\d+ k=\d+ ep=\d+ batch=\S+ tokens=\d+ local=")


@dataclass(frozen=True)
class _Assigned:
    """What one line says, and where it stands."""

    file: Path
    line: int
    layer: int
    top_k: int
    batch: str
    counts: tuple[int, ...]


def read_gate_log(files: Sequence[Path], options: Options) -> Recorded:
    """Add up what each layer's experts were assigned; a batch is a step.

    Raises
    ------
    InputError
        A file is missing or has no such line, or a line contradicts itself or the others.
    """
    lines = [line for file in files for line in _lines(file)]
    steps = _steps(lines)
    first = lines[0]
    experts, layers = len(first.counts), 1 + max(line.layer for line in lines)
    for line in lines:
        if (len(line.counts), line.top_k) != (experts, first.top_k):
            found = f"{len(line.counts)} experts, k={line.top_k}"
            expected = f"{experts} experts, k={first.top_k}, as before"
            raise InputError(Mistake(found, expected, file=line.file, line=line.line))
    tally = Tally(layers, experts, sources=0, steps=steps[-1] + 1)
    with options.progress(len(lines), "lines") as advance:
        for step, line in zip(steps, lines, strict=True):
            counts = np.zeros((layers, experts), np.int64)
            counts[line.layer] = line.counts
            tally.add_counts(counts, step)
            advance(1)
    notes = ["the simulator drew these choices itself; which rank a token started on is not recorded"]
    about = Found("LLMServingSim gate log", "", files, decoder_rows=True, top_k=first.top_k, notes=notes)
    return finish(tally, about)


def _lines(file: Path) -> Iterator[_Assigned]:
    try:
        text = read_bounded(file, _MOST_BYTES, _KIND).decode()
    except UnicodeDecodeError as error:
        raise InputError(Mistake(f"bytes that are no text (at byte {error.start})", _KIND, file=file)) from None
    number, position, any_line = 1, 0, False
    for match in _ASSIGNED.finditer(text):
        number += text.count("\n", position, match.start())
        position, any_line = match.start(), True
        yield _checked(file, number, match)
    if not any_line:
        by_rank = _BY_RANK.search(text) is not None
        found = "tokens by rank, as with expert parallelism, and not by expert" if by_rank else "no such line"
        raise InputError(Mistake(found, f"{_KIND}; policies RR and RAND, ep_size 1", file=file))


def _checked(file: Path, number: int, match: re.Match[str]) -> _Assigned:
    """Read one line; what was assigned has to be what its tokens chose."""
    layer, experts, top_k, tokens = (int(match[group]) for group in (1, 2, 3, 5))
    words = match[6].replace(",", " ").split()
    if layer >= _MOST_LAYERS or not 0 < experts <= MOST_EXPERTS or tokens > _MOST_COUNT:
        found = f"layer {layer}, {experts} experts, {tokens} tokens"
        expected = f"layers below {_MOST_LAYERS:,}, up to {MOST_EXPERTS:,} experts"
        raise InputError(Mistake(found, expected, file=file, line=number))
    if len(words) != experts or not all(word.isascii() and word.isdigit() and len(word) < 17 for word in words):
        found = f"{len(words)} words in `assigned`" if len(words) != experts else "words that are no counts"
        expected = f"counts of {experts} experts (a line may have been cut off)"
        raise InputError(Mistake(found, expected, file=file, line=number))
    counts = tuple(map(int, words))
    if sum(counts) != tokens * top_k:
        expected = f"{tokens} tokens x k={top_k} = {tokens * top_k}"
        raise InputError(Mistake(f"{sum(counts)} choices", expected, file=file, line=number))
    return _Assigned(file, number, layer, top_k, match[4], counts)


def _steps(lines: Sequence[_Assigned]) -> list[int]:
    """Return the number of each line's batch; a new one begins with another name, or where a layer comes again."""
    steps, seen, batch, step = [], set[int](), "", -1
    for line in lines:
        if step < 0 or line.batch != batch or line.layer in seen:
            step, batch, seen = step + 1, line.batch, set()
        seen.add(line.layer)
        steps.append(step)
    return steps
