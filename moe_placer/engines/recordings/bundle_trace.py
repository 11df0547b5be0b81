"""``sglang.moe_bundle_trace.v1``: how often tokens of each source rank chose each set of experts, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_placer.engines.recordings.import_options import Options
from moe_placer.engines.recordings.recorded import Found, Recorded, finish
from moe_placer.engines.recordings.tally import MOST_EXPERTS, Ints, Tally
from moe_placer.engines.stored_tensors import StoredTensor
from moe_placer.engines.torch_file import TorchFile
from moe_placer.traffic.stored_choices import draw_tokens

__all__ = ["is_bundle_trace", "read_bundle_trace"]

_FORMAT = "sglang.moe_bundle_trace.v1"
_LAYER_OF_GATE = re.compile(r"(?:^|\.)layers\.(\d+)(?:\.|$)")
_MOST_COUNT = 2**40
_MOST_RANKS = 4096


def is_bundle_trace(content: object) -> bool:
    """Whether a ``.pt`` file's content is such a trace."""
    return isinstance(content, dict) and content.get("format") == _FORMAT


def read_bundle_trace(files: Sequence[TorchFile], options: Options) -> Recorded:
    """Read bundles: ``source_rank`` [B], ``topk_experts`` [B, top_k], ``count`` [B] of each layer.

    Where all layers have as many tokens from each rank, bundles are written out as tokens; which token of one layer is
    which of another is not in the file, so rows say something about one layer at a time only.
    """
    file, *others = files
    if others:
        raise options.wrong(others[0].path, "a second file", "one bundle trace at a time")
    top_k, ranks, layers = file.content.get("top_k"), file.content.get("num_ranks"), file.content.get("layers")
    counted = type(ranks) is int and 1 <= ranks <= _MOST_RANKS and type(top_k) is int and 1 <= top_k <= 256
    if not counted or not isinstance(layers, list) or not 1 <= len(layers) <= 1000:
        raise file.wrong("a trace without num_ranks, top_k or layers")
    bundles = [_bundles(file, index, layer, ranks, top_k) for index, layer in enumerate(layers)]
    experts = options.experts or max(int(topk.max()) for _, topk, _ in bundles) + 1
    tokens = [np.bincount(source, count, ranks).astype(np.int64) for source, _, count in bundles]
    alike = all(np.array_equal(some, tokens[0]) for some in tokens)
    total = int(tokens[0].sum())
    tally = Tally(len(layers), experts, sources=ranks, steps=1, wanted=draw_tokens(total, options.keep_tokens))
    _count(tally, bundles, file, options)
    notes = [f"which of the {experts} experts there are is known from the largest id"] if not options.experts else []
    if alike:
        _keep(tally, bundles, total)
        notes.append("tokens of different layers are not linked: each layer's rows are in an order of their own")
    else:
        notes.append("layers have different numbers of tokens: counts are kept, single tokens are not")
    gates = [_LAYER_OF_GATE.search(str(layer.get("gate"))) for layer in layers]
    indices = tuple(int(gate[1]) for gate in gates if gate)
    known = len(indices) == len(layers) == len(set(indices))
    found = Found(
        _FORMAT,
        "sglang",
        [file.path],
        decoder_rows=False,
        experts_known=bool(options.experts),
        top_k=top_k if alike else None,
        row_layers=indices if known else None,
        notes=notes,
    )
    return finish(tally, found)


def _bundles(file: TorchFile, index: int, layer: Any, ranks: int, top_k: int) -> tuple[Ints, Ints, Ints]:
    """Return source ranks [B], experts [B, top_k] and counts [B] of a layer, checked."""
    tensors = [layer.get(key) if isinstance(layer, dict) else None for key in ("source_rank", "topk_experts", "count")]
    if not all(isinstance(tensor, StoredTensor) and tensor.is_integer for tensor in tensors):
        raise file.wrong(f"layers[{index}] without source_rank, topk_experts and count")
    source, topk, count = (file.array(tensor).astype(np.int64) for tensor in tensors if tensor is not None)
    if source.ndim != 1 or not len(source) or count.shape != source.shape or topk.shape != (len(source), top_k):
        raise file.wrong(f"layers[{index}] whose bundles and counts are not as many")
    if source.min() < 0 or source.max() >= ranks:
        raise file.wrong(f"layers[{index}] with a source rank outside 0 to {ranks - 1}")
    if topk.min() < 0 or topk.max() >= MOST_EXPERTS or (np.diff(topk, axis=1) <= 0).any():
        raise file.wrong(f"layers[{index}] with experts that are not different ids in ascending order")
    if count.min() < 1 or count.max() > _MOST_COUNT or len(source) * int(count.max()) > 2**62:
        raise file.wrong(f"layers[{index}] with a count outside 1 to {_MOST_COUNT}")
    return source, topk, count


def _count(tally: Tally, bundles: Sequence[tuple[Ints, Ints, Ints]], file: TorchFile, options: Options) -> None:
    experts, ranks = tally.load.shape[1], len(tally.by_source)
    with options.progress(len(bundles), "layers") as advance:
        for row, (source, topk, count) in enumerate(bundles):
            if int(topk.max()) >= experts:
                raise options.wrong(
                    file.path, f"expert {topk.max()}", f"less than {experts} (--experts)", f"layers[{row}]"
                )
            chosen = (source[:, None] * experts + topk).ravel()
            table = np.bincount(chosen, np.repeat(count, topk.shape[1]), ranks * experts)
            tally.add_row(row, table.reshape(ranks, experts).astype(np.int64))
            advance(1)


def _keep(tally: Tally, bundles: Sequence[tuple[Ints, Ints, Ints]], total: int) -> None:
    """Write out the drawn tokens; sorted by source, row t has the same source rank in every layer."""
    chosen = tally.next_tokens(total)
    topk, source = [], np.zeros(0, np.int64)
    for sources, experts, counts in bundles:
        order = np.argsort(sources, kind="stable")
        bundle = order[np.searchsorted(np.cumsum(counts[order]), chosen, side="right")]
        topk.append(experts[bundle])
        source = sources[bundle]
    whole = np.stack(topk, axis=1)
    for rank in np.unique(source):
        tally.keep(whole[source == rank], 0, int(rank))
