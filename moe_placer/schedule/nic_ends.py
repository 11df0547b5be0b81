"""The NICs at both ends of a transfer, where a copy of a token arrives at the NIC of the expert's GPU.

A node's tokens start evenly on its GPUs, so dispatch leaves evenly by its NICs, and arrives as its experts' GPUs have
it; combine is that reversed. What a node sends to another goes to all of that node's NICs at once, each in its share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.dag.flows import Flows
from moe_placer.fabric import Receivers, nic_bandwidths, receivers
from moe_placer.instance import Instance

__all__ = ["Ends", "NicEnds", "shares_of_ports"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Ends = tuple[Ints, Floats]  # NIC groups [nodes, E] between a node and each other one, and their shares of the bytes


@dataclass(frozen=True, eq=False)
class NicEnds:
    """Groups of NICs that carry the same: of every node those that send, then those that receive.

    Attributes
    ----------
    names : tuple of str
        All NICs that send, then all that receive.
    nodes, ports : int
        Nodes, and groups of each in one direction.
    alike : int
        NICs of a group.
    """

    names: tuple[str, ...]
    nodes: int
    ports: int
    alike: int

    @classmethod
    def of(cls, instance: Instance) -> NicEnds | None:
        """Return those of an instance; None where no NIC receives for single GPUs."""
        nics = receivers(instance)
        if nics is None:
            return None
        return cls(tuple(nic_bandwidths(instance)), instance.cluster.nodes, instance.cluster.ports, nics.alike)

    @property
    def groups(self) -> int:
        """Groups in both directions."""
        return 2 * self.nodes * self.ports

    def dispatch(self, home: int, shares: Floats) -> Ends:
        """NICs between a node that sends tokens and each node; ``shares`` [nodes, ports] are of what arrives there."""
        return self._ends(home, np.full_like(shares, 1 / self.ports), shares)

    def combine(self, home: int, shares: Floats) -> Ends:
        """NICs between a node that returns results and each node; ``shares`` [nodes, ports] are of what leaves."""
        return self._ends(home, shares, np.full_like(shares, 1 / self.ports))

    def _ends(self, home: int, leaving: Floats, arriving: Floats) -> Ends:
        port = np.arange(self.ports)
        sends = np.broadcast_to(home * self.ports + port, leaving.shape)
        receives = (self.nodes + np.arange(self.nodes))[:, None] * self.ports + port
        return np.hstack([sends, receives]), np.hstack([leaving, arriving])

    def by_nic(self, of_group: Floats) -> Floats:
        """Divide what groups [..., groups] carry over their NICs [..., NICs]."""
        return np.repeat(of_group / self.alike, self.alike, axis=-1)

    def by_group(self, capacity: Floats) -> Floats:
        """Return what groups can carry, given their NICs [NICs], which carry alike: as much as the slowest allows."""
        return np.asarray(capacity.reshape(-1, self.alike).min(axis=1) * self.alike)


def shares_of_ports(flows: Flows, nics: Receivers, row: int) -> Floats:
    """Share of what goes from node s to node d that arrives at each group of its GPUs [s, d, ports], in a MoE layer.

    Where nothing goes, all arrive alike.
    """
    arriving = flows.layer(row).arriving
    nodes, ports = len(arriving), len(nics.links) // len(arriving)
    by_group = np.zeros((nodes, nodes * ports))
    np.add.at(by_group.T, nics.group, arriving.T)
    tokens = by_group.reshape(nodes, nodes, ports)
    total = tokens.sum(axis=2, keepdims=True)
    return np.where(total > 0, tokens / np.where(total > 0, total, 1.0), 1 / ports)
