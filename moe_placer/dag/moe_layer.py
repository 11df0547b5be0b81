"""Adds one MoE layer: attention, gating, dispatch, every expert replica on its GPU, combine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.dag.flows import LayerFlow
from moe_placer.dag.graph_builder import Exchange, GraphBuilder
from moe_placer.dag.groups import TpGroup, node_gpus, ring
from moe_placer.dag.operation import Operation
from moe_placer.instance.model_parts import expert_weights, shared_weights
from moe_placer.instance.sizes import combine_wire, dispatch_wire

__all__ = ["add_moe_layer"]

Hot = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Layer:
    """One MoE layer under construction.

    Attributes
    ----------
    home : list of int
        Node of each replica.
    to : float array [nodes, nodes]
        Copies of tokens from node s to node d; nan where none may go there.
    hot : float array [nodes, nodes]
        Cost of the costliest link from s to d over the busiest link's.
    """

    index: int
    flow: LayerFlow
    home: list[int]
    to: npt.NDArray[np.float64]
    hot: Hot

    def name(self, rest: str) -> str:
        return f"L{self.index}.{rest}"


def add_moe_layer(
    builder: GraphBuilder, tp_groups: list[TpGroup], hidden: list[Operation], layer: int, row: int
) -> list[Operation]:
    """Add the row-th MoE layer; return what holds each tp_group's hidden states afterwards.

    Parameters
    ----------
    builder : GraphBuilder
        What collects operations and edges.
    tp_groups : list of TpGroup
        All tensor-parallel groups.
    hidden : list of Operation
        What holds the hidden states of each group before the layer.
    layer : int
        Index in the model.
    row : int
        The layer, counted among MoE layers.
    """
    moe = _survey(builder, layer, row)
    attended = [builder.attend(tp_group, before, layer) for tp_group, before in zip(tp_groups, hidden, strict=True)]
    routed = [_gate(builder, moe, tp_group, before) for tp_group, before in zip(tp_groups, attended, strict=True)]
    shared = _share(builder, moe, tp_groups, attended)
    senders = _send(builder, moe, tp_groups, attended, routed)
    returned = _compute(builder, moe, senders)
    back = _combine(builder, moe, returned)
    totals = _aggregate(builder, moe, tp_groups, attended, routed, back)
    for tp_group, made, total in zip(tp_groups, shared, totals, strict=bool(shared)):
        builder.connect(made, total, f"shared.g{tp_group.index}", (tp_group.total, builder.instance.model.hidden_size))
        total.flops += tp_group.total * builder.instance.model.hidden_size
    return totals


def _share(builder: GraphBuilder, moe: _Layer, tp_groups: list[TpGroup], attended: list[Operation]) -> list[Operation]:
    """Add the shared experts, an MLP that all tokens go through on their own GPUs; none where the model has none."""
    model, made = builder.instance.model, []
    if not shared_weights(model):
        return []
    for tp_group, before in zip(tp_groups, attended, strict=True):
        mlp = builder.add(moe.name(f"mlp.g{tp_group.index}"), "mlp", tp_group.gpus, moe.index, tp_group.group)
        builder.multiply(mlp, tp_group.total, shared_weights(model), "shared")
        builder.connect(before, mlp, f"attended.g{tp_group.index}", (tp_group.total, model.hidden_size))
        made.append(builder.reduce(mlp, tp_group, "mlp_reduce", "mlp", moe.index))
    return made


def _survey(builder: GraphBuilder, layer: int, row: int) -> _Layer:
    """Find out how many tokens go between which nodes, and how hot the links between them are."""
    instance, flow = builder.instance, builder.flows.layer(row)
    nodes, per_node = instance.cluster.nodes, instance.cluster.gpus_per_node
    home = [gpus[0] // per_node for _, _, gpus in flow.replicas]
    to = np.where(_used(flow, home), flow.sent, np.nan)
    worst = float(flow.cost.max(initial=0.0))
    builder.dag.facts["links"][layer] = dict(zip(builder.flows.links, flow.cost.tolist(), strict=True))
    hot = np.zeros((nodes, nodes))
    if worst > 0:
        hot = np.where(np.nan_to_num(to) > 0, builder.costliest(flow.cost) / worst, 0.0)
        hot = np.maximum(hot, _hot_nics(builder, flow) / worst)
    return _Layer(layer, flow, home, to, hot)


def _used(flow: LayerFlow, home: list[int]) -> npt.NDArray[np.bool_]:
    """Whether tokens of node s may go to a replica on node d [nodes, nodes]."""
    used = np.zeros((len(flow.uses), len(flow.uses)), dtype=bool)
    np.logical_or.at(used.T, home, flow.uses.T)
    return used


def _hot_nics(builder: GraphBuilder, flow: LayerFlow) -> Hot:
    """Cost of the costliest NIC of node d at which tokens from node s arrive [nodes, nodes]; 0 where there is none."""
    nodes, nics = builder.instance.cluster.nodes, builder.flows.receivers
    if nics is None:
        return np.zeros((nodes, nodes))
    cost = dict(zip(builder.flows.links, flow.cost.tolist(), strict=True))
    of_gpu = np.array([cost[link] for link in nics.links])[nics.group]
    return np.asarray(np.where(flow.arriving > 0, of_gpu, 0.0).reshape(nodes, nodes, -1).max(axis=2))


def _gate(builder: GraphBuilder, moe: _Layer, tp_group: TpGroup, attended: Operation) -> Operation:
    """Gate on the TP group's head GPU, and hand the choices to all of its GPUs."""
    model, g = builder.instance.model, tp_group.index
    gate = builder.add(moe.name(f"gate.g{g}"), "gate", tp_group.head, moe.index, tp_group.group)
    builder.multiply(gate, tp_group.total, model.hidden_size * model.experts, "gate")
    builder.connect(attended, gate, f"attended.g{g}", (tp_group.total, model.hidden_size))
    if not tp_group.shares:
        return gate
    scatter = builder.add(moe.name(f"gate_scatter.g{g}"), "gate_scatter", tp_group.gpus, moe.index, tp_group.group)
    home = tp_group.head[0] // builder.instance.cluster.gpus_per_node
    away = [(home, node) for node in tp_group.tokens]
    shape = (tp_group.total, _chosen(moe, tp_group))
    builder.connect(gate, scatter, f"choices.g{g}", shape, dtype="choices", moves=True, pairs=away)
    return scatter


