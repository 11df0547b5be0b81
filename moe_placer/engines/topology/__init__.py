"""Descriptions of a cluster's network that clusters have: one file here for each format."""

from moe_placer.engines.topology.hostlist import expand
from moe_placer.engines.topology.read_topology import read_topologies
from moe_placer.engines.topology.tiers import Choice
from moe_placer.engines.topology.topology import Topology

__all__ = ["Choice", "Topology", "expand", "read_topologies"]
