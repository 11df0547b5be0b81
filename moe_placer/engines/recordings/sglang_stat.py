"""SGLang's recorder in the modes ``stat`` and ``stat_approx``: counts by step, summed over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_placer.engines.recordings.import_options import Options
from moe_placer.engines.recordings.recorded import Found, Recorded, finish
from moe_placer.engines.recordings.tally import MOST_EXPERTS, Tally
from moe_placer.engines.stored_tensors import StoredTensor
from moe_placer.engines.torch_file import TorchFile

__all__ = ["is_stat", "read_stat"]

_TITLE = "SGLang expert distribution, mode stat"


def is_stat(content: object) -> bool:
    """Whether a ``.pt`` file's content is such a recording."""
    return isinstance(content, dict) and "logical_count" in content


def read_stat(files: Sequence[TorchFile], options: Options) -> Recorded:
    """Read ``logical_count`` [steps, decoder layers, experts] of each file; the steps follow one another.

    Steps of the recorder's buffer that were never filled are all zero, and so are dense layers.
    """
    tensors = [_counts(file) for file in files]
    layers, experts = tensors[0].shape[1:]
    for file, tensor in zip(files, tensors, strict=True):
        if tensor.shape[1:] != (layers, experts):
            shapes = f"{list(tensor.shape[1:])} layers and experts"
            raise options.wrong(file.path, shapes, f"[{layers}, {experts}] as in {files[0].path.name}", "logical_count")
    steps = sum(tensor.shape[0] for tensor in tensors)
    tally = Tally(layers, experts, sources=0, steps=steps)
    step = 0
    with options.progress(sum(tensor.values for tensor in tensors), "counts") as advance:
        for file, tensor in zip(files, tensors, strict=True):
            for counts in file.array(tensor):
                _add(tally, counts, step, options, file.path)
                step += 1
                advance(counts.size)
    notes = ("counts are summed over ranks: which rank a token started on is not recorded",)
    return finish(tally, Found(_TITLE, "sglang", [file.path for file in files], decoder_rows=True, notes=notes))


def _counts(file: TorchFile) -> StoredTensor:
    tensor = file.content["logical_count"]
    if not isinstance(tensor, StoredTensor) or not tensor.is_integer or len(tensor.shape) not in {2, 3}:
        raise file.wrong("logical_count that is no tensor of whole numbers [steps, layers, experts]")
    if len(tensor.shape) == 2:  # one step
        shape, strides = (1, *tensor.shape), (0, *tensor.strides)
        tensor = StoredTensor(tensor.storage, tensor.dtype, tensor.values, tensor.offset, shape, strides)
    if 0 in tensor.shape or tensor.shape[1] > 1000 or tensor.shape[2] > MOST_EXPERTS:
        raise file.wrong(f"logical_count of shape {list(tensor.shape)}")
    return tensor


def _add(tally: Tally, counts: np.ndarray, step: int, options: Options, file: Path) -> None:
    if counts.min() < 0:
        layer, expert = map(int, np.argwhere(counts < 0)[0])
        raise options.wrong(
            file, f"{counts[layer, expert]}", "a count of 0 or more", f"logical_count[{step}, {layer}, {expert}]"
        )
    if counts.any():
        tally.add_counts(counts, step)
    else:
        tally.empty_steps += 1