def _chosen(moe: _Layer, tp_group: TpGroup) -> float:
    """Return how many experts a token of the tp_group chooses, on average over its nodes."""
    total = sum(tokens * moe.flow.chosen[node] for node, tokens in tp_group.tokens.items())
    return _clean(total / tp_group.total)


def _clean(value: float) -> float:
    """Drop the last digits, so that eight experts are 8 and not 7.999999999."""
    return round(float(value), 9)


def _send(
    builder: GraphBuilder, moe: _Layer, tp_groups: list[TpGroup], attended: list[Operation], routed: list[Operation]
) -> dict[int, Operation]:
    """Every node sends each token once for every expert it chose, or once to every GPU or node with any of them."""
    instance = builder.instance
    senders = {
        node: builder.add(
            moe.name(f"dispatch_send.n{node}"),
            "dispatch_send",
            node_gpus(instance, node),
            moe.index,
            node * instance.parallelism.dp // instance.cluster.nodes,
        )
        for node in range(instance.cluster.nodes)
    }
    for tp_group, source, routes in zip(tp_groups, attended, routed, strict=True):
        for node, tokens in tp_group.tokens.items():
            name = f"g{tp_group.index}.n{node}"
            builder.connect(source, senders[node], f"leaving.{name}", (tokens, instance.model.hidden_size))
            shape = (tokens, _clean(moe.flow.chosen[node]))
            builder.connect(routes, senders[node], f"chosen.{name}", shape, dtype="choices")
    return senders


