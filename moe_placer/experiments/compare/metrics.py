"""Metrics of a placement on some traffic, from the loads that the verifier recomputes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.fabric import dispatch_us, link_bandwidths, nics_among, routes_between
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.problem.scenarios import scenarios_of
from moe_placer.traffic import Traffic
from moe_placer.verifier.loads import Network, choices_per_token, read_network
from moe_placer.verifier.nics import nvlink_domains
from moe_placer.verifier.picked import split_best, tokens_by_views
from moe_placer.verifier.replica_choice import check_rule, views_of
from moe_placer.verifier.rules import Replica, read_replicas
from moe_placer.verifier.sending import tokens_between, views_by_row

__all__ = ["Flows", "find_dispatch_us", "find_flows", "judged_load", "metrics", "rounded"]

Floats = npt.NDArray[np.float64]

_DIGITS = 5  # of matrices in rows


@dataclass(frozen=True, eq=False)
class Flows:
    """Tokens per step between nodes and on GPUs.

    Attributes
    ----------
    between : float array [MoE layers, nodes, nodes]
        From every node to every other node; what stays in a node, or goes by NVLink to another one, is 0.
    sent : float array [MoE layers, nodes, places]
        The same to places: to nodes, or to GPUs where these receive by NICs of their own.
    gpu : float array [MoE layers, GPUs]
        Whose expert work a GPU does; of an expert sharded over GPUs, each has its share.
    on_nics : float array [MoE layers, 2, nodes, NICs of a node] or None
        What every NIC sends and receives, where ranks of one node may send unlike; None where they send alike.
    """

    between: Floats
    sent: Floats
    gpu: Floats
    on_nics: Floats | None = None

    def load(self, network: Network) -> Floats:
        """Tokens per step on every link [MoE layers, links]."""
        load = np.stack([network.load(flow) for flow in self.sent])
        if self.on_nics is not None and self.on_nics.size:
            load[:, -self.on_nics[0].size :] = self.on_nics.reshape(len(load), -1)  # the last links, in this order
        return load


def find_flows(instance: Instance, placement: Placement, traffic: Traffic, rule: str | None = None) -> Flows:
    """Send every token of a verified placement's traffic where its experts are.

    Parameters
    ----------
    instance, placement, traffic
        What is where, and which tokens choose what.
    rule : str, optional
        By which tokens pick replicas, as `check_rule` knows them; absent: the instance's ``replica_routing``.
    """
    layers, nodes = len(instance.moe_layers), instance.cluster.nodes
    choices = choices_per_token(instance, traffic)
    of_layer: list[list[Replica]] = [[] for _ in range(layers)]
    for replica in read_replicas(instance, placement):
        of_layer[replica.row].append(replica)
    domain = nvlink_domains(instance)
    crossing = domain[:, None] != domain[None, :]
    between, gpu = np.zeros((layers, nodes, nodes)), np.zeros((layers, instance.gpus))
    sent: list[Floats] = []
    on_nics: list[Floats] = []
    counted = _counts(instance, traffic, choices, of_layer, rule)
    for row, (replicas, (flow, demand, *nics)) in enumerate(zip(of_layer, counted, strict=True)):
        on_nics += nics
        between[row] = flow.reshape(nodes, nodes, -1).sum(axis=2) * crossing
        sent.append(flow)
        shards = np.array([len(replica.gpus) for replica in replicas], dtype=np.int64)
        on = np.array([each for replica in replicas for each in replica.gpus], dtype=np.int64)
        gpu[row] = np.bincount(on, np.repeat(demand.sum(axis=0) / shards, shards), instance.gpus)
    return Flows(between, np.stack(sent), gpu, np.stack(on_nics) if on_nics else None)


def _counts(
    instance: Instance, traffic: Traffic, choices: Floats, layers: Sequence[Sequence[Replica]], rule: str | None
) -> Iterator[tuple[Floats, ...]]:
    """Yield what every MoE layer sends, what its replicas work on, and under rules of ranks what is on NICs."""
    if rule is None:
        for row, (replicas, views) in enumerate(zip(layers, views_by_row(instance, layers), strict=True)):
            yield tokens_between(instance, traffic, row, choices[:, row], replicas, views)
        return
    check_rule(instance, rule)
    if rule == "optimal":
        network = read_network(instance)
        for row, replicas in enumerate(layers):
            yield split_best(instance, traffic, choices[:, row], replicas, network)
        return
    hops = routes_between(instance).hops
    for row, views in enumerate(views_of(instance, rule, layers, hops)):
        yield tokens_by_views(instance, traffic, row, choices[:, row], layers[row], views)


def find_dispatch_us(instance: Instance, placement: Placement, traffic: Traffic) -> float:
    """Microseconds of a verified placement's dispatch, all layers one after the other."""
    network = read_network(instance)
    load = find_flows(instance, placement, traffic).load(network)
    return dispatch_us(instance, link_bandwidths(instance, network.links), load)


