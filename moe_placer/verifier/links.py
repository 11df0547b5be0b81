"""Links, and which share of the traffic between nodes crosses them; what a token costs there, and takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.verifier.capacity import GB, wire_bytes

__all__ = ["Network", "link_speeds"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SMALLEST_WEIGHT = 2.0**-60  # a smaller one counts as 0, which proves less


@dataclass(frozen=True, eq=False)
class Network:
    """The links, and which share of the traffic of each node pair crosses them (A of the placement model, sparse).

    Tokens go from nodes to places: to nodes, or to single GPUs where these receive by NICs of their own.

    Attributes
    ----------
    links : tuple of str
        Names.
    bandwidth : float array [links]
        GB/s, one direction.
    scale : float array [links]
        Cost of one token on each link.
    us_per_token : float array [links]
        Microseconds of one token on each link, one way, at its real bandwidth.
    link, source, target : int arrays [entries]
        Traffic from node ``source`` to place ``target`` crosses ``link`` ...
    share : float array [entries]
        ... with this share. No two entries have the same link, source and target.
    home : int array [places]
        Node of each place.
    alike : int array [links]
        The link whose entries are those of each link too, which has none then: what is as fast and carries the
        same, as links to parallel spines do. A link with entries of its own is alike to itself.
    """

    links: tuple[str, ...]
    bandwidth: Floats
    scale: Floats
    us_per_token: Floats
    link: Ints
    source: Ints
    target: Ints
    share: Floats
    home: Ints
    alike: Ints

    @cached_property
    def whole(self) -> Network:
        """The same with entries of every link."""
        every = np.arange(len(self.links))
        if (self.alike == every).all():
            return self
        order = np.argsort(self.link, kind="stable")
        count = np.bincount(self.link, minlength=len(self.links))
        first = (np.cumsum(count) - count)[self.alike]
        size = count[self.alike]
        at = order[np.arange(size.sum()) - np.repeat(np.cumsum(size) - size - first, size)]
        return replace(
            self,
            link=np.repeat(every, size),
            source=self.source[at],
            target=self.target[at],
            share=self.share[at],
            alike=every,
        )

    def load(self, flow: Floats) -> Floats:
        """Tokens on each link, given ``flow[s, d]`` tokens from node s to place d."""
        tokens = self.share * flow.ravel()[self._pair]
        carried = np.bincount(self.link, weights=tokens, minlength=len(self.links)).astype(np.float64)
        return np.asarray(carried[self.alike])

    def normalised(self, weights: Mapping[str, float]) -> Floats:
        """Return the weight of every link, divided by their sum [links]; none that is too small to count."""
        weight = np.array([weights.get(name, 0.0) for name in self.links])
        weight /= math.fsum(weight) or 1.0
        weight[weight < _SMALLEST_WEIGHT] = 0.0
        return weight

    def per_token(self, weight: Floats, nodes: int) -> Floats:
        """Weighted cost of a token from each node to each place, over all links of its routes [nodes, places]."""
        cost = np.bincount(self.alike, weight * self.scale, len(self.links))
        some = np.flatnonzero(cost[self.link])  # of most links nothing is counted
        weighted = cost[self.link[some]] * self.share[some]
        shape = nodes, len(self.home)
        return np.asarray(np.bincount(self._pair[some], weighted, shape[0] * shape[1]).reshape(shape), dtype=np.float64)

    @cached_property
    def _pair(self) -> Ints:
        """Place of each entry's source and target in a table [nodes, places]."""
        return self.source * len(self.home) + self.target

    @cached_property
    def longest(self) -> int:
        """Most links that the traffic from one node to one place crosses, over all of its routes."""
        nodes = int(max(self.source.max(initial=0), self.target.max(initial=0))) + 1
        times = np.bincount(self.alike, minlength=len(self.links))[self.link]
        return int(np.bincount(self.source * nodes + self.target, times).max(initial=0))

    @cached_property
    def arrivals(self) -> tuple[Floats, list[Ints]]:
        """What tokens to each place cost on the links they cross.

        Returns a table [rows, sources], cost of one token from each source, and for every place the rows that apply to
        it: one for every link on routes to it. Links alike in this, such as those to parallel spines, share a row.
        """
        nodes = int(max(self.source.max(initial=0), self.home.max(initial=0))) + 1
        rows: dict[bytes, int] = {}
        table: list[Floats] = []
        of_place = []
        for place in range(len(self.home)):
            here = self.target == place
            used, position = np.unique(self.link[here], return_inverse=True)
            cost = np.zeros((len(used), nodes))
            cost[position, self.source[here]] = self.share[here] * self.scale[self.link[here]]
            for row in cost:
                if rows.setdefault(row.tobytes(), len(rows)) == len(table):
                    table.append(row.copy())  # a view would keep all of `cost` in memory
            of_place.append(np.unique(np.array([rows[row.tobytes()] for row in cost], dtype=np.int64)))
        return np.array(table).reshape(-1, nodes), of_place


def link_speeds(instance: Instance, bandwidths: Iterable[float]) -> tuple[Floats, Floats, Floats]:
    """Bandwidths of links (GB/s), and what one token costs there, and takes one way in microseconds."""
    gb_per_s = np.array(list(bandwidths), dtype=np.float64)
    model, fabric = instance.model, instance.cluster.fabric
    token_gb = wire_bytes(model, instance.placement.dispatch_dtype) / GB
    seconds = token_gb / (gb_per_s * fabric.link_utilization)
    cost = np.ones_like(gb_per_s) if instance.objective.metric == "tokens" else fabric.node_gb_per_s / gb_per_s
    return gb_per_s, cost, 1e6 * seconds
