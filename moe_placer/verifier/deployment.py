"""The deployment that instance, placement and traffic describe: tokens of every replica, flows, routes, GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier import rules
from moe_placer.verifier.loads import Network, choices_per_token, read_network
from moe_placer.verifier.nics import nvlink_domains, receives_by_gpu
from moe_placer.verifier.replica_choice import View
from moe_placer.verifier.rules import Replica
from moe_placer.verifier.sending import copies_sent, views_by_row

__all__ = ["Deployment", "MoeLayer"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MoeLayer:
    """One MoE layer as placed.

    Attributes
    ----------
    gpus : dict
        ``(expert, replica)`` to its GPUs.
    tokens : dict
        ``(expert, replica)`` to its tokens per step.
    flow : float array [nodes, nodes]
        Copies of tokens per step from node s to node d, by the unit of dispatch; what stays is included.
    cost : dict
        Link to its cost: tokens per step at node-link speed.
    arrival : float array [nodes, nodes]
        Cost of the costliest NIC of a single GPU of node d at which tokens from node s arrive; 0 where there is none.
    """

    gpus: dict[tuple[int, int], frozenset[int]]
    tokens: dict[tuple[int, int], float]
    flow: Floats
    cost: dict[str, float]
    arrival: Floats


@dataclass(frozen=True, eq=False)
class Deployment:
    """Instance, placement and traffic that fit each other."""

    instance: Instance
    placement: Placement
    traffic: Traffic

    @cached_property
    def network(self) -> Network:
        """Links and routes."""
        return read_network(self.instance)

    @cached_property
    def moe(self) -> dict[int, MoeLayer]:
        """MoE layers by their index in the model."""
        of_row: dict[int, list[Replica]] = {}
        for replica in rules.read_replicas(self.instance, self.placement):
            of_row.setdefault(replica.row, []).append(replica)
        choices = choices_per_token(self.instance, self.traffic)
        rows = enumerate(self.instance.moe_layers)
        views = views_by_row(self.instance, [of_row[row] for row in range(len(self.instance.moe_layers))])
        return {layer: self._layer(row, of_row[row], choices[:, row], views[row]) for row, layer in rows}

    def _layer(self, row: int, replicas: list[Replica], choices: Floats, views: Sequence[View] | None) -> MoeLayer:
        placed, demand = copies_sent(self.instance, self.traffic, row, choices, replicas, views)
        nodes, home = self.instance.cluster.nodes, self.network.home
        flow = np.zeros((nodes, nodes))
        np.add.at(flow.T, home, placed.T)
        crossing = placed.copy()
        crossing[home, np.arange(len(home))] = 0.0
        cost = self.network.load(crossing) * self.network.scale
        keys = [(replica.expert, replica.replica) for replica in replicas]
        return MoeLayer(
            {key: frozenset(replica.gpus) for key, replica in zip(keys, replicas, strict=True)},
            dict(zip(keys, demand.sum(axis=0).tolist(), strict=True)),
            flow,
            dict(zip(self.network.links, cost.tolist(), strict=True)),
            self._arrival(crossing, cost),
        )

    def _arrival(self, crossing: Floats, cost: Floats) -> Floats:
        """Find the costliest NIC of each node that receives for single GPUs, of those at which something arrives."""
        found, network = np.zeros((self.instance.cluster.nodes,) * 2), self.network
        some = self.receives[network.link] & (crossing[network.source, network.target] > 0)
        np.maximum.at(found, (network.source[some], network.home[network.target[some]]), cost[network.link[some]])
        return found

    @cached_property
    def receives(self) -> npt.NDArray[np.bool_]:
        """Mask of the links that are NICs by which single GPUs receive."""
        by_gpu = receives_by_gpu(self.instance)
        return np.array([by_gpu and "/nic" in name.partition("->")[0] for name in self.network.links], dtype=bool)

    @cached_property
    def routes(self) -> dict[str, dict[str, float]]:
        """Links from node s to node d, each with its share of the traffic, by ``s>d``; not which GPU receives."""
        network = self.network
        table: dict[str, dict[str, float]] = {}
        columns = (network.whole.link, network.whole.source, network.whole.target, network.whole.share)
        for link, source, target, share in zip(*(column.tolist() for column in columns), strict=True):
            if not self.receives[link]:
                table.setdefault(f"{source}>{network.home[target]}", {})[network.links[link]] = share
        return table

    @property
    def failed(self) -> frozenset[int]:
        """GPUs that failed."""
        return frozenset(self.instance.placement.failed_gpus)

    @cached_property
    def serving(self) -> frozenset[int]:
        """GPUs that may do anything at all: those that work, and of a node where none does, all.

        Tokens start on such a node all the same, as its links have it.
        """
        failed, size = set(self.instance.placement.failed_gpus), self.instance.cluster.gpus_per_node
        lost = {node for node, count in Counter(self.node(gpu) for gpu in failed).items() if count == size}
        return frozenset(gpu for gpu in range(self.instance.gpus) if gpu not in failed or self.node(gpu) in lost)

    @cached_property
    def tensor_groups(self) -> dict[int, frozenset[int]]:
        """GPUs that do attention, dense layers, embedding and head together: neighbours that serve; none is empty."""
        groups: dict[int, set[int]] = {}
        for gpu in self.serving:
            groups.setdefault(gpu // self.instance.parallelism.attention_tp, set()).add(gpu)
        return {index: frozenset(groups[index]) for index in sorted(groups)}

    @cached_property
    def group_tokens(self) -> dict[int, float]:
        """Tokens that each of these groups attends to."""
        return {group: float(tokens.sum()) for group, tokens in self.started.items()}

    @cached_property
    def started(self) -> dict[int, Floats]:
        """Tokens of each node [nodes] that each of these groups attends to.

        Every GPU of a group brings its users, failed ones too; to whom no GPU of the group is left in their node, these
        are divided evenly among all GPUs that serve there.
        """
        size, every = self.instance.parallelism.attention_tp, self.instance.traffic.tokens_per_gpu
        tokens = {group: np.zeros(self.instance.cluster.nodes) for group in self.tensor_groups}
        for gpu in range(self.instance.gpus):
            here = self.serving_of_node[self.node(gpu)]
            own = [other for other in here if other // size == gpu // size]
            for other in [gpu] if own else here:
                tokens[other // size][self.node(gpu)] += every / (1 if own else len(here))
        return tokens

    def returned(self, layer: int, groups: Iterable[int]) -> float:
        """Results per step that come back for the tokens of some groups: one for every copy that was sent."""
        of_node = self.moe[layer].flow.sum(axis=1)
        each = of_node / (self.instance.traffic.tokens_per_gpu * self.instance.cluster.gpus_per_node)
        return float(sum(self.started[group] @ each for group in groups if group in self.started))

    @property
    def forwards(self) -> bool:
        """Whether a node forwards what it receives over NVLink, and sums there what its experts make of it."""
        return self.instance.placement.dispatch == "per-node"

    def exchanges(self, nodes: Iterable[int]) -> bool:
        """Whether any of these nodes has several GPUs that serve."""
        return any(len(self.serving_of_node.get(node, [])) > 1 for node in nodes)

    @cached_property
    def serving_of_node(self) -> dict[int, list[int]]:
        """Those of each node, in order."""
        found: dict[int, list[int]] = {}
        for gpu in sorted(self.serving):
            found.setdefault(self.node(gpu), []).append(gpu)
        return found

    @property
    def shares_attention(self) -> bool:
        """Whether tensor-parallel groups have several GPUs, failed ones counted."""
        return min(self.instance.parallelism.attention_tp, self.instance.gpus) > 1

    def apart(self, source: int, target: int) -> bool:
        """Whether what one node sends the other leaves its NVLink domain."""
        return bool(self._domain[source] != self._domain[target])

    @cached_property
    def _domain(self) -> npt.NDArray[np.int64]:
        return nvlink_domains(self.instance)

    def node(self, gpu: int) -> int:
        """Node of a GPU."""
        return gpu // self.instance.cluster.gpus_per_node