def metrics(instance: Instance, placement: Placement, traffic: Traffic) -> dict[str, Any]:
    """Return the metrics of a verified placement on some traffic, which need not be what it was solved for.

    ``communication_us`` is the dispatch of all layers one after the other, each as long as its slowest link takes:
    tokens * bytes per token / (bandwidth * utilization), as in the placement model; combine is dispatch reversed.
    ``step_us`` is for `moe_placer.experiments.compare.step_process` to fill in. Balancedness is mean over largest load
    of working GPUs, or of nodes that have one, as a mean over layers: 1 is even. Where the objective counts the worst
    recording of each layer, so do all figures of links; those of GPUs and pairs of nodes are of the mix.
    """
    network, flows = read_network(instance), find_flows(instance, placement, traffic)
    load, z = judged_load(instance, placement, traffic, network, flows.load(network))
    cost = load * network.scale
    pair = _largest(flows.between.reshape(len(load), -1))
    works = np.full(instance.gpus, True)
    works[list(instance.placement.failed_gpus)] = False
    by_node = flows.gpu.reshape(len(load), instance.cluster.nodes, -1).sum(axis=2)
    node = by_node[:, works.reshape(instance.cluster.nodes, -1).any(axis=1)]
    gpu = flows.gpu[:, works]
    return {
        "z_total": float(z.sum()),
        "z_largest": float(z.max()),
        "z": z.tolist(),
        "worst_link": [network.links[int(row.argmax())] if top > 0 else "" for row, top in zip(cost, z, strict=True)],
        "pair_total": float(pair.sum()),
        "pair_largest": float(pair.max()),
        "inter_node_tokens": float(flows.between.sum()),
        "token_hops": float(load.sum()),
        "gpu_balancedness": _balancedness(gpu),
        "node_balancedness": _balancedness(node),
        "busiest_gpu_tokens": float(_largest(gpu).sum()),
        "busiest_node_tokens": float(_largest(node).sum()),
        "communication_us": dispatch_us(instance, link_bandwidths(instance, network.links), load),
        **_nic_totals(network, cost),
        "step_us": None,
        "link_cost": rounded(cost),
        "gpu_load": rounded(flows.gpu),
    }


def judged_load(
    instance: Instance, placement: Placement, traffic: Traffic, network: Network, load: Floats
) -> tuple[Floats, Floats]:
    """Tokens on every link [MoE layers, links], of the mix or for each layer of the scenario that is worst there; z.

    Parameters
    ----------
    instance, placement, traffic
        As `metrics`.
    network : Network
        Links, routes and bandwidths.
    load : float array [MoE layers, links]
        Of the mix.

    Returns
    -------
    tuple of float array
        Tokens, and z [MoE layers].
    """
    if instance.objective.scenarios == "mix":
        return load, _largest(load * network.scale)
    scenarios = scenarios_of(instance, traffic)
    each = np.stack([find_flows(instance, placement, one).load(network) for one in scenarios])
    largest = (each * network.scale).max(axis=2, initial=0.0)  # [recordings, MoE layers]
    z = largest.max(axis=0)
    if instance.objective.take == "mean":
        z = largest.mean(axis=0) + instance.objective.sigmas * largest.std(axis=0)
    return np.asarray(each[largest.argmax(axis=0), np.arange(each.shape[1])]), z


def _nic_totals(network: Network, cost: Floats) -> dict[str, float | None]:
    """Sum over layers the cost of the busiest NIC, and of the busiest other link; None where no NIC is a link."""
    nic = nics_among(network.links)
    if not nic.any():
        return {"nic_total": None, "other_links_total": None}
    return {
        "nic_total": float(_largest(cost[:, nic]).sum()),
        "other_links_total": float(_largest(cost[:, ~nic]).sum()),
    }


def _largest(rows: Floats) -> Floats:
    return np.asarray(rows.max(axis=1, initial=0.0))


def _balancedness(load: Floats) -> float:
    largest = _largest(load)
    return float(np.where(largest > 0, load.mean(axis=1) / np.where(largest > 0, largest, 1.0), 1.0).mean())


def rounded(matrix: Floats) -> list[list[float]]:
    """Round to 5 significant digits, so that rows stay small."""
    rows: Sequence[Sequence[float]] = matrix.tolist()
    return [[float(f"{value:.{_DIGITS}g}") for value in row] for row in rows]
