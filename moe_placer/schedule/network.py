"""The inter-node network as a fluid: what is in flight shares every link max-min fairly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.errors import InputError, Mistake
from moe_placer.fabric import Routes, link_bandwidths, node_routes, routes_between
from moe_placer.instance import Instance
from moe_placer.instance.sizes import GB
from moe_placer.schedule.history import History
from moe_placer.schedule.nic_ends import Ends, NicEnds
from moe_placer.schedule.sharing import Crossings, max_min_rates

__all__ = ["Network"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_US = 1e6  # µs in a second
_ROUNDING = 1e-9  # a flow has ended when no more than this share of its bytes is left


@dataclass(frozen=True, eq=False)
class _Span:
    """A time, in µs, of constant rates, the bytes of each flow [flows] left before and after, and what ends with it.

    ``ahead`` is the time after it that a share of may be off.
    """

    start: float
    end: float
    before: Floats
    after: Floats
    over: list[int]
    ahead: float


class Network:
    """Transfers between nodes, each an all-to-all of a flow or more per pair, that end when their last flow has.

    Every flow of a node pair is split over the pair's shortest paths as `compile_routes` says; flows of different
    transfers between the same nodes are flows of their own, and where NICs receive for single GPUs, so are those to or
    from different NICs of experts. Rates change only where a flow starts or ends, which is
    hundreds of times in a transfer; so flows that end within a short span are slowed down to end with it, and what they
    leave is shared among the others. Links are never above their capacity, no byte is lost, and a span is over where
    a transfer ends.

    Parameters
    ----------
    instance : Instance
        Its fabric is used, at ``link_utilization``.
    link_factor : mapping, optional
        Link name to what its bandwidth is multiplied with: 0.5 is a link at half speed.
    routes : Routes, optional
        Those of the instance, where they are already compiled.
    slowdown : float
        How many times as long all links take, as computation beside them makes them (`Timing.stretch`).
    tolerance : float
        Span over what the mean transfer has left, or over all the time of the shortest one in flight where that is
        less; from 0 (exact max-min fairness) to 0.5.
    record : bool
        Keep what every link carried over time, in ``history``.

    Raises
    ------
    InputError
        A factor of a link that does not exist, or one that is not above 0.
    ValueError
        ``tolerance`` out of its range.

    Attributes
    ----------
    routes : Routes
        Between nodes.
    nics : NicEnds or None
        NICs at the ends of transfers, where they receive for single GPUs.
    links : tuple of str
        Those of ``routes``, then those of ``nics``.
    capacity : float array [K]
        Bytes/µs of each link.
    history : History or None
    """

    def __init__(
        self,
        instance: Instance,
        link_factor: Mapping[str, float] | None = None,
        *,
        routes: Routes | None = None,
        slowdown: float = 1.0,
        tolerance: float = 0.02,
        record: bool = False,
    ) -> None:
        if not 0 <= tolerance <= 0.5:
            raise ValueError(f"tolerance: {tolerance} is not from 0 to 0.5")
        nodes = instance.cluster.nodes
        self.nics = NicEnds.of(instance)
        if routes is None:  # with NICs, but where these have their own place at the ends
            routes = node_routes(instance) if self.nics is None else routes_between(instance)
        self.routes = routes
        self.links = routes.links + (() if self.nics is None else self.nics.names)
        speeds = link_bandwidths(instance, self.links[len(routes.links) :])
        usable = instance.cluster.fabric.link_utilization * _factors(self.links, link_factor or {})
        self.capacity: Floats = np.append(routes.bandwidth, speeds) * usable * GB / _US / slowdown
        self._shape = (nodes, nodes)
        self._tolerance = tolerance
        self._paths = np.flatnonzero(~np.eye(nodes, dtype=bool))
        self._shares = sparse.csr_array(self.routes.shares[:, self._paths])
        of_routes, more = self.capacity[: len(routes.links)], 0 if self.nics is None else self.nics.groups
        self._crossings = Crossings.compile(self._shares, of_routes, more)
        self._of_groups = np.zeros(0) if self.nics is None else self.nics.by_group(self.capacity[len(routes.links) :])
        self._now, self._started = 0.0, 0
        self._ids: list[int] = []  # of the transfers in flight
        self._begun: list[float] = []  # when each transfer started
        # Their flows: id, path, bytes in all and left.
        self._owner, self._path = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self._sent, self._left = np.zeros(0), np.zeros(0)
        self._carried = np.zeros(len(self._paths))  # by every path
        ends = 0 if self.nics is None else 1 + self.nics.ports
        self._end = np.zeros((0, ends), dtype=np.int64)  # NIC groups of flows
        self._part = np.zeros(0) if self.nics is None else self.nics.use  # of a flow, by each of its groups
        self._passed = np.zeros(more)  # by every group of NICs
        self.history = History(len(self.capacity)) if record else None
        self._ahead: list[_Span] = []  # from now to the next end
        self._ended: list[int] = []  # not yet reported

    @property
    def carried(self) -> Floats:
        """Bytes that each link has carried so far [K]."""
        self._settle()
        return self._carried_by_link()

    def start(self, now: float, sent: Floats, ends: Ends | None = None) -> int:
        """Start a transfer; what has ended by then, the next `advance` reports.

        Parameters
        ----------
        now : float
            µs; time runs forwards.
        sent : float array [N, N]
            Bytes from node s to node d; the diagonal is ignored.
        ends : Ends, optional
            NICs between the one node that sends and each node (`NicEnds`), for all transfers or for none.

        Returns
        -------
        int
            The transfer's id: 0, 1, ... in the order of starts.

        Raises
        ------
        ValueError
            A time in the past, another shape, or bytes that are negative or not finite.
        """
        if np.shape(sent) != self._shape:
            raise ValueError(f"bytes of shape {np.shape(sent)}, not {self._shape} [nodes, nodes]")
        flows = np.asarray(sent, dtype=np.float64).ravel()[self._paths]
        if not (np.isfinite(flows) & (flows >= 0)).all():
            raise ValueError("bytes must be finite and not negative")
        if now != self._now:  # what starts together is shared out once
            self._move(now)
        self._settle()
        if self.history is not None and not self._ids:
            self.history.note(now, self._carried_by_link())  # nothing was carried since the last end
        path = np.flatnonzero(flows)
        size = flows[path]
        if ends is not None:
            row, share, crossed = ends.flows(self._paths[path] % self._shape[1])
            path, size = path[row], size[row] * share
            self._end = np.vstack([self._end, crossed])
        self._owner = np.append(self._owner, np.full(len(path), self._started))
        self._path = np.append(self._path, path)
        self._sent, self._left = np.append(self._sent, size), np.append(self._left, size)
        self._ahead.clear()
        self._ids.append(self._started)
        self._begun.append(now)
        self._started += 1
        return self._ids[-1]

    def next_end(self, before: float = np.inf) -> tuple[float, int] | None:
        """Return when (µs) and which transfer ends next if no other starts.

        None where nothing is in flight, or nothing ends by ``before`` (which need not be looked beyond).
        """
        if self._ended:
            return self._now, self._ended[0]
        if not self._ids:
            return None
        last = self._look_ahead(before)[-1]
        return (last.end, last.over[0]) if last.over else None

    def advance(self, now: float) -> list[int]:
        """Move time on to ``now`` (µs) and return the ids of transfers that have ended, in the order of their ends."""
        self._move(now)
        ended, self._ended = self._ended, []
        return ended

    def _move(self, now: float) -> None:
        if not now >= self._now:
            raise ValueError(f"time runs forwards: {now} µs is before {self._now} µs")
        while self._ids:
            span = self._look_ahead(now)[0]
            if span.end > now:
                break
            self._deliver(self._left - span.after, span.end)
            self._now, self._left = span.end, span.after
            del self._ahead[0]
            self._drop(span.over)
        self._now = now

    def _settle(self) -> None:
        """Cut the span that time is in: what it has delivered by now, and its rest."""
        if self._ahead and self._ahead[0].start < self._now:
            span, now = self._ahead[0], self._now
            rest = (span.end - now) / (span.end - span.start)
            left = span.after + rest * (span.before - span.after)
            self._deliver(self._left - left, now)
            self._left = left
            self._ahead[0] = _Span(now, span.end, left, span.after, span.over, span.ahead)

    def _deliver(self, sent: Floats, until: float) -> None:
        self._carried += np.bincount(self._path, sent, len(self._paths))
        if self._end.size:
            passed = (sent[:, None] * self._part).ravel()
            self._passed += np.bincount(self._end.ravel(), passed, len(self._passed))
        if self.history is not None:
            self.history.note(until, self._carried_by_link())

    def _carried_by_link(self) -> Floats:
        carried = np.asarray(self._shares @ self._carried)
        return carried if self.nics is None else np.append(carried, self.nics.by_nic(self._passed))

    def _over(self, left: Floats) -> list[int]:
        """Return the transfers of which nothing is left."""
        first, last = self._ids[0], self._ids[-1]
        going = np.bincount(self._owner[left > 0] - first, minlength=last - first + 1)
        return [name for name in self._ids if not going[name - first]]

    def _drop(self, over: list[int]) -> None:
        if over:
            self._ended += over
            self._ids = [name for name in self._ids if name not in over]
            going = ~np.isin(self._owner, over)
            self._owner, self._path = self._owner[going], self._path[going]
            self._sent, self._left = self._sent[going], self._left[going]
            if self._end.size:
                self._end = self._end[going]

    def _look_ahead(self, until: float) -> list[_Span]:
        """Return the spans from now to the next end of a transfer, or to the first that ends after ``until``."""
        if not self._ahead:
            now, left = self._now, self._left
            empty = self._over(left)  # transfers without bytes end at once
            self._ahead.append(_Span(now, now, left, left, empty, 0.0) if empty else self._next_span(now, left, 0.0))
        while (last := self._ahead[-1]).end <= until and not last.over:
            self._ahead.append(self._next_span(last.end, last.after, self._tolerance * last.ahead))
        return self._ahead

    def _next_span(self, now: float, left: Floats, length: float) -> _Span:
        """Return the span that begins now.

        Where no flow ends within ``length``, the span is over with the first that does; 0 is for a length not known.
        """
        going = np.flatnonzero(left)
        paths, bytes_left, owner = self._path[going], left[going], self._owner[going]
        own = self._own(going)
        if length:
            rates = max_min_rates(self._crossings, paths, bytes_left / length, own)
            length, next_end, time = self._ends(now, bytes_left / rates, owner)
        if not length or next_end <= length * (1 + _ROUNDING):  # a transfer ends, and not slowed down
            rates = max_min_rates(self._crossings, paths, None, own)
            first, next_end, time = self._ends(now, bytes_left / rates, owner)
            length = min(max(first, self._tolerance * time), next_end)
            if length > first:
                rates = max_min_rates(self._crossings, paths, bytes_left / length, own)
        rest = bytes_left - rates * length
        rest[rest <= _ROUNDING * self._sent[going]] = 0.0
        after = np.zeros_like(left)
        after[going] = rest
        return _Span(now, now + length, left, after, self._over(after), max(0.0, time - length))

    def _own(self, going: Ints) -> tuple[Ints, Floats] | None:
        """Return the NIC groups that flows cross, numbered behind the links of routes, and their use of these."""
        if not self._end.size:
            return None
        end = self._end[going]
        return self._crossings.count - len(self._of_groups) + end, self._part / self._of_groups[end]

    def _ends(self, now: float, lasts: Floats, owner: Ints) -> tuple[float, float, float]:
        """Return when the first flow and the first transfer end, and the time that may be off by a share.

        That is what the mean transfer has left, but no more than the shortest one takes in all: where many are in
        flight, some end is always near.
        """
        slowest = np.zeros(self._ids[-1] - self._ids[0] + 1)
        np.maximum.at(slowest, owner - self._ids[0], lasts)
        going = slowest > 0
        slowest, begun = slowest[going], np.array(self._begun[self._ids[0] : self._ids[-1] + 1])[going]
        shortest = float((now - begun + slowest).min())
        return float(lasts.min()), float(slowest.min()), min(float(slowest.mean()), shortest)


def _factors(links: tuple[str, ...], given: Mapping[str, float]) -> Floats:
    index = {name: k for k, name in enumerate(links)}
    expected = f"a link of the fabric, like {links[0]}" if links else "nothing: this fabric has no links"
    mistakes = [Mistake(name, expected, "link_factor") for name in given if name not in index]
    mistakes += [
        Mistake(str(factor), "a number above 0", f"link_factor[{name}]")
        for name, factor in given.items()
        if not 0 < factor < np.inf
    ]
    if mistakes:
        raise InputError(mistakes)
    factors = np.ones(len(links))
    for name, factor in given.items():
        factors[index[name]] = factor
    return factors
