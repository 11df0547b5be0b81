"""The sample of a recording's tokens that an instance asks for (``traffic.sample_tokens``), in place of all tokens."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.traffic.recording import Recording
from moe_placer.traffic.stored_choices import KeptChoices, count_all, draw_tokens, in_blocks

__all__ = ["leave_out_others", "sample"]

Ints = npt.NDArray[np.int64]


def sample(recording: Recording, instance: Instance) -> Recording:
    """Return the tokens that the instance keeps of a recording, in order, with counts of these alone."""
    topk, most = recording.topk, getattr(instance.traffic, "sample_tokens", None)
    if topk is None or most is None or most >= len(topk):
        return recording
    numbers = draw_tokens(len(topk), most)
    kept, at = KeptChoices((most, *topk.shape[1:]), topk.dtype), 0
    for first, ids in in_blocks(topk):
        mine = numbers[slice(*np.searchsorted(numbers, (first, first + len(ids))))] - first
        kept.write(at * math.prod(topk.shape[1:]), ids[mine])
        at += len(mine)
    drawn = kept.whole()
    name = f"{recording.name}, {most:,} of {len(topk):,} tokens"
    load = count_all(drawn, recording.load.shape[1])
    return Recording(name, load, np.full(len(load), float(most)), drawn)


def leave_out_others(group: Ints, instance: Instance) -> Ints:
    """Return the group of each of a recording's tokens, and -1 for those that the instance does not keep."""
    most = getattr(instance.traffic, "sample_tokens", None)
    if most is None or most >= len(group):
        return group
    drawn = draw_tokens(len(group), most)
    left = np.full(len(group), -1, dtype=np.int64)
    left[drawn] = group[drawn]
    return left
