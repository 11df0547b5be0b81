"""What is sent where a token goes once to every place that holds one of its experts, however many it holds.

``cov[v, f, d]`` is the share of file f's tokens whose set of experts meets what node d holds for view v. With ``group``
routing there is one view per DP group, which sees one replica of every expert; with ``even`` routing there is one view,
and the replicas of a token's experts are drawn independently. Node s of view g sends
``n[s, d] = sum_f source[s, f] * cov[g, f, d]`` to every other node d, and links follow from routes as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.traffic.token_sets import TokenSets

__all__ = ["Coverage", "Sending"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BLOCK = 2_000_000  # numbers in one temporary array


@dataclass(frozen=True, eq=False)
class Sending:
    """Who sends how much of each file, and which links that crosses.

    Attributes
    ----------
    view : int array [nodes]
        The view of each source: its DP group with ``group`` routing, else 0.
    views : int
    drawn : bool
        Whether a token draws one of the replicas of an expert (``even`` routing).
    source : float array [nodes, files]
        Tokens of each file that start on each node, per step.
    shares : sparse array [links, nodes * nodes]
        Cost on each link of one token from node s to node d, in column ``s * nodes + d``; nothing where s is d.
    """

    view: Ints
    views: int
    drawn: bool
    source: Floats
    shares: sparse.csr_array

    @property
    def nodes(self) -> int:
        """Nodes of the cluster."""
        return len(self.view)

    def flow(self, cov: Floats) -> Floats:
        """Tokens per step from every node to every other node [nodes, nodes], given ``cov`` [views, files, nodes]."""
        sent = np.einsum("sf,sfd->sd", self.source, cov[self.view])
        np.fill_diagonal(sent, 0.0)
        return np.asarray(sent)

    def cost(self, cov: Floats) -> Floats:
        """Cost of every link [links], given ``cov`` [views, files, nodes]."""
        return np.asarray(self.shares @ self.flow(cov).ravel())

    @cached_property
    def prices(self) -> Floats:
        """Cost on each link of covering all of a file's tokens on a node for a view [nodes, links, views * files]."""
        nodes, files = self.source.shape
        links = self.shares.shape[0]
        table = np.zeros((nodes, links, self.views, files))
        entries = self.shares.tocoo()
        link, pair = entries.coords
        source, target = pair // nodes, pair % nodes
        apart = source != target
        link, source, target = link[apart], source[apart], target[apart]
        costs = entries.data[apart, None] * self.source[source]
        np.add.at(table, (target, link, self.view[source]), costs)
        return table.reshape(nodes, links, self.views * files)


@dataclass(frozen=True, eq=False)
class Coverage:
    """One layer's token sets and how they are sent; counts each token once per node."""

    sets: TokenSets
    sending: Sending

    def covered(self, expert: Ints, replica: Ints, node: Ints) -> Floats:
        """Return ``cov`` [views, files, nodes] where replica ``replica[i]`` of ``expert[i]`` is on ``node[i]``."""
        if self.sending.drawn and np.bincount(expert).max() > 1:
            return self._drawn(expert, node)
        views = np.zeros_like(replica) if self.sending.drawn else replica
        home = np.zeros((self.sending.views, self.sets.experts), dtype=np.int64)
        home[views, expert] = node
        return np.stack([self._distinct(row) for row in home])

    def cost(self, expert: Ints, replica: Ints, node: Ints) -> Floats:
        """Cost of every link [links]."""
        return self.sending.cost(self.covered(expert, replica, node))

    def _distinct(self, home: Ints) -> Floats:
        """Share of each file's tokens with an expert on each node [files, nodes], one replica of each being at home."""
        sets, nodes = self.sets, self.sending.nodes
        there = np.sort(home[sets.choice], axis=1)
        first = np.ones(there.shape, dtype=bool)
        first[:, 1:] = there[:, 1:] != there[:, :-1]
        row = np.broadcast_to(sets.file[:, None] * nodes, there.shape)[first] + there[first]
        weight = np.broadcast_to(sets.weight[:, None], there.shape)[first]
        return np.bincount(row, weight, len(sets.tokens) * nodes).reshape(-1, nodes).astype(np.float64)

    def _drawn(self, expert: Ints, node: Ints) -> Floats:
        """Share of each file's tokens that draw a replica on each node [1, files, nodes]; replicas are drawn apart."""
        sets, nodes = self.sets, self.sending.nodes
        held = np.zeros((sets.experts, nodes))
        np.add.at(held, (expert, node), 1.0)
        misses = 1.0 - held / np.bincount(expert, minlength=sets.experts)[:, None]
        cov = np.zeros((len(sets.tokens), nodes))
        step = max(1, _BLOCK // nodes)
        for first in range(0, len(sets.choice), step):
            block = slice(first, first + step)
            missed = np.ones((len(sets.choice[block]), nodes))
            for column in sets.choice[block].T:
                missed *= misses[column]
            reached = sets.weight[block, None] * (1.0 - missed)
            np.add.at(cov, sets.file[block], reached)
        return cov[None]
