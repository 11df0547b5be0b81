"""What was recorded of the router: token by token, or as loads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_placer.traffic.stored_choices import in_blocks, is_mapped

__all__ = ["Recording", "Traffic"]


@dataclass(frozen=True, eq=False)
class Recording:
    """The routing of one domain of text.

    Attributes
    ----------
    name : str
        Where it comes from (a file's name, or ``synthetic-2``).
    load : float array [MoE layers, experts]
        How many times each expert was chosen.
    tokens : float array [MoE layers]
        How many tokens made these choices.
    topk : int array [tokens, MoE layers, top_k] or None
        Every token's choice, where the recording has it; row t is the same token in every layer. Those of a large
        recording are mapped from a file (`moe_placer.traffic.stored_choices`).
    """

    name: str
    load: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]
    topk: npt.NDArray[np.integer] | None = None

    def blocks(self) -> Iterator[npt.NDArray[np.integer]]:
        """Yield every token's choice in blocks [tokens, MoE layers, top_k]; of recordings that have choices.

        A block is good until the next is asked for.
        """
        assert self.topk is not None
        for _, ids in in_blocks(self.topk):
            yield ids

    def choices_in(self, layer: int) -> npt.NDArray[np.integer]:
        """Every token's choice in one MoE layer, counted from 0 [tokens, top_k]; of recordings that have choices."""
        assert self.topk is not None
        if not is_mapped(self.topk):
            return self.topk[:, layer]
        chosen = np.empty((len(self.topk), self.topk.shape[2]), self.topk.dtype)
        for first, ids in in_blocks(self.topk):
            chosen[first : first + len(ids)] = ids[:, layer]
        return chosen


@dataclass(frozen=True, eq=False)
class Traffic:
    """Recordings, and how each node's tokens are mixed from them.

    Attributes
    ----------
    recordings : tuple of Recording
        One per domain.
    mix : float array [nodes, recordings]
        Share of a node's tokens that are like each recording; rows sum to 1.
    """

    recordings: tuple[Recording, ...]
    mix: npt.NDArray[np.float64]

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of loads, tokens, mix and, where there, every token's choice."""
        digest = hashlib.sha256()
        _add_array(digest, self.mix)
        for recording in self.recordings:
            _add_array(digest, recording.load)
            _add_array(digest, recording.tokens)
            if recording.topk is not None:
                kind = np.dtype(np.uint16)
                digest.update(repr((recording.topk.shape, kind.str)).encode())
                for _, ids in in_blocks(recording.topk):
                    digest.update(np.ascontiguousarray(ids, kind).reshape(-1).data)
        return digest.hexdigest()


def _add_array(digest: hashlib._Hash, array: npt.NDArray[np.float64]) -> None:
    digest.update(repr((array.shape, array.dtype.str)).encode())
    digest.update(np.ascontiguousarray(array).tobytes())
