"""Counts experts' choices in bounded memory, however many tokens a recording has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake

__all__ = ["MOST_EXPERTS", "MOST_WINDOWS", "Kept", "Tally", "cut_in_steps"]

Ints = npt.NDArray[np.int64]
Ids = npt.NDArray[np.integer]

MOST_WINDOWS = 256
MOST_EXPERTS = 8192  # that an instance may have
_MOST_WINDOW_COUNTS = 32_000_000  # of 8 bytes
_MOST_SOURCE_COUNTS = 64_000_000


@dataclass
class Kept:
    """Whole tokens that are kept of a recording.

    Attributes
    ----------
    wanted : int array [tokens]
        Numbers of the tokens to keep among all of the recording, in order.
    topk, source, window, sequence : lists of arrays
        What has been kept: choices [tokens, layers, top_k], and of each token its source rank, window and sequence (-1:
        unknown).
    """

    wanted: Ints
    topk: list[Ids] = field(default_factory=list)
    source: list[Ints] = field(default_factory=list)
    window: list[Ints] = field(default_factory=list)
    sequence: list[Ints] = field(default_factory=list)


class Tally:
    """Counts of choices by layer and expert: in all, by source rank, and by window of time.

    Parameters
    ----------
    layers, experts : int
        Rows of the recording, and experts of a layer, or the least number of them where the file does not say.
    sources : int
        Ranks that recorded; 0 where the recording does not tell sources apart.
    steps : int
        Steps of the recording; more than `MOST_WINDOWS` are merged into that many windows.
    wanted : int array, optional
        Numbers of the tokens to keep, as `draw_tokens` gives them.
    """

    def __init__(self, layers: int, experts: int, *, sources: int, steps: int, wanted: Ints | None = None) -> None:
        if sources * layers * experts > _MOST_SOURCE_COUNTS:
            found = f"{sources} source ranks x {layers} layers x {experts} experts"
            raise InputError(Mistake(found, f"at most {_MOST_SOURCE_COUNTS:,} counts by source rank"))
        self.steps = steps
        self.windows = max(1, min(steps, MOST_WINDOWS, _MOST_WINDOW_COUNTS // (layers * experts)))
        self.load: Ints = np.zeros((layers, experts), np.int64)
        self.by_window: Ints = np.zeros((self.windows, layers, experts), np.int64)
        self.by_source: Ints = np.zeros((sources, layers, experts), np.int64)
        self.empty_steps = 0
        self.kept = Kept(np.zeros(0, np.int64) if wanted is None else wanted)
        self.tokens = 0

    def window_of(self, step: int) -> int:
        """Return the window that a step belongs to; windows have as many steps as each other, but for one."""
        return step * self.windows // max(1, self.steps)

    def add_counts(self, counts: npt.NDArray[Any], step: int, source: int | None = None) -> None:
        """Add counts [layers, experts] of one step."""
        self._grow(counts.shape[1])
        whole = counts.astype(np.int64)
        self.load[:, : whole.shape[1]] += whole
        self.by_window[self.window_of(step), :, : whole.shape[1]] += whole
        if source is not None and len(self.by_source):
            self.by_source[source, :, : whole.shape[1]] += whole

    def add_row(self, row: int, counts: Ints) -> None:
        """Add one layer's counts [source ranks, experts] of a recording that is a single step."""
        self.load[row] += counts.sum(axis=0)
        self.by_window[0, row] += counts.sum(axis=0)
        self.by_source[:, row] += counts

    def next_tokens(self, count: int) -> Ints:
        """Go on by so many tokens, and return which of them to `keep`: their numbers among these."""
        first, last = np.searchsorted(self.kept.wanted, (self.tokens, self.tokens + count))
        chosen = self.kept.wanted[first:last] - self.tokens
        self.tokens += count
        return chosen

    def keep(self, ids: Ids, step: int, source: int | Ints | None = None, sequence: Ints | None = None) -> None:
        """Keep tokens [tokens, layers, top_k] of one step, with the number of each one's sequence where it is known.

        Parameters
        ----------
        ids : int array
            Chosen experts [tokens, layers, top_k].
        step : int
            Step of the engine.
        source : int, int array or None
            Node or rank where the tokens started, of all or of each [tokens]; None: unknown.
        sequence : int array or None
            Number of each token's sequence [tokens]; None: unknown.
        """
        if len(ids):
            self.kept.topk.append(ids.astype(np.int16))  # ids are below MOST_EXPERTS
            self.kept.source.append(np.broadcast_to(-1 if source is None else source, len(ids)))
            self.kept.window.append(np.full(len(ids), self.window_of(step)))
            self.kept.sequence.append(np.full(len(ids), -1) if sequence is None else sequence)

    def _grow(self, experts: int) -> None:
        more = experts - self.load.shape[1]
        if more > 0:
            self.load = np.pad(self.load, ((0, 0), (0, more)))
            self.by_window = np.pad(self.by_window, ((0, 0), (0, 0), (0, more)))
            self.by_source = np.pad(self.by_source, ((0, 0), (0, 0), (0, more)))


def cut_in_steps(tokens: int, before: int, steps: int, total: int) -> Iterator[tuple[int, int, int]]:
    """Cut tokens where one of equally many steps begins: yield the step, and from and to which of them it goes.

    Parameters
    ----------
    tokens : int
        To cut.
    before : int
        Tokens of the recording before these.
    steps, total : int
        Of the whole recording: steps, and tokens.
    """
    start = 0
    while start < tokens:
        step = (before + start) * steps // total
        end = min(tokens, -(-(step + 1) * total // steps) - before)
        yield step, start, end
        start = end
