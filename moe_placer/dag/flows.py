"""How many tokens go where: from every node to every expert replica, and over which links."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_placer.dag.token_copies import copies_to_places
from moe_placer.errors import InputError, Mistake
from moe_placer.fabric import Receivers, Routes, node_routes, receivers, token_cost
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic.near_shares import near_rule
from moe_placer.traffic.recording import Traffic
from moe_placer.traffic.replica_shares import replica_shares

__all__ = ["Flows", "LayerFlow", "check_fit", "read_flows"]

Floats = npt.NDArray[np.float64]
Replica = tuple[int, int, tuple[int, ...]]  # expert, replica, GPUs


@dataclass(frozen=True, eq=False)
class LayerFlow:
    """The dispatch of one MoE layer.

    Attributes
    ----------
    replicas : list of (expert, replica, GPUs)
        Every replica, expert by expert (of stand-ins on the same GPUs the first); several GPUs where it is sharded.
    tokens : float array [nodes, replicas]
        Tokens per step from each node to each replica.
    uses : bool array [nodes, replicas]
        Whether the node's tokens may go to this replica at all.
    chosen : float array [nodes]
        Experts that a node's token chooses, on average.
    sent : float array [nodes, nodes]
        Copies of tokens per step from each node to each, as ``placement.dispatch`` counts them; what a node sends to
        itself is on the diagonal.
    copies : float array [nodes]
        Copies of a node's token, on average, those for its own node included.
    load : float array [links]
        Plain tokens per step.
    cost : float array [links]
        As in placement-model.md: tokens at node-link speed; plain tokens under ``metric: tokens``.
    arriving : float array [nodes, GPUs]
        Copies from each node that arrive at each GPU, where GPUs receive by NICs of their own; else without columns.
    """

    replicas: list[tuple[int, int, tuple[int, ...]]]
    tokens: Floats
    uses: npt.NDArray[np.bool_]
    chosen: Floats
    sent: Floats
    copies: Floats
    load: Floats
    cost: Floats
    arriving: Floats


@dataclass(frozen=True, eq=False)
class Flows:
    """Routes between nodes, and the dispatch of any MoE layer, computed when asked for.

    With ``stand_ins``, what a placement lists as several replicas of an expert on the same GPUs is one replica that
    stands in for others, and with ``group`` routing an expert may have a multiple of dp replicas.
    """

    instance: Instance
    placement: Placement
    traffic: Traffic
    routes: Routes
    stand_ins: bool = False

    @cached_property
    def receivers(self) -> Receivers | None:
        """NICs of single GPUs; None where which GPU of a node holds an expert does not count."""
        return receivers(self.instance)

    @property
    def links(self) -> tuple[str, ...]:
        """Links between nodes, and then the NICs by which single GPUs receive."""
        return self.routes.links + (() if self.receivers is None else self.receivers.every)

    @property
    def bandwidth(self) -> Floats:
        """Of each link, GB/s, one direction."""
        nics = self.receivers
        return (
            self.routes.bandwidth
            if nics is None
            else np.append(self.routes.bandwidth, np.full(len(nics.every), nics.gb_per_s))
        )

    def layer(self, row: int) -> LayerFlow:
        """Compute the dispatch of the row-th MoE layer."""
        instance = self.instance
        nodes, experts = instance.cluster.nodes, instance.model.experts
        replicas = [
            (expert, replica, tuple(sorted(gpus)))
            for expert in range(experts)
            for replica, gpus in enumerate(self.placement.shards(row, expert))
        ]
        started = instance.traffic.tokens_per_gpu * instance.cluster.gpus_per_node
        choices = np.stack([r.load[row] / r.tokens[row] for r in self.traffic.recordings])
        T = started * (self.traffic.mix @ choices)
        share = self._near_shares[row] if self._near_shares else self._shares(replicas)
        if self.stand_ins:
            replicas, share = _merged(replicas, share)
        expert = np.array([one[0] for one in replicas])
        tokens = T[:, expert] * share
        by_gpu = self._by_gpu(row, replicas, share, tokens)
        sent = by_gpu.reshape(nodes, nodes, -1).sum(axis=2)
        chosen = T.sum(axis=1) / started
        copies = sent.sum(axis=1) / started if instance.placement.counts_tokens_once else chosen
        crossing = sent * ~np.eye(nodes, dtype=bool)
        load, arriving = np.asarray(self.routes.shares @ crossing.ravel()), np.zeros((nodes, 0))
        if self.receivers is not None:
            arriving = by_gpu
            arriving[np.arange(instance.gpus) // instance.cluster.gpus_per_node, np.arange(instance.gpus)] = 0.0
            load = np.append(load, self.receivers.load(arriving.sum(axis=0)))
        cost = load * token_cost(instance, self.bandwidth)
        return LayerFlow(replicas, tokens, share > 0, chosen, sent, copies, load, cost, arriving)

    def _by_gpu(self, row: int, replicas: list[Replica], share: Floats, tokens: Floats) -> Floats:
        """Count the copies from every node to every GPU [nodes, GPUs]; where a node gets one, to its first GPU."""
        instance = self.instance
        sent, gpu = np.zeros((len(share), instance.gpus)), np.array([gpus[0] for _, _, gpus in replicas])
        if not instance.placement.counts_tokens_once:
            np.add.at(sent.T, gpu, tokens.T)
            return sent
        size = 1 if instance.placement.dispatch == "per-gpu" else instance.cluster.gpus_per_node
        started = instance.traffic.tokens_per_gpu * instance.cluster.gpus_per_node
        expert = np.array([one[0] for one in replicas])
        found = copies_to_places(self.traffic, row, started, share, (expert, gpu // size))
        sent[:, : size * found.shape[1] : size] = found
        return sent

    @cached_property
    def _near_shares(self) -> list[Floats]:
        """Share of a node's tokens that goes to each replica of every MoE layer, where near ones are preferred."""
        rule = near_rule(self.instance, self.routes.hops)
        if rule is None:
            return []
        experts = range(self.instance.model.experts)
        layers = []
        for row in range(len(self.instance.moe_layers)):
            own = [(e, gpus[0]) for e in experts for gpus in self.placement.shards(row, e)]
            expert, gpu = np.array(own, dtype=np.int64).T
            layers.append((expert, gpu))
        return rule.exact(layers)

    def _shares(self, replicas: list[tuple[int, int, tuple[int, ...]]]) -> Floats:
        """Share of a node's tokens for an expert that goes to each of its replicas: [nodes, replicas].

        With ``group``, group r uses replica r; where an expert has a multiple of dp replicas, r, r + dp, ... evenly.
        Rules that number replicas do so by GPU.
        """
        nodes, dp = self.instance.cluster.nodes, self.instance.parallelism.dp
        expert = [one[0] for one in replicas]
        count = np.bincount(expert)[expert]
        if self.instance.placement.replica_routing == "group":
            group = np.arange(nodes) * dp // nodes
            replica = np.array([one[1] for one in replicas])
            return np.where(group[:, None] == replica[None, :] % dp, dp / count, 0.0)
        shares = replica_shares(self.instance)
        if shares is None:
            return np.tile(1.0 / count, (nodes, 1))
        order = np.lexsort(([one[2][0] for one in replicas], expert))
        share = np.zeros((nodes, len(replicas)))
        number = np.concatenate([np.arange(own) for own in np.bincount(expert).tolist()])
        share[:, order] = shares.of(np.array(expert)[order], number)
        return share