def _compute(builder: GraphBuilder, moe: _Layer, senders: dict[int, Operation]) -> dict[int, list[Operation]]:
    """Add receivers and experts; return for each node what makes its experts' results, in the order of ``replicas``."""
    instance, model = builder.instance, builder.instance.model
    receivers, forwards = _receive(builder, moe, senders), dispatch_wire(instance) if _forwards(builder) else None
    results: dict[int, list[Operation]] = {node: [] for node in receivers}
    tokens = moe.flow.tokens.sum(axis=0).tolist()
    for (expert, replica, gpus), node, count in zip(moe.flow.replicas, moe.home, tokens, strict=True):
        name, shape = f"e{expert}.r{replica}", (count, model.hidden_size)
        compute = builder.add(moe.name(f"expert.{name}"), "expert", gpus, moe.index)
        compute.group = replica if instance.placement.replica_routing == "group" else None
        compute.experts = ((expert, replica),)
        builder.multiply(compute, count, expert_weights(model), "experts")
        shared = len(gpus) > 1
        nodes = {gpu // instance.cluster.gpus_per_node for gpu in gpus}
        builder.connect(receivers[node], compute, f"tokens.{name}", shape, wire=forwards, moves=forwards is not None)
        if shared:
            total = builder.add(moe.name(f"expert_reduce.{name}"), "expert_reduce", gpus, moe.index, compute.group)
            builder.connect(compute, total, f"result_parts.{name}", shape, moves=True, pairs=ring(nodes))
            compute = total
        results[node].append(compute)
    return results


def _forwards(builder: GraphBuilder) -> bool:
    """Whether what a node receives goes on over NVLink to its experts' GPUs, and their results are summed by node."""
    return builder.instance.placement.dispatch == "per-node"


def _receive(builder: GraphBuilder, moe: _Layer, senders: dict[int, Operation]) -> dict[int, Operation]:
    instance, receivers = builder.instance, {}
    of_experts: dict[int, set[int]] = {}
    for (_, _, ids), node in zip(moe.flow.replicas, moe.home, strict=True):
        of_experts.setdefault(node, set()).update(ids)
    for node in sorted(of_experts):
        gpus = of_experts[node].union(node_gpus(instance, node))
        receivers[node] = builder.add(moe.name(f"dispatch_receive.n{node}"), "dispatch_receive", gpus, moe.index)
    # What stays is where it started, until it is forwarded.
    builder.exchange(
        senders, receivers, Exchange("sent", moe.to, moe.hot, dispatch_wire(instance), kept=_forwards(builder))
    )
    return receivers


def _combine(builder: GraphBuilder, moe: _Layer, results: dict[int, list[Operation]]) -> dict[int, Operation]:
    """Send every result back to the node its token came from: dispatch reversed.

    Where one copy served several experts, their results are weighted and summed before, and one sum goes back.
    """
    instance, width, wire = builder.instance, builder.instance.model.hidden_size, combine_wire(builder.instance)
    gathers, sums = wire if _forwards(builder) else None, instance.placement.counts_tokens_once
    tokens = np.ascontiguousarray(moe.flow.tokens.T).sum(axis=1).tolist()
    here: dict[int, list[int]] = {}
    for index, node in enumerate(moe.home):
        here.setdefault(node, []).append(index)
    senders = {}
    for node, made in results.items():
        gpus = {gpu for op in made for gpu in op.gpus} | set(node_gpus(instance, node))
        senders[node] = builder.add(moe.name(f"combine_send.n{node}"), "combine_send", gpus, moe.index)
        for op, index in zip(made, here[node], strict=True):
            expert, replica, _ = moe.flow.replicas[index]
            shape = (tokens[index], width)
            name = f"results.e{expert}.r{replica}"
            builder.connect(op, senders[node], name, shape, wire=gathers, moves=gathers is not None)
            senders[node].flops += 2 * shape[0] * width if sums else 0.0
    back = {}
    for node in range(instance.cluster.nodes):
        group = node * instance.parallelism.dp // instance.cluster.nodes
        name = moe.name(f"combine_receive.n{node}")
        back[node] = builder.add(name, "combine_receive", node_gpus(instance, node), moe.index, group)
    builder.exchange(senders, back, Exchange("back", moe.to.T, moe.hot.T, wire, kept=gathers is not None))
    return back


def _aggregate(
    builder: GraphBuilder,
    moe: _Layer,
    tp_groups: list[TpGroup],
    attended: list[Operation],
    routed: list[Operation],
    back: dict[int, Operation],
) -> list[Operation]:
    """Sum every token's results with the gate's weights, and add the residual; sums that came back have theirs."""
    width, after, sums = builder.instance.model.hidden_size, [], builder.instance.placement.counts_tokens_once
    for tp_group, residual, routes in zip(tp_groups, attended, routed, strict=True):
        g, chosen = tp_group.index, _chosen(moe, tp_group)
        total = builder.add(moe.name(f"aggregate.g{g}"), "aggregate", tp_group.gpus, moe.index, tp_group.group)
        came = {node: tokens * float(moe.flow.copies[node]) for node, tokens in tp_group.tokens.items()}
        results = sum(came.values()) if sums else 2 * tp_group.total * chosen  # add, or weight and add
        total.flops = width * (results + tp_group.total)  # and add the residual
        spread = len(tp_group.tokens) > 1
        for node in tp_group.tokens:
            shape = (came[node], width)
            pairs = [(node, other) for other in tp_group.tokens] if spread else []
            builder.connect(back[node], total, f"combined.g{g}.n{node}", shape, moves=spread, pairs=pairs)
        builder.connect(routes, total, f"choices.g{g}", (tp_group.total, chosen), dtype="choices")
        builder.connect(residual, total, f"attended.g{g}", (tp_group.total, width))
        after.append(total)
    return after
