"""The common form of network descriptions: nodes in order, and the leaf switches above them."""

from __future__ import annotations

from dataclasses import dataclass

from moe_placer.engines.topology.hostlist import compress

__all__ = ["Topology"]


@dataclass(frozen=True)
class Topology:
    """A cluster as an instance can hold it; None where the source does not say.

    Attributes
    ----------
    format : str
        What was read.
    nodes : tuple of str
        Names of the nodes; those of one leaf switch follow one another. Empty if the source describes one node only.
    gpus_per_node : int or None
    node_gb_per_s : float or None
        A node's NICs together, one direction, GB/s.
    nodes_per_leaf, spines : int or None
    oversubscription : float or None
        Leaf down capacity / leaf up capacity.
    notes : tuple of str
        What the instance does not hold, in sentences.
    nics : (int, float) or None
        NICs of a node and GB/s of each, where they are on rails of their own.
    leaves_per_pod, cores : int or None
        Where there are three levels: leaf switches of a pod, and cores above each of its spines.
    pod_oversubscription : float or None
        Capacity of a pod's spines to its leaves / to the cores.
    """

    format: str
    nodes: tuple[str, ...]
    gpus_per_node: int | None = None
    node_gb_per_s: float | None = None
    nodes_per_leaf: int | None = None
    spines: int | None = None
    oversubscription: float | None = None
    notes: tuple[str, ...] = ()
    nics: tuple[int, float] | None = None
    leaves_per_pod: int | None = None
    cores: int | None = None
    pod_oversubscription: float | None = None

    @property
    def host_list(self) -> str:
        """The nodes' names in order, ranges in brackets."""
        return compress(self.nodes)
