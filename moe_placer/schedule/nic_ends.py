"""The NICs at both ends of a transfer, where a copy of a token arrives at the NIC of the expert's GPU.

A node's tokens start evenly on its GPUs, so dispatch leaves evenly by its NICs, and arrives as its experts' GPUs have
it; combine is that reversed. GPUs send to GPUs, so what goes to different GPUs of a node are flows of their own: none
waits for a busy NIC that only the others cross.
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


@dataclass(frozen=True, eq=False)
class Ends:
    """The NIC groups between one node and each other one, of what the one sends.

    Attributes
    ----------
    own : int array [nodes, ports]
        The group that each part of what goes to a node crosses alone, at the experts' end.
    shares : float array [nodes, ports]
        What each part is of what goes to that node.
    even : int array [nodes, ports]
        The groups at the tokens' end, which every part crosses evenly.
    """

    own: Ints
    shares: Floats
    even: Ints

    def flows(self, targets: Ints) -> tuple[Ints, Floats, Ints]:
        """Split what goes to each of some nodes [T] into F flows.

        Returns
        -------
        tuple of array
            Index in ``targets`` of each flow [F], its share of what goes there [F], and the groups that it crosses
            [F, 1 + ports]: its own, then the even ones.
        """
        row, port = np.nonzero(self.shares[targets])
        node = targets[row]
        crossed = np.hstack([self.own[node, port][:, None], self.even[node]])
        return row, self.shares[node, port], crossed


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

    @property
    def use(self) -> Floats:
        """Share of a flow's bytes that each group carries which it crosses (`Ends.flows`) [1 + ports]."""
        return np.append(1.0, np.full(self.ports, 1 / self.ports))

    def dispatch(self, home: int, shares: Floats) -> Ends:
        """NICs between a node that sends tokens and each node; ``shares`` [nodes, ports] are of what arrives there."""
        return Ends(self._there, shares, self._of(home))

    def combine(self, home: int, shares: Floats) -> Ends:
        """NICs between a node that returns results and each node; ``shares`` [nodes, ports] are of what leaves."""
        return Ends(self._of(home), shares, self._there)

    def passed(self, ends: Ends, sent: Floats) -> Floats:
        """Bytes that each group carries of those that a node sends to each node [nodes]."""
        parts = sent[:, None] * ends.shares
        of_own = np.bincount(ends.own.ravel(), parts.ravel(), self.groups)
        evenly = np.broadcast_to(parts.sum(axis=1, keepdims=True) / self.ports, parts.shape)
        return np.asarray(of_own + np.bincount(ends.even.ravel(), evenly.ravel(), self.groups))

    @property
    def _there(self) -> Ints:
        """Return the groups by which each node receives [nodes, ports]."""
        return (self.nodes + np.arange(self.nodes))[:, None] * self.ports + np.arange(self.ports)

    def _of(self, home: int) -> Ints:
        """Return the groups by which a node sends, to whichever node [nodes, ports]."""
        return np.broadcast_to(home * self.ports + np.arange(self.ports), (self.nodes, self.ports))

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
