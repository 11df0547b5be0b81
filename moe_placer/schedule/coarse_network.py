"""The inter-node network in coarse spans: links are shared out anew once in a span, whatever starts and ends in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.schedule.in_flight import InFlight
from moe_placer.schedule.network import Network
from moe_placer.schedule.sharing import share_out

__all__ = ["GRAIN", "CoarseNetwork", "Sharing"]

Floats = npt.NDArray[np.float64]

Sharing = Literal["exact", "fine", "coarse"]
"""When links are shared out anew: whenever a flow starts or ends; with ends within 2% of what transfers take as one
(``Network``); in spans of 1% to 10% of what a transfer takes (``CoarseNetwork``)."""

GRAIN = 0.01  # of a transfer's time: how soon links are shared out anew after a start, and around ends of transfers
_LONGEST = 0.1  # likewise: a span in which no transfer starts or ends


@dataclass(frozen=True, eq=False)
class _Shared:
    """Flows that links are to be shared out to.

    Attributes
    ----------
    flows : InFlight
    waited : float array [F] or None
        µs from the start of those that have had no share yet to that of the span, which may be before; 0 of others.
        None where it is 0 of all.
    told : set of int
        Transfers whose ends are told already, although they have bytes left.
    length : float
        µs of the span, unless nothing ends in it; 0 where that is not known yet.
    earliest : float
        µs; nothing is told to end before.
    """

    flows: InFlight
    waited: Floats | None
    told: frozenset[int]
    length: float
    earliest: float


@dataclass(frozen=True, eq=False)
class _Span:
    """A time, in µs, of constant rates.

    Attributes
    ----------
    start, end : float
    shared : _Shared
        At its start.
    rates : float array [F]
        Bytes/µs.
    ends : list of (float, int)
        When transfers end in it, and which, in order.
    length, soon : float
        µs that the next span is to have, and at most from a start within this one to its end.
    known : dict
        What `left` has found out.
    """

    start: float
    end: float
    shared: _Shared
    rates: Floats
    ends: list[tuple[float, int]]
    length: float
    soon: float
    known: dict[float, Floats] = field(default_factory=dict)

    def left(self, now: float) -> Floats:
        """Bytes of each flow that are not delivered by then [F]."""
        if now not in self.known:
            flows, waited, passed = self.shared.flows, self.shared.waited, now - self.start
            left = flows.left - self.rates * (passed if waited is None else np.maximum(passed + waited, 0.0))
            left[left <= flows.amounts[1]] = 0.0
            self.known[now] = left
        return self.known[now]


class CoarseNetwork(Network):
    """A `Network` whose links are shared out anew in spans of 1% to 10% of the time that the mean transfer takes.

    In between, nothing that starts or ends changes rates. A span is short where transfers end, and is over soon after
    one starts. What starts in it has its share when it ends, and links are then taken to be shared out from the mean of
    these starts on: what starts later or earlier than that has less or more, in all as much as links can carry. Flows
    that end within a span are slowed down to end with it, and what they leave is shared out; their transfer ends when
    it would have by the share that its links offered. So ends of transfers are off by some share of a span, to either
    side (docs/network.md has how much). No byte is lost.

    Parameters
    ----------
    instance, link_factor, slowdown
        As of `Network`.
    grain : float
        The shortest span over the time that the mean transfer in flight takes in all; above 0, at most 0.1.
    """

    def __init__(
        self,
        instance: Instance,
        link_factor: Mapping[str, float] | None = None,
        *,
        slowdown: float = 1.0,
        grain: float = GRAIN,
    ) -> None:
        if not 0 < grain <= _LONGEST:
            raise ValueError(f"grain: {grain} is not above 0 and at most {_LONGEST}")
        super().__init__(instance, link_factor, slowdown=slowdown)
        self._grain = grain
        self._spans: list[_Span] = []  # from the one that time is in to the last that was asked for
        self._fresh: _Shared | None = None  # what is to be shared out from now on, instead of a first span
        self._waiting: list[InFlight] = []  # for the end of the first span
        self._told: set[int] = set()  # transfers that ended in the first span, and were reported

    @property
    def carried(self) -> Floats:
        """Bytes that each link has carried so far [K]: all of transfers that ended, of others evenly within a span."""
        if not self._spans:
            return self._carried_but(self._flows)
        span = self._spans[0]
        flows, after = span.shared.flows, span.left(span.end)
        left = after + (span.end - self._now) / (span.end - span.start) * (flows.left - after)
        left[np.isin(flows.owner, [*self._told, *span.shared.told])] = 0.0
        return self._carried_but(flows.having(left), *self._waiting)

    def next_end(self, before: float = np.inf) -> tuple[float, int] | None:
        """Return when (µs) and which transfer ends next if no other starts, unless nothing ends by ``before``."""
        if self._ended:
            return self._now, self._ended[0]
        self._share_out()
        at = 0
        while at < len(self._spans):
            coming = next((end for end in self._spans[at].ends if at or end[1] not in self._told), None)
            if coming is not None:
                return coming
            if self._spans[at].end > before:
                break
            at += 1
            if at == len(self._spans):
                self._look_on()
        return None

    def _until(self, now: float) -> None:
        self._move(now)

    def _take_in(self, flows: InFlight, transfer: int) -> None:
        if not len(flows):
            self._ended.append(transfer)
            return
        first = self._spans[0] if self._spans else None
        if first is not None and first.start < self._now:  # to be shared out when the span ends, which is soon
            end = min(first.end, self._now + first.soon)
            self._spans = [replace(first, end=end, ends=[one for one in first.ends if one[0] <= end])]
            self._waiting.append(flows)
            return
        before = first.shared if first is not None else self._fresh
        if before is None:
            before = _Shared(self._flows, None, frozenset(), 0.0, self._now)
        waited = before.waited if before.waited is None else np.append(before.waited, np.zeros(len(flows)))
        self._fresh = replace(before, flows=before.flows.joined(flows), waited=waited)
        self._spans.clear()

    def _share_out(self) -> None:
        """Begin the first span, with all that starts together."""
        if self._fresh is not None:
            self._spans, self._fresh = [self._span(self._now, self._fresh)], None

    def _move(self, now: float) -> None:
        if not now >= self._now:
            raise ValueError(f"time runs forwards: {now} µs is before {self._now} µs")
        if now > self._now:
            self._share_out()
        while self._spans and self._spans[0].end <= now:
            if len(self._spans) == 1:
                self._look_on()
            span = self._spans.pop(0)
            self._ended += [name for _, name in span.ends if name not in self._told]
            self._told.clear()
            self._waiting.clear()
        if self._spans:
            due = [name for end, name in self._spans[0].ends if end <= now]
            self._ended += [name for name in due if name not in self._told]
            self._told.update(due)
        self._now = now

    def _look_on(self) -> None:
        """Add the span that follows the last one, if anything is in flight then."""
        last, waiting = self._spans[-1], self._waiting if len(self._spans) == 1 else []
        start, waited, late = last.end, None, []
        if waiting:
            began = [float(flows.begun[0]) for flows in waiting]
            start = max(last.start, float(np.add.reduce(began) / len(began)))
        left, told = last.left(start), last.shared.told.union(name for _, name in last.ends)
        flows = last.shared.flows.having(left)
        if waiting:
            late = [name for name in last.shared.flows.over(left) if name not in told]
            last.ends.extend((last.end, name) for name in late)
            waited = np.concatenate([np.zeros(len(flows)), *(start - some.amounts[0] for some in waiting)])
            flows = flows.joined(*waiting)
        if len(flows):
            if told or late:
                told = told.union(late).intersection(flows.transfers)
            length = (last.soon if waiting else last.length) + last.end - start  # what starts may end soon
            self._spans.append(self._span(start, _Shared(flows, waited, told, length, last.end)))

    def _span(self, start: float, shared: _Shared) -> _Span:
        flows, offered, waited = shared.flows, np.zeros(len(shared.flows)), shared.waited
        length = shared.length if waited is None else shared.length + waited
        most = flows.left / length if shared.length else None
        rates = share_out(flows.links, flows.use, self._crossings.count, most, offered=offered)
        lasts = flows.left / offered
        if waited is not None:
            lasts -= waited
        slowest = np.maximum(flows.slowest(lasts), shared.earliest - start)
        whole = float(np.add.reduce(start - flows.begun + slowest) / len(slowest))
        soon = self._grain * whole
        end = max(start + max(float(np.minimum.reduce(lasts)), shared.length or soon), shared.earliest)
        pairs = zip((start + slowest).tolist(), flows.transfers, strict=True)
        coming = sorted((last, name) for last, name in pairs if name not in shared.told)
        later = next((last - end for last, _ in coming if last > end), 0.0)  # to the next end of a transfer
        span = _Span(start, end, shared, rates, [], min(max(later, soon), _LONGEST * whole), soon)
        if over := flows.over(span.left(end)):
            span.ends.extend((min(last, end), name) for last, name in coming if name in over)
        return span
