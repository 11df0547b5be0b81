"""TensorRT-LLM's statistics folder (``EXPERT_STATISTIC_PATH``): counts by iteration, layer and source rank.

``rank<r>.safetensors`` has under ``<iteration>_<layer>`` how often tokens of rank r chose each logical expert. Newer
versions also write ``rank<r>_raw.safetensors`` with every token's choices; of an iteration in chunks it has the last
chunk only, while the counts have all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.engines.recordings.import_options import Options
from moe_placer.engines.recordings.recorded import Found, Recorded, finish
from moe_placer.engines.recordings.tally import MOST_EXPERTS, Ints, Tally
from moe_placer.engines.safetensors_file import read_safetensors
from moe_placer.errors import InputError, Mistake
from moe_placer.files import read_bounded
from moe_placer.traffic.stored_choices import count_choices, draw_tokens

__all__ = ["is_statistics_folder", "read_statistics"]

_META = "meta_info.json"
_RANK = re.compile(r"rank(\d{1,4})(_raw)?\.safetensors$")
_KEY = re.compile(r"(\d{1,9})_(\d{1,4})$")
_MOST_TOP_K = 256
_CHUNKED = (
    "raw files have fewer tokens than were counted (iterations in chunks keep the last): counts are of all tokens"
)
_UNLINKED = "raw files have different numbers of tokens by layer: single tokens are not kept"


def is_statistics_folder(path: Path) -> bool:
    """Whether a path is such a folder."""
    return path.is_dir() and any(file.name == _META or _RANK.match(file.name) for file in path.iterdir())


def read_statistics(folder: Path, options: Options) -> Recorded:
    """Read the counts of all ranks; where there are raw files, keep single tokens too."""
    statistics = _open(folder)
    tokens = [statistics.raw_tokens(i, rank) for i in statistics.iterations for rank in statistics.raw]
    wanted = draw_tokens(sum(tokens), options.keep_tokens)
    layers, sources = len(statistics.layers), len(statistics.counts)
    tally = Tally(layers, statistics.experts, sources=sources, steps=len(statistics.iterations), wanted=wanted)
    notes: set[str] = set()
    with options.progress(len(statistics.iterations), "iterations") as advance:
        for step, iteration in enumerate(statistics.iterations):
            for rank in statistics.counts:
                _add(tally, statistics, step, iteration, rank, notes)
            advance(1)
    found = Found(
        "TensorRT-LLM expert statistics",
        "trtllm",
        [folder],
        decoder_rows=False,
        top_k=statistics.top_k,
        row_layers=statistics.layers,
        notes=sorted(notes),
    )
    return finish(tally, found)


@dataclass(frozen=True)
class _Statistics:
    """The folder's files, by rank; ``layers`` are decoder layers."""

    folder: Path
    experts: int
    top_k: int
    counts: Mapping[int, Mapping[str, npt.NDArray[Any]]]
    raw: Mapping[int, Mapping[str, npt.NDArray[Any]]]
    iterations: tuple[int, ...]
    layers: tuple[int, ...]

    def counted(self, iteration: int, rank: int) -> Ints:
        """Return a rank's counts of an iteration [layers, experts]; a layer that is not there has none."""
        table = np.zeros((len(self.layers), self.experts), np.int64)
        for row, layer in enumerate(self.layers):
            values = self.counts[rank].get(f"{iteration}_{layer}")
            if values is None:
                continue
            if values.shape != (self.experts,):
                raise self.wrong(
                    rank, f"{iteration}_{layer}", f"shape {list(values.shape)}", f"[{self.experts}] experts"
                )
            if values.min() < 0:
                raise self.wrong(rank, f"{iteration}_{layer}", f"{values.min()}", "counts of 0 or more")
            table[row] = values
        return table

    def raw_tokens(self, iteration: int, rank: int) -> int:
        """Count the tokens of an iteration whose choices are there in every layer; 0 if layers differ."""
        none = np.zeros((0, 0), np.int64)
        shapes = {self.raw[rank].get(f"{iteration}_{layer}", none).shape for layer in self.layers}
        (first, *others) = shapes
        return int(first[0]) if not others and first[1:] == (self.top_k,) else 0

    def raw_choices(self, iteration: int, rank: int) -> npt.NDArray[np.integer]:
        """Return the choices [tokens, layers, top_k] of an iteration."""
        ids = np.stack([self.raw[rank][f"{iteration}_{layer}"] for layer in self.layers], axis=1)
        if ids.size and (ids.min() < -1 or ids.max() >= self.experts):
            worst = ids.min() if ids.min() < -1 else ids.max()
            expected = f"0 to {self.experts - 1} (num_experts), or -1"
            raise self.wrong(rank, f"{iteration}_{self.layers[0]} and on", f"expert {worst}", expected, "_raw")
        return ids

    def wrong(self, rank: int, key: str, found: str, expected: str, kind: str = "") -> InputError:
        """Say what is wrong with a rank's file."""
        return InputError(Mistake(found, expected, key, self.folder / f"rank{rank}{kind}.safetensors"))


