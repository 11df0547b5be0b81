"""SGLang's recorder in the modes ``per_pass`` and ``per_token``: one file per rank, with physical expert ids.

What its code does (0.5.23), and what follows:

- ids are of physical slots, and only the last map of slots to experts is in the file: it holds for all passes only if
  no rebalance happened while recording;
- which rank counts a token depends on the backend: the one where it starts where `select_experts` is recorded, the one
  where it arrives with DeepEP's low-latency mode, and every rank alike without data-parallel attention;
- ``misc_objects``, what DeepEP measured, is one list that all passes of a file share: it holds the last pass only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.engines.recordings.import_options import Options
from moe_placer.engines.recordings.recorded import Found, Recorded, finish
from moe_placer.engines.recordings.tally import MOST_EXPERTS, Ints, Tally
from moe_placer.engines.stored_tensors import Integers, StoredTensor
from moe_placer.engines.torch_file import TorchFile
from moe_placer.traffic.stored_choices import draw_tokens

__all__ = ["is_detail", "read_detail"]

_MOST_RANKS = 4096
_MOST_SLOTS = 65_536
_MOST_MEASURED = 32_000_000  # counts of what DeepEP measured
_REBALANCED = (
    "physical ids were translated by the last map: that is right only if no rebalance happened while recording"
)


def is_detail(content: object) -> bool:
    """Whether a ``.pt`` file's content is such a recording."""
    return isinstance(content, dict) and "records" in content and "last_physical_to_logical_map" in content


@dataclass(frozen=True)
class _Pass:
    """One forward pass as one rank recorded it."""

    number: int
    rank: int
    file: TorchFile
    record: Mapping[str, Any]
    counts: StoredTensor
    topk: StoredTensor | None

    @property
    def tokens(self) -> int:
        return self.topk.shape[1] if self.topk is not None else 0


def read_detail(files: Sequence[TorchFile], options: Options) -> Recorded:
    """Read ``global_physical_count`` [decoder layers, slots], and ``topk_ids_of_layer`` [decoder layers, tokens, 8]."""
    p2l = _same_map(files, options)
    passes = _passes(files, p2l.shape, options)
    ranks = sorted({one.rank for one in passes})
    notes = [_REBALANCED]
    measured = _measured(passes, len(p2l), max(ranks) + 1, notes)
    if len(ranks) > 1 and _every_rank_alike(passes, len(ranks)):
        passes = [one for one in passes if one.rank == ranks[0]]
        notes.append(
            f"all {len(ranks)} ranks recorded the same tokens (no data-parallel attention): rank {ranks[0]} is read"
        )
        ranks = ranks[:1]
    sources = max(ranks) + 1 if len(ranks) > 1 else 0
    steps = {number: step for step, number in enumerate(sorted({one.number for one in passes}))}
    wanted = draw_tokens(sum(one.tokens for one in passes), options.keep_tokens)
    tally = Tally(len(p2l), int(p2l.max()) + 1, sources=sources, steps=len(steps), wanted=wanted)
    reader = _Reader(tally, p2l, options)
    with options.progress(len(passes), "passes of ranks") as advance:
        for one in passes:
            reader.add(one, steps[one.number], one.rank if sources else None)
            advance(1)
    _judge_sources(tally, reader, ranks, notes)
    mode = "per_token" if any(one.topk is not None for one in passes) else "per_pass"
    paths = [file.path for file in files]
    return finish(
        tally,
        Found(
            f"SGLang expert distribution, mode {mode}",
            "sglang",
            paths,
            decoder_rows=True,
            top_k=reader.top_k or None,
            measured=measured,
            notes=notes,
        ),
    )


