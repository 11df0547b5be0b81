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
from moe_placer.schedule.sharing import Crossings, max_min_rates

__all__ = ["Network"]

Floats = npt.NDArray[np.float64]

_US = 1e6  # µs in a second
_ROUNDING = 1e-9  # a flow has ended when no more than this share of its bytes is left


@dataclass(frozen=True, eq=False)
class _Span:
    """A time, in µs, of constant rates, and the bytes of each flow [transfers, paths] left before and after it."""

    start: float
    end: float
    before: Floats
    after: Floats


class Network:
    """Transfers between nodes, each an all-to-all of up to N (N - 1) flows, that end when their last flow has.

    Every flow of a node pair is split over the pair's shortest paths as `compile_routes` says; flows of different
    transfers between the same nodes are flows of their own. Rates change only where a flow starts or ends.

    Parameters
    ----------
    instance : Instance
        Its fabric is used, at ``link_utilization``.
    link_factor : mapping, optional
        Link name to what its bandwidth is multiplied with: 0.5 is a link at half speed.
    routes : Routes, optional
        Those of the instance, where they are already compiled.

    Raises
    ------
    InputError
        A factor of a link that does not exist, or one that is not above 0.

    Attributes
    ----------
    routes : Routes
    capacity : float array [K]
        Bytes/µs of each link of ``routes.links``.
    """

    def __init__(
        self, instance: Instance, link_factor: Mapping[str, float] | None = None, *, routes: Routes | None = None
    ) -> None:
        nodes = instance.cluster.nodes
        self.routes = compile_routes(build_fabric(instance), nodes) if routes is None else routes
        usable = instance.cluster.fabric.link_utilization * _factors(self.routes.links, link_factor or {})
        self.capacity: Floats = self.routes.bandwidth * usable * GB / _US
        self._shape = (nodes, nodes)
        self._paths = np.flatnonzero(~np.eye(nodes, dtype=bool))
        self._shares = sparse.csr_array(self.routes.shares[:, self._paths])
        self._crossings = Crossings.compile(self._shares, self.capacity)
        self._now, self._started = 0.0, 0
        self._ids: list[int] = []  # in flight, as the rows of
        self._sent = self._left = np.zeros((0, len(self._paths)))
        self._carried = np.zeros(len(self.capacity))
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
        self._sent, self._left = np.vstack([self._sent, flows]), np.vstack([self._left, flows])
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
        return last.end, self._ids[int((~last.after.any(axis=1)).argmax())]

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
            self._deliver(self._left - span.after)
            self._now, self._left = span.end, span.after
            del self._ahead[0]
            self._drop_what_ended()
        self._now = now

    def _cut(self, span: _Span, now: float) -> _Span:
        """Follow a span until ``now``, and return its rest."""
        rest = (span.end - now) / (span.end - span.start)
        left = span.after + rest * (span.before - span.after)
        self._deliver(self._left - left)
        self._left = left
        return _Span(now, span.end, left, span.after)

    def _deliver(self, sent: Floats) -> None:
        self._carried += self._shares @ sent.sum(axis=0)

    def _drop_what_ended(self) -> None:
        going = [bool(flows.any()) for flows in self._left]
        if all(going):
            return
        self._ended += [name for name, on in zip(self._ids, going, strict=True) if not on]
        self._ids = [name for name, on in zip(self._ids, going, strict=True) if on]
        self._sent, self._left = self._sent[going], self._left[going]

    def _look_ahead(self) -> list[_Span]:
        """Return the spans from now to the next end of a transfer."""
        if not self._ahead:
            now, left = self._now, self._left
            while not self._ahead or left.any(axis=1).all():
                self._ahead.append(self._next_span(now, left))
                now, left = self._ahead[-1].end, self._ahead[-1].after
        return self._ahead

    def _next_span(self, now: float, left: Floats) -> _Span:
        """Return the span that begins now; the first flows to end end it."""
        if not left.any(axis=1).all():
            return _Span(now, now, left, left)  # a transfer without bytes ends at once
        going = left > 0
        rates = max_min_rates(self._crossings, going.sum(axis=0))
        lasts = np.divide(left, rates, out=np.full_like(left, np.inf), where=going)
        length = float(lasts.min())
        after = left - np.where(going, rates * length, 0.0)
        after[after <= _ROUNDING * self._sent] = 0.0
        return _Span(now, now + length, left, after)


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
