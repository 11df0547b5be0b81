"""What the tokens of a recording chose, counted anew from every token's choice."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from moe_placer.traffic.recording import Recording

__all__ = ["Counted", "count_recording"]

_IDS = 131_072  # numbers of 8 bytes in one temporary array


@dataclass(frozen=True, eq=False)
class Counted:
    """Choices of a recording.

    Attributes
    ----------
    least, most : int
        The smallest and the largest expert id.
    load : int array [layers, experts] or None
        How often each expert was chosen; None where an id is no expert's.
    """

    least: int
    most: int
    load: npt.NDArray[np.int64] | None


_known: WeakKeyDictionary[Recording, dict[int, Counted]] = WeakKeyDictionary()


def count_recording(recording: Recording, experts: int) -> Counted:
    """Count the choices of a recording that has them; those that nobody can write to, as of large ones, only once."""
    assert recording.topk is not None
    if recording.topk.flags.writeable:
        return _count(recording, experts)
    known = _known.setdefault(recording, {})
    if experts not in known:
        known[experts] = _count(recording, experts)
    return known[experts]


def _count(recording: Recording, experts: int) -> Counted:
    assert recording.topk is not None
    layers, top_k = recording.topk.shape[1:]
    load = np.zeros(layers * experts, dtype=np.int64)
    before = (np.arange(layers) * experts)[:, None]  # experts of the layers before
    step = max(1, _IDS // (layers * top_k))
    least, most = np.inf, -np.inf
    for block in recording.blocks():
        least, most = min(least, block.min()), max(most, block.max())
        if least < 0 or most >= experts:
            continue
        for first in range(0, len(block), step):
            load += np.bincount((block[first : first + step] + before).ravel(), minlength=len(load))
    outside = least < 0 or most >= experts
    return Counted(int(least), int(most), None if outside else load.reshape(layers, experts))
