"""The inter-node network in coarse spans: links are shared out anew once in a span, whatever starts and ends in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.schedule.in_flight import InFlight
from moe_placer.schedule.network import ROUNDING, Network
from moe_placer.schedule.sharing import share_out

__all__ = ["GRAIN", "CoarseNetwork", "Sharing"]

Floats = npt.NDArray[np.float64]

Sharing = Literal["exact", "fine", "coarse"]
"""When links are shared out anew: whenever a flow starts or ends; with ends within 2% of what transfers take as one
(``Network``); about 30 times in the time of a transfer (``CoarseNetwork``)."""

GRAIN = 0.03  # a span over the time that the mean transfer in flight takes in all


@dataclass(frozen=True, eq=False)
class _Shared:
    """Flows that links are to be shared out to.

    Attributes
    ----------
    flows : InFlight
    waited : float array [F]
        µs since the start of those that have had no share yet; 0 of others.
    length : float
        µs of the span, unless nothing ends in it; 0 where that is not known yet.
    """

    flows: InFlight
    waited: Floats
    length: float


@dataclass(frozen=True, eq=False)
class _Span:
    """A time, in µs, of constant rates.

    Attributes
    ----------
    start, end : float
    flows : InFlight
        At its start.
    waited : float array [F]
        µs before it for which flows get their rate too.
    rates : float array [F]
        Bytes/µs.
    ends : list of (float, int)
        When transfers end in it, and which, in order.
    asked, length : float
        µs that it was to have, and that the next one is to have.
    """

    start: float
    end: float
    flows: InFlight
    waited: Floats
    rates: Floats
    ends: list[tuple[float, int]]
    asked: float
    length: float

    def left(self, now: float) -> Floats:
        """Bytes of each flow that are not delivered by then [F]."""
        left = self.flows.left - self.rates * (now - self.start + self.waited)
        left[left <= ROUNDING * self.flows.sent] = 0.0
        return left


class CoarseNetwork(Network):
    """A `Network` whose links are shared out anew about 30 times while a transfer of the mean length is in flight.

    In between, nothing that starts or ends changes rates. What starts has its first share at the end of the span, and
    then all that it would have had since its start. Flows that end within a span are slowed down to end with it, and
    what they leave is shared out; their transfer ends when they would have by the share that their links offered. So a
    link can be asked for more than its capacity for as long as a span, and ends of transfers are off by some share of
    one, to either side (docs/network.md has how much). No byte is lost.

    Parameters
    ----------
    instance, link_factor, slowdown, record
        As of `Network`.
    grain : float
        A span over the time that the mean transfer in flight takes in all; above 0, at most 0.5.
    """

    def __init__(
        self,
        instance: Instance,
        link_factor: Mapping[str, float] | None = None,
        *,
        slowdown: float = 1.0,
        grain: float = GRAIN,
        record: bool = False,
    ) -> None:
        if not 0 < grain <= 0.5:
            raise ValueError(f"grain: {grain} is not above 0 and at most 0.5")
        super().__init__(instance, link_factor, slowdown=slowdown, record=record)
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
        rest = (span.end - self._now) / (span.end - span.start)
        after = span.left(span.end)
        left = after + rest * (span.flows.left - after)
        left[np.isin(span.flows.owner, list(self._told))] = 0.0
        return self._carried_but(span.flows.having(left), *self._waiting)

    def next_end(self, before: float = np.inf) -> tuple[float, int] | None:
        """Return when (µs) and which transfer ends next if no other starts, unless nothing ends by ``before``."""
        if self._ended:
            return self._now, self._ended[0]
        self._share_out()
        at = 0
        while at < len(self._spans):
            coming = next((end for end in self._spans[at].ends if at or end[1] not in self._told), None)
            if coming is not None:
                return coming if coming[0] <= before else None
            if self._spans[at].end > before:
                break
            at += 1
            if at == len(self._spans):
                self._look_on()
        return None

    def _until(self, now: float) -> None:
        self._move(now)
        if self.history is not None and not len(self._flows):
            self.history.note(now, self.carried)  # nothing was carried since the last end

    def _take_in(self, flows: InFlight, transfer: int) -> None:
        if not len(flows):
            self._ended.append(transfer)
            return
        first = self._spans[0] if self._spans else None
        if first is not None and first.start < self._now:  # to be shared out when the span ends, which is soon
            end = min(first.end, self._now + first.length)
            self._spans = [replace(first, end=end, ends=[one for one in first.ends if one[0] <= end])]
            self._waiting.append(flows)
            return
        if first is not None:
            self._fresh = _Shared(first.flows, first.waited, first.asked)
        before = self._fresh or _Shared(self._flows, np.zeros(0), 0.0)
        self._flows = before.flows.joined(flows)
        self._fresh = _Shared(self._flows, np.append(before.waited, np.zeros(len(flows))), before.length)
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
            self._go_on(span.end, self._spans[0].flows if self._spans else InFlight.none(len(span.flows.links)))
        if self._spans:
            due = [name for end, name in self._spans[0].ends if end <= now]
            self._ended += [name for name in due if name not in self._told]
            self._told.update(due)
        self._now = now

    def _look_on(self) -> None:
        """Add the span that follows the last one, if anything is in flight then."""
        last = self._spans[-1]
        left = last.left(last.end)
        known = {name for _, name in last.ends}
        last.ends.extend((last.end, name) for name in last.flows.over(left) if name not in known)
        left[np.isin(last.flows.owner, [name for _, name in last.ends])] = 0.0
        flows = last.flows.having(left)
        waited = np.zeros(len(flows))
        for waiting in self._waiting if len(self._spans) == 1 else ():
            flows, waited = flows.joined(waiting), np.append(waited, last.end - waiting.begun)
        if len(flows):
            self._spans.append(self._span(last.end, _Shared(flows, waited, last.length)))

    def _span(self, start: float, shared: _Shared) -> _Span:
        flows, offered = shared.flows, np.zeros(len(shared.flows))
        most = flows.left / shared.length if shared.length else None
        rates = share_out(flows.links, flows.use, self._crossings.count, most, offered=offered)
        lasts = np.maximum(flows.left / offered - shared.waited, 0.0)
        slowest = flows.slowest(lasts)
        length = self._grain * float((start - flows.begun[flows.first] + slowest).mean())
        end = start + max(float(lasts.min()), shared.length or length)
        span = _Span(start, end, flows, shared.waited, rates, [], shared.length, length)
        over = set(flows.over(span.left(end)))
        pairs = zip(flows.transfers, (start + slowest).tolist(), strict=True)
        span.ends.extend(sorted((min(last, end), name) for name, last in pairs if name in over))
        return span