def _add(tally: Tally, statistics: _Statistics, step: int, iteration: int, rank: int, notes: set[str]) -> None:
    """Add one rank's iteration."""
    counts = statistics.counted(iteration, rank)
    if counts.any():
        tally.add_counts(counts, step, rank)
    if rank not in statistics.raw:
        return
    tokens = statistics.raw_tokens(iteration, rank)
    if not tokens:
        if counts.any():
            notes.add(_UNLINKED)
        return
    ids = statistics.raw_choices(iteration, rank)
    again = count_choices(ids, statistics.experts)
    if (again > counts).any():
        raise statistics.wrong(rank, f"{iteration}_{statistics.layers[0]} and on", "choices that were not counted",
                               f"no more than in rank{rank}.safetensors", "_raw")  # fmt: skip
    if (again < counts).any():
        notes.add(_CHUNKED)
    tally.keep(ids[tally.next_tokens(tokens)], step, rank)


def _open(folder: Path) -> _Statistics:
    experts, top_k = _meta(folder / _META)
    files: dict[bool, dict[int, Path]] = {False: {}, True: {}}
    for file in sorted(folder.iterdir()):
        if match := _RANK.match(file.name):
            files[bool(match[2])][int(match[1])] = file
    missing = min(set(range(len(files[False]) + 1)) - files[False].keys())
    if missing < len(files[False]) or not files[False]:
        raise InputError(Mistake(f"no rank{missing}.safetensors", "a file of every rank from 0 on", file=folder))
    counts = {rank: read_safetensors(file) for rank, file in sorted(files[False].items())}
    raw = {rank: read_safetensors(file) for rank, file in sorted(files[True].items())}
    keys = {_key(files[False][rank], name) for rank, arrays in counts.items() for name in arrays}
    if not keys:
        raise InputError(Mistake("no counts", "keys <iteration>_<layer>", file=files[False][0]))
    iterations, layers = ({key[i] for key in keys} for i in (0, 1))
    if len(layers) > 1000:
        raise InputError(Mistake(f"{len(layers)} layers", "at most 1,000", file=folder))
    raw = {rank: arrays for rank, arrays in raw.items() if rank in counts}
    return _Statistics(folder, experts, top_k, counts, raw, tuple(sorted(iterations)), tuple(sorted(layers)))


def _key(file: Path, name: str) -> tuple[int, int]:
    match = _KEY.match(name)
    if not match:
        raise InputError(Mistake(f"the key {name[:60]!r}", "<iteration>_<layer>", file=file))
    return int(match[1]), int(match[2])


def _meta(file: Path) -> tuple[int, int]:
    """Return experts and top-k."""
    expected = "{num_experts: ..., num_experts_per_token: ...}, which TensorRT-LLM writes"
    try:
        meta = json.loads(read_bounded(file, 1_000_000, expected))
        experts, top_k = meta["num_experts"], meta["num_experts_per_token"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(Mistake("no such numbers", expected, file=file)) from None
    for key, value, most in (("num_experts", experts, MOST_EXPERTS), ("num_experts_per_token", top_k, _MOST_TOP_K)):
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(Mistake(str(value)[:40], f"a whole number from 1 to {most}", key, file))
    return experts, top_k