def _judge_sources(tally: Tally, reader: _Reader, ranks: Sequence[int], notes: list[str]) -> None:
    """Say whether ranks are sources; where they counted what arrives, forget them."""
    if not len(tally.by_source):
        return
    if reader.own_slots_only:
        notes.append("ranks counted what arrives at their own slots (DeepEP low latency): sources are unknown")
        tally.by_source = tally.by_source[:0]
        return
    missing = sorted(set(range(len(tally.by_source))) - set(ranks))
    if missing:
        notes.append(f"no file of rank {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))


class _Reader:
    """Adds passes to a tally, translating physical slots to logical experts."""

    def __init__(self, tally: Tally, p2l: Ints, options: Options) -> None:
        self.tally = tally
        self.options = options
        self.slots = p2l.shape[1]
        # One slot more, which -1 names: a choice that was not recorded.
        self.logical = np.concatenate([p2l, np.full((len(p2l), 1), -1)], axis=1).astype(np.int32)
        self.rows = np.arange(len(p2l))[:, None]
        self.experts = int(p2l.max()) + 1
        self.sequences = 0
        self.top_k = 0
        self.own_slots_only = True

    def add(self, one: _Pass, step: int, source: int | None) -> None:
        """Count one rank's pass, and keep of its tokens those that were drawn."""
        counts = one.file.array(one.counts).astype(np.int64)
        if counts.min() < 0:
            raise self._wrong(one, "a negative count", "counts of 0 or more", "global_physical_count")
        if one.topk is not None:
            self._add_tokens(one, one.file.array(one.topk), counts, step, source)
        if source is not None and self.own_slots_only:
            share = self.slots // max(1, len(self.tally.by_source))
            own = counts[:, source * share : (source + 1) * share]
            self.own_slots_only = bool(own.sum() == counts.sum())
        logical = np.zeros((len(counts), self.experts), np.int64)
        np.add.at(logical, (self.rows, self.logical[:, :-1]), counts)
        if logical.any():
            self.tally.add_counts(logical, step, source)

    def _add_tokens(self, one: _Pass, ids: npt.NDArray[Any], counts: Ints, step: int, source: int | None) -> None:
        if ids.size and (ids.min() < -1 or ids.max() >= self.slots):
            worst = int(ids.max()) if ids.max() >= self.slots else int(ids.min())
            expected = f"a slot from 0 to {self.slots - 1}, or -1"
            raise self._wrong(one, f"physical expert {worst}", expected, "topk_ids_of_layer")
        # Slots from 1 on, so that -1 counts as 0 and is left out.
        again = [np.bincount(of_layer.ravel() + 1, minlength=self.slots + 1)[1:] for of_layer in ids]
        if not np.array_equal(again, counts):
            raise self._wrong(one, "other counts", "the counts of topk_ids_of_layer", "global_physical_count")
        for column in range(ids.shape[2] - 1, self.top_k - 1, -1):
            if (ids[:, :, column] >= 0).any():
                self.top_k = column + 1
                break
        chosen = self.tally.next_tokens(ids.shape[1])
        physical = ids[:, chosen].transpose(1, 0, 2)
        logical = self.logical[np.arange(len(ids))[None, :, None], physical]
        sequence = self._sequences(one)
        self.tally.keep(logical, step, source, None if sequence is None else sequence[chosen])

    def _sequences(self, one: _Pass) -> Ints | None:
        """Give each token of a prefill the number of its prompt; None for decoding, whose sequences have no names."""
        lengths = one.record.get("extend_seq_lens")
        lengths = lengths.to_list() if isinstance(lengths, Integers) else lengths
        if not isinstance(lengths, list) or not all(type(length) is int and length >= 0 for length in lengths):
            return None
        if sum(lengths) != one.tokens:
            return None
        first = self.sequences
        self.sequences += len(lengths)
        return np.repeat(np.arange(first, self.sequences), lengths)

    def _wrong(self, one: _Pass, found: str, expected: str, field: str) -> Exception:
        return self.options.wrong(one.file.path, found, f"{expected} (pass {one.number})", field)


def _same_map(files: Sequence[TorchFile], options: Options) -> Ints:
    """Return the map [decoder layers, slots] of physical to logical experts that all files state."""
    first: Ints | None = None
    for file in files:
        tensor = file.content["last_physical_to_logical_map"]
        if not isinstance(tensor, StoredTensor) or not tensor.is_integer or len(tensor.shape) != 2:
            raise file.wrong("last_physical_to_logical_map that is no tensor of whole numbers [layers, slots]")
        layers, slots = tensor.shape
        if not 0 < layers <= 1000 or not 0 < slots <= _MOST_SLOTS:
            raise file.wrong(f"last_physical_to_logical_map of shape {list(tensor.shape)}")
        p2l = file.array(tensor).astype(np.int64)
        if p2l.min() < 0 or p2l.max() >= MOST_EXPERTS:
            raise options.wrong(
                file.path, f"expert {p2l.max()}", f"0 to {MOST_EXPERTS - 1}", "last_physical_to_logical_map"
            )
        if first is not None and not np.array_equal(first, p2l):
            expected = f"the map of {files[0].path.name}: files of one recording, without a rebalance between them"
            raise options.wrong(file.path, "another map", expected, "last_physical_to_logical_map")
        first = p2l
    assert first is not None
    return first


def _passes(files: Sequence[TorchFile], shape: tuple[int, ...], options: Options) -> list[_Pass]:
    """List all passes of all ranks, by pass and then by rank."""
    found: dict[tuple[int, int], _Pass] = {}
    for file in files:
        records = file.content["records"]
        if not isinstance(records, list):
            raise file.wrong("records that are no list")
        for index, record in enumerate(records):
            one = _one_pass(file, index, record, shape)
            before = found.setdefault((one.number, one.rank), one)
            if before is not one:
                what = f"pass {one.number} of rank {one.rank} a second time"
                raise options.wrong(
                    file.path, what, f"each once (first in {before.file.path.name})", f"records[{index}]"
                )
    if not found:
        raise options.wrong(files[0].path, "no records", "at least one recorded pass", "records")
    return [found[key] for key in sorted(found)]


def _one_pass(file: TorchFile, index: int, record: Any, shape: tuple[int, ...]) -> _Pass:
    if not isinstance(record, dict):
        raise file.wrong(f"records[{index}] that is no dictionary")
    number, rank = record.get("forward_pass_id"), record.get("rank")
    if type(number) is not int or type(rank) is not int or not 0 <= rank < _MOST_RANKS or number < 0:
        raise file.wrong(f"records[{index}] without the numbers of its pass and rank")
    counts, topk = record.get("global_physical_count"), record.get("topk_ids_of_layer")
    if not isinstance(counts, StoredTensor) or not counts.is_integer or counts.shape != shape:
        raise file.wrong(f"records[{index}] without global_physical_count {list(shape)}")
    if topk is not None:
        right = isinstance(topk, StoredTensor) and topk.is_integer and len(topk.shape) == 3 and 0 < topk.shape[2] <= 256
        if not right or topk.shape[0] != shape[0]:
            raise file.wrong(f"records[{index}] with topk_ids_of_layer that is no [{shape[0]}, tokens, 8]")
    return _Pass(number, rank, file, record, counts, topk)


def _every_rank_alike(passes: Sequence[_Pass], ranks: int) -> bool:
    """Whether in every pass all ranks recorded the same counts."""
    by_pass: dict[int, set[tuple[object, ...]]] = {}
    for one in passes:
        by_pass.setdefault(one.number, set()).add(one.file.fingerprint(one.counts))
    return len(passes) == ranks * len(by_pass) and all(len(prints) == 1 for prints in by_pass.values())


def _measured(passes: Sequence[_Pass], layers: int, ranks: int, notes: list[str]) -> dict[str, Ints]:
    """Add up what DeepEP measured: tokens that each source rank sent to each rank, and to each RDMA rank (node)."""
    lists = {id(one.record.get("misc_objects")): one for one in passes}
    arrays: dict[str, Ints] = {}
    for name, key in (("rank_tokens", "num_tokens_per_rank"), ("rdma_tokens", "num_tokens_per_rdma_rank")):
        rows = [row for one in lists.values() for row in _deepep_rows(one, key, layers)]
        widths = {len(values) for _, _, values in rows}
        if len(widths) == 1 and ranks * layers * max(widths) <= _MOST_MEASURED:
            arrays[name] = np.zeros((ranks, layers, *widths), np.int64)
            for rank, layer, values in rows:
                arrays[name][rank, layer] += np.array(values, np.int64)
    files = {id(one.file) for one in passes}
    if arrays and len(lists) <= len(files) < len(passes):
        notes.append(f"{' and '.join(arrays)}, measured by DeepEP, are of each file's last pass: SGLang keeps no more")
    return arrays


def _deepep_rows(one: _Pass, key: str, layers: int) -> Iterator[tuple[int, int, list[int]]]:
    """Yield source rank, layer and counts of what DeepEP reported under a key."""
    objects = one.record.get("misc_objects")
    for item in objects if isinstance(objects, list) else ():
        if not isinstance(item, dict):
            continue
        layer, values = item.get("layer_id"), item.get(key)
        values = values.to_list() if isinstance(values, Integers) else values
        if type(layer) is not int or not 0 <= layer < layers or not isinstance(values, list) or not values:
            continue
        if all(type(value) is int and 0 <= value < 2**31 for value in values):
            yield one.rank, layer, values
