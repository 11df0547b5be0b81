"""The inter-node network as a fluid: what is in flight shares every link max-min fairly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.errors import InputError, Mistake
from moe_placer.fabric import Routes, link_bandwidths, node_routes, routes_between
from moe_placer.instance import Instance
from moe_placer.instance.sizes import GB
from moe_placer.schedule.history import History
from moe_placer.schedule.in_flight import ROUNDING, InFlight
from moe_placer.schedule.nic_ends import Ends, NicEnds
from moe_placer.schedule.sharing import Crossings, share_out

__all__ = ["Network"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_US = 1e6  # µs in a second


@dataclass(frozen=True, eq=False)
class _Span:
    """A time, in µs, of constant rates: the flows at its start, what each has left at its end, and what ends with it.

    ``ahead`` is the time after it that a share of may be off.
    """

    start: float
    end: float
    before: InFlight
    left: Floats
    over: list[int]
    ahead: float

    @cached_property
    def after(self) -> InFlight:
        """Flows that are not over at its end."""
        return self.before.having(self.left)


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
        self._part = np.zeros(0) if self.nics is None else self.nics.use  # of a flow, by each NIC group that it crosses
        self._now, self._started = 0.0, 0
        self._ids: list[int] = []  # of the transfers in flight
        self._flows = InFlight.none(len(self._crossings.links) + len(self._part))
        self._by_path, self._by_group = np.zeros(len(self._paths)), np.zeros(more)  # bytes of all that has started
        self.history = History(len(self.capacity)) if record else None
        self._ahead: list[_Span] = []  # from now to the next end
        self._ended: list[int] = []  # not yet reported

    @property
    def carried(self) -> Floats:
        """Bytes that each link has carried so far [K]."""
        self._settle()
        return self._carried_but(self._flows)

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
        return self._begin(
            now, np.asarray(sent, dtype=np.float64).ravel()[self._paths], np.arange(len(self._paths)), ends
        )

    def send(self, now: float, home: int, sent: Floats, ends: Ends | None = None) -> int:
        """Start a transfer of one node to all others; otherwise as `start`.

        Parameters
        ----------
        now : float
            µs; time runs forwards.
        home : int
            The node that sends.
        sent : float array [N]
            Bytes to each node; those to itself are ignored.
        ends : Ends, optional
            NICs between this node and each other one, for all transfers or for none.
        """
        others = np.concatenate([sent[:home], sent[home + 1 :]])
        return self._begin(now, others, np.arange(home * len(others), (home + 1) * len(others)), ends)

    def _begin(self, now: float, size: Floats, path: Ints, ends: Ends | None) -> int:
        if len(size) and not 0 <= np.minimum.reduce(size) <= np.maximum.reduce(size) < np.inf:  # nan is neither
            raise ValueError("bytes must be finite and not negative")
        self._until(now)
        some, crossed = size.nonzero()[0], None
        if len(some) < len(size):
            path, size = path[some], size[some]
        if ends is None:  # a flow for each path
            self._by_path[path] += size
        else:
            row, share, crossed = ends.flows(self._paths[path] % self._shape[1])
            path, size = path[row], size[row] * share
            np.add.at(self._by_path, path, size)
        transfer, self._started = self._started, self._started + 1
        self._take_in(self._flow(now, transfer, path, size, crossed), transfer)
        return transfer

    def _until(self, now: float) -> None:
        """Let everything flow until a transfer starts."""
        if now != self._now:  # what starts together is shared out once
            self._move(now)
        self._settle()
        if self.history is not None and not self._ids:
            self.history.note(now, self._carried_but(self._flows))  # nothing was carried since the last end

    def _take_in(self, flows: InFlight, transfer: int) -> None:
        """Take flows into what is in flight, of a transfer that starts now."""
        self._flows = self._flows.joined(flows)
        self._ahead.clear()
        self._ids.append(transfer)

    def _flow(self, now: float, transfer: int, path: Ints, size: Floats, crossed: Ints | None) -> InFlight:
        """Return the flows of a transfer that starts; ``crossed`` are the NIC groups of each [F, E]."""
        links, use = self._crossings.links.take(path, axis=1), self._crossings.use.take(path, axis=1)
        if crossed is not None:
            self._by_group += self._by_groups(crossed.T, size)
            links = np.vstack([links, crossed.T + self._first_group])
            use = np.vstack([use, (self._part / self._of_groups[crossed]).T])
        return InFlight.of_transfer(transfer, now, path, size, links, use)

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
            self._go_on(span.end, span.after)
            del self._ahead[0]
            if span.over:
                self._ended += span.over
                self._ids = [name for name in self._ids if name not in span.over]
        self._now = now

    def _go_on(self, now: float, flows: InFlight) -> None:
        """Take what is in flight at a time."""
        self._now, self._flows = now, flows
        if self.history is not None:
            self.history.note(now, self._carried_but(flows))

    def _settle(self) -> None:
        """Cut the span that time is in: what it has delivered by now, and its rest."""
        if self._ahead and self._ahead[0].start < self._now:
            span, now = self._ahead[0], self._now
            rest = (span.end - now) / (span.end - span.start)
            flows = span.before.with_left(span.left + rest * (span.before.left - span.left))
            self._ahead[0] = _Span(now, span.end, flows, span.left, span.over, span.ahead)
            self._go_on(now, flows)

    @property
    def _first_group(self) -> int:
        """The number of the first NIC group, behind the links of routes."""
        return self._crossings.count - len(self._by_group)

    def _by_groups(self, crossed: Ints, size: Floats) -> Floats:
        """Bytes that each NIC group carries of flows [F] that cross some [E, F]."""
        passed = (self._part[:, None] * size).ravel()
        return np.bincount(crossed.ravel(), passed, len(self._by_group)).astype(np.float64)

    def _carried_but(self, *in_flight: InFlight) -> Floats:
        """Bytes that each link has carried: of all that has started, but what some flows have left."""
        paths, groups = self._by_path.copy(), self._by_group.copy()
        for flows in in_flight:
            paths -= np.bincount(flows.path, flows.left, len(paths))
            if len(groups) and len(flows):
                crossed = flows.links[len(self._crossings.links) :] - self._first_group
                groups -= self._by_groups(crossed, flows.left)
        carried = np.asarray(self._shares @ paths)
        return carried if self.nics is None else np.append(carried, self.nics.by_nic(groups))

    def _look_ahead(self, until: float) -> list[_Span]:
        """Return the spans from now to the next end of a transfer, or to the first that ends after ``until``."""
        if not self._ahead:
            now, flows = self._now, self._flows
            if len(flows.transfers) < len(self._ids):  # transfers without bytes end at once
                empty = [name for name in self._ids if name not in flows.transfers]
                self._ahead.append(_Span(now, now, flows, flows.left, empty, 0.0))
            else:
                self._ahead.append(self._next_span(now, flows, 0.0))
        while (last := self._ahead[-1]).end <= until and not last.over:
            self._ahead.append(self._next_span(last.end, last.after, self._tolerance * last.ahead))
        return self._ahead

    def _next_span(self, now: float, flows: InFlight, length: float) -> _Span:
        """Return the span that begins now.

        Where no flow ends within ``length``, the span is over with the first that does; 0 is for a length not known.
        """
        if length:
            rates = self._rates(flows, flows.left / length)
            length, next_end, time = _ends(now, flows, rates)
        if not length or next_end <= length * (1 + ROUNDING):  # a transfer ends, and not slowed down
            rates = self._rates(flows)
            first, next_end, time = _ends(now, flows, rates)
            length = min(max(first, self._tolerance * time), next_end)
            if length > first:
                rates = self._rates(flows, flows.left / length)
        left = flows.left - rates * length
        left[left <= flows.amounts[1]] = 0.0
        return _Span(now, now + length, flows, left, flows.over(left), max(0.0, time - length))

    def _rates(self, flows: InFlight, ceilings: Floats | None = None) -> Floats:
        return share_out(flows.links, flows.use, self._crossings.count, ceilings)


def _ends(now: float, flows: InFlight, rates: Floats) -> tuple[float, float, float]:
    """Return when the first flow and the first transfer end, and the time that may be off by a share.

    That is what the mean transfer has left, but no more than the shortest one takes in all: where many are in flight,
    some end is always near.
    """
    lasts = flows.left / rates
    slowest = flows.slowest(lasts)
    shortest = float(np.minimum.reduce(now - flows.begun + slowest))
    mean = float(np.add.reduce(slowest) / len(slowest))
    return float(np.minimum.reduce(lasts)), float(np.minimum.reduce(slowest)), min(mean, shortest)


def _factors(links: tuple[str, ...], given: Mapping[str, float]) -> Floats:
    index = {name: k for k, name in enumerate(links)}
    expected = f"a link of the fabric, like {links[0]}" if links else "nothing: this fabric has no links"
    mistakes = [Mistake(name, expected, "slow link") for name in given if name not in index]
    mistakes += [
        Mistake(str(factor), "a number above 0", f"slow link {name}")
        for name, factor in given.items()
        if not 0 < factor < np.inf
    ]
    if mistakes:
        raise InputError(mistakes)
    factors = np.ones(len(links))
    for name, factor in given.items():
        factors[index[name]] = factor
    return factors