def _merged(replicas: list[Replica], share: Floats) -> tuple[list[Replica], Floats]:
    """Make one of what are replicas of an expert on the same GPUs: where one stands in for another."""
    first: dict[tuple[int, tuple[int, ...]], int] = {}
    into = np.array([first.setdefault((expert, gpus), index) for index, (expert, _, gpus) in enumerate(replicas)])
    kept = np.unique(into)
    summed = np.zeros((len(share), len(kept)))
    np.add.at(summed.T, np.searchsorted(kept, into), share.T)
    return [replicas[index] for index in kept.tolist()], summed


def read_flows(instance: Instance, placement: Placement, traffic: Traffic, *, stand_ins: bool = False) -> Flows:
    """Check that placement and traffic fit the instance, and compile its routes.

    Parameters
    ----------
    instance : Instance
    placement : Placement
    traffic : Traffic
        Routing statistics of the instance's sources.
    stand_ins : bool
        Whether replicas of one expert on the same GPUs are one that stands in for others.

    Raises
    ------
    InputError
        They do not fit.
    """
    mistakes = check_fit(instance, placement, traffic, stand_ins=stand_ins)
    if mistakes:
        raise InputError(mistakes)
    return Flows(instance, placement, traffic, node_routes(instance), stand_ins)


def check_fit(instance: Instance, placement: Placement, traffic: Traffic, *, stand_ins: bool = False) -> list[Mistake]:
    """List what keeps a DAG from being built.

    Parameters as of `moe_placer.dag.flows.read_flows`.
    """
    return [*_placement_mistakes(instance, placement, stand_ins), *_traffic_mistakes(instance, traffic)]


def _placement_mistakes(instance: Instance, placement: Placement, stand_ins: bool) -> Iterator[Mistake]:
    layers, experts = len(instance.moe_layers), instance.model.experts
    group, dp = instance.placement.replica_routing == "group", instance.parallelism.dp
    if len(placement.gpu) != layers:
        yield Mistake(f"{len(placement.gpu)} layers in the placement", f"{layers} MoE layers", "gpu")
    for row, replicas in enumerate(placement.gpu[:layers]):
        if len(replicas) != experts:
            yield Mistake(f"{len(replicas)} experts", f"{experts}", f"gpu[{row}]")
        for expert in range(len(replicas)):
            shards = placement.shards(row, expert)
            if not shards or not all(shards) or any(gpu >= instance.gpus for gpus in shards for gpu in gpus):
                expected = f"one or more replicas on GPUs below {instance.gpus}"
                yield Mistake(f"{replicas[expert]}", expected, f"gpu[{row}][{expert}]")
            elif group and (len(shards) % dp if stand_ins else len(shards) != dp):
                expected = f"one for each of the {dp} DP groups"
                yield Mistake(f"{len(shards)} replicas", expected, f"gpu[{row}][{expert}]")


def _traffic_mistakes(instance: Instance, traffic: Traffic) -> Iterator[Mistake]:
    layers, experts = len(instance.moe_layers), instance.model.experts
    if traffic.mix.shape != (instance.cluster.nodes, len(traffic.recordings)) or not traffic.recordings:
        expected = f"a row for each of {instance.cluster.nodes} nodes, a column for each recording"
        yield Mistake(f"a mix of shape {traffic.mix.shape}", expected, "traffic.mix")
    for index, recording in enumerate(traffic.recordings):
        path = f"traffic.recordings[{index}]"
        if recording.load.shape != (layers, experts) or recording.tokens.shape != (layers,):
            found = f"loads of shape {recording.load.shape}"
            yield Mistake(found, f"{(layers, experts)} [MoE layers, experts]", path)
        elif not (recording.tokens > 0).all():
            yield Mistake("a layer without tokens", "tokens in every layer", path)
        elif recording.topk is None and instance.placement.counts_tokens_once:
            found = f"expert loads only, with placement.dispatch: {instance.placement.dispatch}"
            expected = "every token's choice (topk), since loads do not say which experts a token chooses together"
            yield Mistake(found, expected, path)
