"""Links and routes of a dragonfly, written down from docs/fabrics.md without its graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from moe_placer.instance import Instance
from moe_placer.instance.schema import Dragonfly

__all__ = ["dragonfly_bandwidths", "dragonfly_routes"]

Route = tuple[str, ...]  # names of its links


def dragonfly_bandwidths(instance: Instance) -> dict[str, float]:
    """Bandwidth of every link by its name, in GB/s; first the links from nodes, then those from each router."""
    fabric, shape = _read(instance)
    nodes = range(instance.cluster.nodes)
    ends = [(f"node{i}", f"router{shape.router_of(i)}", fabric.node_gb_per_s) for i in nodes]
    for pairs, bandwidth in (
        (shape.local_links(), fabric.local_gb_per_s),
        (shape.global_links(), fabric.global_gb_per_s),
    ):
        ends += [(f"router{one}", f"router{other}", bandwidth or fabric.node_gb_per_s) for one, other in pairs]
    found = {}
    for one, other, bandwidth in ends:
        found[one, other] = found[other, one] = bandwidth
    sources = [*(f"node{i}" for i in nodes), *(f"router{j}" for j in range(shape.R * shape.G))]
    order = {source: number for number, source in enumerate(sources)}
    return {f"{one}->{other}": found[one, other] for one, other in sorted(found, key=lambda link: order[link[0]])}


def dragonfly_routes(instance: Instance) -> Iterator[tuple[int, int, list[Route]]]:
    """For every two nodes, the minimal routes with the fewest links; each takes the same share of the traffic."""
    _, shape = _read(instance)
    between = cache(shape.routes)
    for source in range(instance.cluster.nodes):
        for target in range(instance.cluster.nodes):
            if source != target:
                first, last = shape.router_of(source), shape.router_of(target)
                up, down = f"node{source}->router{first}", f"router{last}->node{target}"
                yield source, target, [(up, *route, down) for route in between(first, last)]


def _read(instance: Instance) -> tuple[Dragonfly, _Shape]:
    fabric = instance.cluster.fabric
    assert isinstance(fabric, Dragonfly)
    routers = -(-instance.cluster.nodes // fabric.nodes_per_router)
    groups = -(-routers // fabric.routers_per_group)
    return fabric, _Shape(fabric.nodes_per_router, fabric.routers_per_group, groups, fabric.global_links)


@dataclass(frozen=True)
class _Shape:
    """The numbers that define a dragonfly: R routers in each of G groups, m links between every two groups."""

    nodes_per_router: int
    R: int
    G: int
    m: int

    def router_of(self, node: int) -> int:
        return node // self.nodes_per_router

    def global_end(self, group: int, other: int, q: int) -> int:
        """Router of a group at which its q-th link to another group ends."""
        port = ((other - group - 1) % self.G) * self.m + q
        return group * self.R + port % self.R

    def local_links(self) -> Iterator[tuple[int, int]]:
        for group in range(self.G):
            yield from combinations(range(group * self.R, (group + 1) * self.R), 2)

    def global_links(self) -> Iterator[tuple[int, int]]:
        for a, b in combinations(range(self.G), 2):
            for q in range(self.m):
                yield self.global_end(a, b, q), self.global_end(b, a, q)

    def routes(self, first: int, last: int) -> list[Route]:
        """List the routes between two routers: local, global, local, where the local links may be missing."""
        if first == last:
            return [()]
        a, b = first // self.R, last // self.R
        if a == b:
            return [(f"router{first}->router{last}",)]
        routes = []
        for q in range(self.m):
            leaves, enters = self.global_end(a, b, q), self.global_end(b, a, q)
            before = [] if leaves == first else [f"router{first}->router{leaves}"]
            after = [] if enters == last else [f"router{enters}->router{last}"]
            routes.append((*before, f"router{leaves}->router{enters}", *after))
        fewest = min(map(len, routes))
        return [route for route in routes if len(route) == fewest]
