"""What a solve will take, told from the sizes of its instance before anything is computed.

The constants were measured on one core of an AMD EPYC with instances of 4 to 1,000 nodes on every fabric; memory came
out within a factor of 1.5, seconds within 2 (tests/solve/test_estimate.py measures memory anew).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moe_placer.errors import NothingFoundError
from moe_placer.instance import Instance
from moe_placer.instance.schema import Dragonfly, FatTree, RailPods, SyntheticTraffic, ThreeLevelTree
from moe_placer.problem.regions import VAST
from moe_placer.traffic.synthetic import DOMAINS, TOKENS, TOPICS
from moe_placer.workers import available_memory, usable_cores

__all__ = ["Estimate", "demand_bytes", "estimate", "refuse_too_large", "useful_workers"]

_PROCESS = 110e6  # bytes of this program with its libraries
_WORTH_WORKERS = 10_000  # layers x replicas x nodes: a worker starts in about the second that these take to solve
_WORKER = 185e6  # bytes of a worker process with its solver library
_FLOAT = 8
_PER_LINK = 600  # bytes of the fabric's graph
_PER_SHARE = 60  # bytes while routes are compiled, for each link and pair of nodes whose traffic crosses it
_PER_SHARE_CHECKED = 72  # bytes of the same while verifying
_LAYERS_HELD = 11  # times a layer's table of costs: it, and the linear relaxation made of it
_VAST_LAYERS_HELD = 5  # where the layer is divided among regions
_PER_FLOW = 15e3  # bytes of a DAG for each pair of nodes between which tokens flow
_PER_ROUTE = 1.2e3  # bytes of a DAG for each pair of nodes
_S_PER_SHARE, _S_PER_LINK, _S_PER_COST_BYTE = 0.2e-6, 0.1e-3, 25e-9
_S_PER_SHARE_CHECKED, _S_PER_LINK_CHECKED, _S_PER_PRODUCT = 0.15e-6, 40e-6, 0.15e-9
_S_PER_FLOW, _S_PER_ROUTE = 1.5e-3, 50e-6


@dataclass(frozen=True)
class Estimate:
    """Memory and time of a solve.

    Attributes
    ----------
    workers : int
        Worker processes that are counted; 0 where everything runs in one process.
    memory_bytes : mapping
        Phase to bytes that all processes together take in it.
    seconds : mapping
        Phase to seconds on one core; the search is not among these, since ``time_s`` bounds it.
    """

    workers: int
    memory_bytes: Mapping[str, float]
    seconds: Mapping[str, float]

    @property
    def peak_bytes(self) -> float:
        """Bytes in the largest phase."""
        return max(self.memory_bytes.values())

    @property
    def largest(self) -> str:
        """The phase that takes the most memory."""
        return max(self.memory_bytes, key=self.memory_bytes.__getitem__)

    def to_text(self) -> str:
        """Say it in one sentence."""
        workers = f" with {self.workers} workers" if self.workers else ""
        phases = ", ".join(f"{phase} {_seconds(value)}" for phase, value in self.seconds.items())
        total = _seconds(sum(self.seconds.values()))
        return (
            f"about {_gigabytes(self.peak_bytes)} of memory{workers}, most for {self.largest}; "
            f"beside the search about {total} ({phases})"
        )


@dataclass(frozen=True)
class _Fabric:
    """Sizes of routes: links, distinct ones, those a node touches, and (link, source, target) with traffic on it.

    Of the last, parallel links to spines, cores and leaves of rails count once, as they are stored.
    """

    links: int
    distinct: int
    affected: int
    shares: int


def estimate(instance: Instance, workers: int = 1, searches: bool = True, dags: bool = False) -> Estimate:
    """Estimate what solving an instance takes.

    Parameters
    ----------
    instance : Instance
    workers : int
        Worker processes asked for; no more than layers and cores are started.
    searches : bool
        False for methods of one pass, which run in this process.
    dags : bool
        Whether DAGs are drawn afterwards, as the command does.
    """
    layers, experts = len(instance.moe_layers), instance.model.experts
    # Where GPUs receive by NICs of their own, they are the nodes of the problem.
    nodes = instance.gpus if instance.cluster.receives_by_gpu else instance.cluster.nodes
    replicas, fabric = instance.replicas_per_layer, _with_nics(instance, _fabric(instance))
    started = min(workers, layers, usable_cores()) if searches and workers > 1 else 0
    demand = _FLOAT * experts * (layers * _recordings(instance) + nodes)  # T of docs/solving.md: of one layer whole
    tables = _FLOAT * nodes * (fabric.distinct + fabric.affected * nodes)
    costs = _FLOAT * replicas * nodes * fabric.affected  # of one layer: delta of docs/solving.md
    together = layers if instance.objective.minimise == "aggregate" else 1
    held = _VAST_LAYERS_HELD if replicas * nodes > VAST else _LAYERS_HELD
    kept = _PROCESS + demand + tables
    memory = {
        "traffic": _PROCESS + _traffic(instance),
        "routes": _PROCESS + 3 * demand + tables + _PER_LINK * fabric.links + _PER_SHARE * fabric.shares,
        "search": kept + held * costs * max(started, together) + started * (_WORKER + costs),
        "verification": kept + 1.5 * _FLOAT * layers * nodes * replicas + _PER_SHARE_CHECKED * fabric.shares
        + 8 * _FLOAT * nodes * nodes,
    }  # fmt: skip
    seconds = {
        "start": _S_PER_SHARE * fabric.shares + _S_PER_LINK * fabric.links + _S_PER_COST_BYTE * layers * costs,
        "verification": _S_PER_SHARE_CHECKED * fabric.shares + _S_PER_LINK_CHECKED * fabric.links
        + _S_PER_PRODUCT * 3 * nodes**2 * replicas * layers,
    }  # fmt: skip
    if dags:
        nodes = instance.cluster.nodes
        flows = nodes * min(nodes, replicas)
        memory["DAGs"] = _PROCESS + demand + _PER_FLOW * flows + _PER_ROUTE * nodes * nodes
        seconds["DAGs"] = _S_PER_FLOW * flows + _S_PER_ROUTE * nodes * nodes
    return Estimate(started, memory, seconds)


def useful_workers(instance: Instance) -> int:
    """Return the worker processes that shorten a solve: one per usable core, or 1 where starting them takes longer."""
    sizes = len(instance.moe_layers) * instance.replicas_per_layer * instance.cluster.nodes
    return usable_cores() if sizes > _WORTH_WORKERS else 1


def demand_bytes(instance: Instance) -> float:
    """Return the bytes that reading or generating the traffic takes, and working out who wants which expert."""
    sizes = len(instance.moe_layers) * instance.cluster.nodes * instance.model.experts
    return max(_traffic(instance), 4.0 * _FLOAT * sizes)


def refuse_too_large(name: str, estimated: Estimate, memory_bytes: float | None, advice: str = "") -> None:
    """Refuse what cannot end well.

    Parameters
    ----------
    name : str
        Of the instance, for the message.
    memory_bytes : float or None
        What may be taken; None: what the machine has left now.
    advice : str
        What else would help, for the message.
    estimated : Estimate
        What the solve takes.

    Raises
    ------
    NothingFoundError
        More memory would be needed.
    """
    left = available_memory() if memory_bytes is None else memory_bytes
    if estimated.peak_bytes <= left:
        return
    allowed = "are left on this machine" if memory_bytes is None else "are allowed"
    fewer = f"fewer workers ({estimated.workers} now), " if estimated.workers > 1 else ""
    raise NothingFoundError(
        f"solving {name} takes {estimated.to_text()}, but {_gigabytes(left)} {allowed}. "
        f"Use {fewer}{advice}a smaller instance or a larger machine, or allow more (--memory GB, limits.memory_bytes)."
    )


def _traffic(instance: Instance) -> float:
    """Return the bytes that generating tokens takes; of recorded ones, the files' headers tell when they are read."""
    if not isinstance(instance.traffic, SyntheticTraffic):
        return 0.0
    layers, model = len(instance.moe_layers), instance.model
    popularity = 1.1 * _FLOAT * layers * TOPICS * model.experts
    return popularity + 1.3 * 2 * DOMAINS * layers * TOKENS * model.top_k


