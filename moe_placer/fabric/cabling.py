"""The network between nodes as plain tables: what routes are compiled from, without a graph library's start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Cabling"]

Facts = dict[str, Any]


@dataclass(eq=False)
class Cabling:
    """Nodes, switches and links in a fixed order; `moe_placer.fabric.build_fabric` makes a graph of them.

    Attributes
    ----------
    vertices : dict
        Name of a node or switch to its ``role``, and of a router to its ``group``.
    after : dict
        Name to what its links lead to, each with the link's ``bandwidth``, ``length`` and ``level``.
    """

    vertices: dict[str, Facts] = field(default_factory=dict)
    after: dict[str, dict[str, Facts]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: nx.DiGraph[str]) -> Cabling:
        """Return the tables of a graph."""
        vertices = {name: dict(facts) for name, facts in graph.nodes(data=True)}
        return cls(vertices, {name: dict(graph.adj[name]) for name in vertices})

    def graph(self) -> nx.DiGraph[str]:
        """Return the graph of these tables, with vertices and links in their order."""
        import networkx as nx  # loaded only by what asks for a graph: that takes a tenth of a second

        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(self.vertices.items())
        graph.add_edges_from(self.links())
        return graph

    def add(self, names: Iterable[str], **facts: str | int) -> None:
        """Add vertices that have these facts in common."""
        for name in names:
            self.vertices[name], self.after[name] = dict(facts), {}

    def connect(self, source: str, target: str, **facts: str | float) -> None:
        """Add a link between two of the vertices; between the same two, the last one stays."""
        self.after[source].setdefault(target, {}).update(facts)

    def links(self) -> Iterator[tuple[str, str, Facts]]:
        """Yield source, target and facts of every link, vertex by vertex."""
        for source, targets in self.after.items():
            for target, facts in targets.items():
                yield source, target, facts
