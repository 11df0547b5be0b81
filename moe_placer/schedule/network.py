"""The inter-node network as a fluid: what is in flight shares every link max-min fairly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.errors import InputError, Mistake
from moe_placer.fabric import Routes, build_fabric, compile_routes
from moe_placer.instance import Instance
from moe_placer.instance.sizes import GB
from moe_placer.schedule.history import History
from moe_placer.schedule.sharing import Crossings, max_min_rates

__all__ = ["Network"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_US = 1e6  # µs in a second
_ROUNDING = 1e-9  # a flow has ended when no more than this share of its bytes is left


@dataclass(frozen=True, eq=False)
class _Span:
    """A time, in µs, of constant rates, and the bytes of each flow [flows] left before and after it."""

    start: float
    end: float
    before: Floats
    after: Floats


class Network:
    """Transfers between nodes, each an all-to-all of up to N (N - 1) flows, that end when their last flow has.

    Every flow of a node pair is split over the pair's shortest paths as `compile_routes` says; flows of different
    transfers between the same nodes are flows of their own. Rates change only where a flow starts or ends, which is
    hundreds of times in a transfer; so a tenth of the flows in flight may end together, the early ones slowed down to
    end with the last of them, and what they leave shared among the others. Links are never above their capacity, no
    byte is lost, a transfer ends when its last flow does, and the last flows of few end one by one.

    Parameters
    ----------
    instance : Instance
        Its fabric is used, at ``link_utilization``.
    link_factor : mapping, optional
        Link name to what its bandwidth is multiplied with: 0.5 is a link at half speed.
    routes : Routes, optional
        Those of the instance, where they are already compiled.
    together : float
        Share of the flows in flight that may end together, from 0 (exact max-min fairness) to 0.5.
    record : bool
        Keep what every link carried over time, in ``history``.

    Raises
    ------
    InputError
        A factor of a link that does not exist, or one that is not above 0.
    ValueError
        ``together`` out of its range.

    Attributes
    ----------
    routes : Routes
    capacity : float array [K]
        Bytes/µs of each link of ``routes.links``.
    history : History or None
    """

    def __init__(
        self,
        instance: Instance,
        link_factor: Mapping[str, float] | None = None,
        *,
        routes: Routes | None = None,
        together: float = 0.1,
        record: bool = False,
    ) -> None:
        nodes = instance.cluster.nodes
        self.routes = compile_routes(build_fabric(instance), nodes) if routes is None else routes
        usable = instance.cluster.fabric.link_utilization * _factors(self.routes.links, link_factor or {})
        self.capacity: Floats = self.routes.bandwidth * usable * GB / _US
        self._shape = (nodes, nodes)
        if not 0 <= together <= 0.5:
            raise ValueError(f"together: {together} is not from 0 to 0.5")
        self._together = together
        self._paths = np.flatnonzero(~np.eye(nodes, dtype=bool))
        self._shares = sparse.csr_array(self.routes.shares[:, self._paths])
        self._crossings = Crossings.compile(self._shares, self.capacity)
        self._now, self._started = 0.0, 0
        self._ids: list[int] = []  # of the transfers in flight
        # Their flows: id, path, bytes in all and left.
        self._owner, self._path = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self._sent, self._left = np.zeros(0), np.zeros(0)
        self._carried = np.zeros(len(self.capacity))
        self.history = History(len(self.capacity)) if record else None
        self._ahead: list[_Span] = []  # from now to the next end
        self._ended: list[int] = []  # not yet reported

    @property
    def carried(self) -> Floats:
        """Bytes that each link has carried so far [K]."""
        return self._carried.copy()

    def start(self, now: float, sent: Floats) -> int:
        """Start a transfer; what has ended by then, the next `advance` reports.

        Parameters
        ----------
        now : float
            µs; time runs forwards.
        sent : float array [N, N]
            Bytes from node s to node d; the diagonal is ignored.

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
        self._move(now)
        if self.history is not None and not self._ids:
            self.history.note(now, self.carried)  # nothing was carried since the last end
        some = np.flatnonzero(flows)
        self._owner = np.append(self._owner, np.full(len(some), self._started))
        self._path = np.append(self._path, some)
        self._sent, self._left = np.append(self._sent, flows[some]), np.append(self._left, flows[some])
        self._ahead.clear()
        self._ids.append(self._started)
        self._started += 1
        return self._ids[-1]

    def next_end(self) -> tuple[float, int] | None:
        """Return when (µs) and which transfer ends next if no other starts; None where nothing is in flight."""
        if self._ended:
            return self._now, self._ended[0]
        if not self._ids:
            return None
        last = self._look_ahead()[-1]
        return last.end, self._over(last.after)[0]

    def advance(self, now: float) -> list[int]:
        """Move time on to ``now`` (µs) and return the ids of transfers that have ended, in the order of their ends."""
        self._move(now)
        ended, self._ended = self._ended, []
        return ended

    def _move(self, now: float) -> None:
        if not now >= self._now:
            raise ValueError(f"time runs forwards: {now} µs is before {self._now} µs")
        while self._ids:
            span = self._look_ahead()[0]
            if span.end > now:
                self._ahead[0] = self._cut(span, now)
                break
            self._deliver(self._left - span.after, span.end)
            self._now, self._left = span.end, span.after
            del self._ahead[0]
            self._drop_what_ended()
        self._now = now

    def _cut(self, span: _Span, now: float) -> _Span:
        """Follow a span until ``now``, and return its rest."""
        rest = (span.end - now) / (span.end - span.start)
        left = span.after + rest * (span.before - span.after)
        self._deliver(self._left - left, now)
        self._left = left
        return _Span(now, span.end, left, span.after)

    def _deliver(self, sent: Floats, until: float) -> None:
        self._carried += self._shares @ np.bincount(self._path, sent, len(self._paths))
        if self.history is not None:
            self.history.note(until, self.carried)

    def _over(self, left: Floats) -> list[int]:
        """Return the transfers of which nothing is left."""
        going = set(self._owner[left > 0].tolist())
        return [name for name in self._ids if name not in going]

    def _drop_what_ended(self) -> None:
        over = self._over(self._left)
        if over:
            self._ended += over
            self._ids = [name for name in self._ids if name not in over]
            going = ~np.isin(self._owner, over)
            self._owner, self._path = self._owner[going], self._path[going]
            self._sent, self._left = self._sent[going], self._left[going]

    def _look_ahead(self) -> list[_Span]:
        """Return the spans from now to the next end of a transfer."""
        if not self._ahead:
            now, left = self._now, self._left
            if self._over(left):
                self._ahead.append(_Span(now, now, left, left))  # a transfer without bytes ends at once
            while not self._ahead or not self._over(left):
                self._ahead.append(self._next_span(now, left))
                now, left = self._ahead[-1].end, self._ahead[-1].after
        return self._ahead

    def _next_span(self, now: float, left: Floats) -> _Span:
        """Return the span that begins now, and ends where flows do."""
        going = np.flatnonzero(left)
        paths, bytes_left = self._path[going], left[going]
        rates = max_min_rates(self._crossings, paths)
        lasts = bytes_left / rates
        length = self._span_length(lasts, self._owner[going])
        if length > lasts.min():
            rates = max_min_rates(self._crossings, paths, bytes_left / length)
        rest = bytes_left - rates * length
        rest[rest <= _ROUNDING * self._sent[going]] = 0.0
        after = np.zeros_like(left)
        after[going] = rest
        return _Span(now, now + length, left, after)

    def _span_length(self, lasts: Floats, owner: Ints) -> float:
        """Return how long rates may stay: until a share of the flows, but no transfer, has ended."""
        together = max(1, int(self._together * len(lasts)))
        length = float(np.partition(lasts, together - 1)[together - 1])
        slowest = np.zeros(self._started)
        np.maximum.at(slowest, owner, lasts)
        return min(length, float(slowest[slowest > 0].min()))


def _factors(links: tuple[str, ...], given: Mapping[str, float]) -> Floats:
    index = {name: k for k, name in enumerate(links)}
    mistakes = [Mistake(name, f"a link of the fabric, like {links[0]}", "link_factor") for name in given.keys() - index]
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