def _recordings(instance: Instance) -> int:
    """Return the recordings of which nodes' tokens are mixed: no more than there are nodes."""
    traffic, nodes = instance.traffic, instance.cluster.nodes
    if isinstance(traffic, SyntheticTraffic):
        return min(DOMAINS, nodes)
    return min(len(traffic.files), nodes) if traffic.files and traffic.sources == "mix" else nodes


def _fabric(instance: Instance) -> _Fabric:
    nodes, fabric = instance.cluster.nodes, instance.cluster.fabric
    pairs = nodes * (nodes - 1)
    if isinstance(fabric, FatTree):
        leaves, size = instance.leaves, fabric.nodes_per_leaf
        if leaves == 1:
            return _Fabric(2 * nodes, 2 * nodes, 2, 2 * pairs)
        shares = 2 * pairs + 2 * _apart(nodes, size)
        return _Fabric(2 * nodes + 2 * leaves * fabric.spines, 2 * nodes + 2 * leaves, 4, shares)
    if isinstance(fabric, ThreeLevelTree):
        return _three_levels(nodes, fabric)
    if isinstance(fabric, RailPods):
        rails, pods = instance.cluster.rails, -(-nodes // fabric.nodes_per_pod)
        up = 2 * pods * rails * fabric.spines if pods > 1 else 0
        shares = 2 * pairs + 2 * _apart(nodes, fabric.nodes_per_pod)
        ends = (2 * nodes + 2 * pods, 4) if up else (2 * nodes, 2)
        return _Fabric(2 * nodes * rails + up, *ends, shares)
    if isinstance(fabric, Dragonfly):
        size, parallel = fabric.routers_per_group, fabric.global_links
        groups = -(-nodes // (fabric.nodes_per_router * size))
        links = 2 * nodes + groups * size * (size - 1) + groups * (groups - 1) * parallel
        # Its own two, the local ones to its router, and in every other group a link to its group and those before it.
        affected = min(links, 2 + (size - 1) + (groups - 1) * parallel * (1 + size - parallel))
        return _Fabric(links, links, affected, 6 * pairs)
    return _Fabric(pairs, pairs, max(1, nodes - 1), pairs)


def _three_levels(nodes: int, fabric: ThreeLevelTree) -> _Fabric:
    size, spines, cores = fabric.nodes_per_leaf, fabric.spines, fabric.cores
    leaves = -(-nodes // size)
    pods = -(-leaves // fabric.leaves_per_pod)
    links, distinct, affected, shares = 2 * nodes, 2 * nodes, 2, 2 * nodes * (nodes - 1)
    if leaves > 1:
        links, distinct, affected = links + 2 * leaves * spines, distinct + 2 * leaves, affected + 2
        shares += 2 * _apart(nodes, size)
    if pods > 1:
        links, distinct, affected = links + 2 * pods * spines * cores, distinct + 2 * pods, affected + 2
        shares += 2 * _apart(nodes, size * fabric.leaves_per_pod)
    return _Fabric(links, distinct, affected, shares)


def _apart(nodes: int, size: int) -> int:
    """Ordered pairs of nodes that are not in one group of ``size``."""
    full, rest = divmod(nodes, size)
    return nodes * (nodes - 1) - full * size * (size - 1) - rest * (rest - 1)


def _with_nics(instance: Instance, fabric: _Fabric) -> _Fabric:
    """Add NICs that are links: those that send, and those that receive, by node or for single GPUs."""
    cluster, nics = instance.cluster, instance.cluster.nics
    if nics is None or nics.receive == "shared":
        return fabric
    nodes, each = cluster.nodes, nics.per_node
    links, pairs = fabric.links + 2 * nodes * each, nodes * (nodes - 1)
    if not cluster.receives_by_gpu:
        return _Fabric(links, fabric.distinct + 2 * nodes, fabric.affected + 2, fabric.shares + 2 * pairs * each)
    shares = (fabric.shares + pairs * (each + 1)) * cluster.gpus_per_node  # as `verify` has them, for every GPU
    return _Fabric(links, fabric.distinct + nodes * (1 + cluster.ports), fabric.affected + 2, shares)


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:,.1f} GB"


def _seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 10 else f"{value:,.1f} s"
