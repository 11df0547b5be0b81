"""The sets of experts that tokens choose, where recordings have every token's choice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_placer.traffic.recording import Traffic

__all__ = ["TokenSets", "token_sets"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Ids = npt.NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class TokenSets:
    """The sets of experts that one layer's tokens choose, each once per file.

    Attributes
    ----------
    choice : int array [classes, top_k]
        Experts, in ascending order.
    file : int array [classes]
        The recording that the class is from; classes are in its order.
    count : int array [classes]
        Tokens of the recording with this set.
    tokens : int array [files]
        Tokens of each recording.
    experts : int
        Of the layer, chosen or not.
    """

    choice: Ids
    file: Ints
    count: Ints
    tokens: Ints
    experts: int

    @cached_property
    def weight(self) -> Floats:
        """Share of its file's tokens that each class is [classes]."""
        return np.asarray(self.count / self.tokens[self.file])


def token_sets(traffic: Traffic, index: int, experts: int) -> TokenSets:
    """Compress the index-th MoE layer of recordings that have every token's choice."""
    choices, files, counts = [], [], []
    for number, recording in enumerate(traffic.recordings):
        assert recording.topk is not None
        chosen = np.sort(recording.topk[:, index], axis=1)
        distinct, count = np.unique(chosen, axis=0, return_counts=True)
        choices.append(distinct)
        files.append(np.full(len(distinct), number, dtype=np.int64))
        counts.append(count.astype(np.int64))
    total = np.array([count.sum() for count in counts], dtype=np.int64)
    return TokenSets(np.concatenate(choices), np.concatenate(files), np.concatenate(counts), total, experts)
