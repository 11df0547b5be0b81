"""The section of the network between nodes: its kinds and their fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from moe_placer.instance.section import Section

__all__ = ["MAX_NODES", "AnyFabric", "Dragonfly", "FatTree", "FullMesh", "RailPods", "ThreeLevelTree"]

MAX_NODES = 2048

_Uplinks = Annotated[
    Literal["spray", "hashed"],
    Field(
        description="spray: packets are spread evenly over all links up; hashed: a flow keeps those of its hash "
        "(ECMP), and links between switches count with what the expected fullest of them leaves.",
    ),
]
_FlowsPerPair = Annotated[
    int | None,
    Field(ge=1, le=100_000, description="Flows from one node to another, for hashed; absent: its NICs, or GPUs."),
]


class _Fabric(Section):
    node_gb_per_s: PositiveFloat = Field(400.0, le=1e6, description="A node's NICs together, one direction, GB/s.")
    link_utilization: float = Field(0.80, gt=0, le=1, description="Share of a link's bandwidth that is reached.")


class FullMesh(_Fabric):
    """One link of ``node_gb_per_s`` per ordered pair of nodes: for when nothing is known of the fabric."""

    kind: Literal["full-mesh"]


class FatTree(_Fabric):
    """Two levels: nodes on leaf switches, every leaf linked to every spine."""

    kind: Literal["fat-tree"]
    nodes_per_leaf: int = Field(ge=1, le=MAX_NODES)
    spines: int = Field(ge=1, le=256)
    oversubscription: float = Field(1.0, ge=0.01, le=1000, description="Leaf down capacity / leaf up capacity.")
    uplinks: _Uplinks = "spray"
    flows_per_pair: _FlowsPerPair = None


class ThreeLevelTree(_Fabric):
    """Three levels: nodes on leaves, leaves of a pod on its spines, spines of all pods on cores (docs/fabrics.md)."""

    kind: Literal["fat-tree-3"]
    nodes_per_leaf: int = Field(ge=1, le=MAX_NODES)
    leaves_per_pod: int = Field(ge=1, le=MAX_NODES)
    spines: int = Field(ge=1, le=256, description="Of each pod; all its leaves are linked to all of them.")
    cores: int = Field(
        1, ge=1, le=256, description="Cores above the k-th spine of every pod, which are linked to no other spines."
    )
    oversubscription: float = Field(1.0, ge=0.01, le=1000, description="Leaf down capacity / leaf up capacity.")
    pod_oversubscription: float = Field(
        1.0, ge=0.01, le=1000, description="Capacity of a pod's spines to its leaves / to the cores."
    )
    uplinks: _Uplinks = "spray"
    flows_per_pair: _FlowsPerPair = None


class RailPods(_Fabric):
    """Pods in which the i-th NIC of every node is on the i-th leaf, so that what stays on its rail leaves no leaf."""

    kind: Literal["rail-pods"]
    nodes_per_pod: int = Field(ge=1, le=MAX_NODES)
    rails: int | None = Field(
        None, ge=1, le=256, description="Leaves of a pod, on each a link of every node; absent: a node's NICs, or GPUs."
    )
    spines: int = Field(ge=1, le=256, description="Above all pods; every leaf is linked to every spine.")
    oversubscription: float = Field(1.0, ge=0.01, le=1000, description="Leaf down capacity / leaf up capacity.")


class Dragonfly(_Fabric):
    """Groups of routers; routers of a group are linked all to all, and so are groups (docs/fabrics.md)."""

    kind: Literal["dragonfly"]
    nodes_per_router: int = Field(ge=1, le=MAX_NODES)
    routers_per_group: int = Field(ge=1, le=256)
    global_links: int = Field(1, ge=1, le=256, description="Parallel links between every two groups.")
    local_gb_per_s: PositiveFloat | None = Field(
        None, le=1e6, description="A link between routers of one group, one direction, GB/s; absent: node_gb_per_s."
    )
    global_gb_per_s: PositiveFloat | None = Field(
        None, le=1e6, description="A link between two groups, one direction, GB/s; absent: node_gb_per_s."
    )


AnyFabric = Annotated[
    FullMesh | FatTree | ThreeLevelTree | RailPods | Dragonfly,
    Field(discriminator="kind"),
]
