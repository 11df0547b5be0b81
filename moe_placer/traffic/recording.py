"""What was recorded of the router: token by token, or as loads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

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
        Every token's choice, where the recording has it; row t is the same token in every layer.
    """

    name: str
    load: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]
    topk: npt.NDArray[np.integer] | None = None


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
        arrays = [self.mix]
        for recording in self.recordings:
            arrays += [recording.load, recording.tokens]
            if recording.topk is not None:
                arrays.append(recording.topk.astype(np.uint16))
        for array in arrays:
            digest.update(repr((array.shape, array.dtype.str)).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
