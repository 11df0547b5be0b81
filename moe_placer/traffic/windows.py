"""Recordings cut into windows of time: in the order in which their tokens were recorded."""

from __future__ import annotations

import numpy as np

from moe_placer.errors import InputError, Mistake, UsageError
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.traffic.stored_choices import count_all

__all__ = ["cut_in_windows"]


def cut_in_windows(traffic: Traffic, windows: int) -> list[Traffic]:
    """Cut recordings in the order of their tokens, each into as many parts of equal length.

    Raises
    ------
    UsageError
        Fewer than two windows.
    InputError
        A recording has no token choices, or fewer tokens than windows.
    """
    if windows < 2:
        raise UsageError(f"{windows} windows, expected 2 or more: a plan for one is measured on the next")
    parts: list[list[Recording]] = [[] for _ in range(windows)]
    for recording in traffic.recordings:
        topk = recording.topk
        if topk is None or len(topk) < windows:
            found = "no token choices (topk)" if topk is None else f"{len(topk):,} tokens"
            raise InputError(Mistake(f"{recording.name} with {found}", f"tokens in order for {windows} windows"))
        for at, rows in enumerate(np.array_split(topk, windows)):
            load = count_all(rows, recording.load.shape[1])
            tokens = np.full(len(load), float(len(rows)))
            parts[at].append(Recording(f"{recording.name}, window {at}", load, tokens, rows))
    return [Traffic(tuple(part), traffic.mix) for part in parts]
