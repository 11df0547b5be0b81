"""Builds the typed graph of one step: embedding, dense and MoE layers, and head."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from moe_placer.dag.flows import Flows, read_flows
from moe_placer.dag.graph_builder import GraphBuilder
from moe_placer.dag.groups import TpGroup, find_tp_groups, first_gpu, ring
from moe_placer.dag.moe_layer import add_moe_layer
from moe_placer.dag.operation import Dag, Operation
from moe_placer.fabric import link_us, token_cost
from moe_placer.instance import Instance
from moe_placer.instance.model_parts import dense_weights, part_bytes
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic

__all__ = ["add_step", "build_dag"]


def build_dag(
    instance: Instance,
    placement: Placement,
    traffic: Traffic,
    layers: Collection[int] | None = None,
    *,
    whole: bool = True,
    stand_ins: bool = False,
) -> Dag:
    """Build the graph of one step, from tokens that come in to tokens that go out.

    Parameters
    ----------
    instance, placement, traffic
        Must fit each other; the placement is drawn as it is, verified or not.
    layers : collection of int, optional
        Indices in the model of the layers to build; absent: all.
    whole : bool
        Whether input, embedding, head and output are built around the layers; otherwise every tensor-parallel group
        starts and ends with its hidden states.
    stand_ins : bool
        Whether replicas of one expert on the same GPUs are one replica that stands in for others (see `Flows`).

    Returns
    -------
    Dag
        Acyclic, every operation on a path from an input to an output. Token counts are the exact expected demand.

    Raises
    ------
    InputError
        Placement or traffic do not fit the instance, or tokens choose replicas by a rule that DAGs do not know.
    """
    flows = read_flows(instance, placement, traffic, stand_ins=stand_ins)
    shown = sorted(range(instance.model.layers) if layers is None else set(layers))
    dag = Dag(instance.name)
    dag.facts = {
        "layers": shown,
        "whole": whole,
        "nodes": instance.cluster.nodes,
        "gpus_per_node": instance.cluster.gpus_per_node,
        "dp": instance.parallelism.dp,
        "tp": instance.parallelism.attention_tp,
        "links": {},
        "metric": instance.objective.metric,
        "dispatch": instance.placement.dispatch,
        "per_token": _per_token(instance, flows),
    }
    builder = GraphBuilder(instance, dag, flows)
    add_step(builder, shown, whole=whole)
    builder.finish()
    return dag


def add_step(builder: GraphBuilder, layers: Collection[int], *, whole: bool = True) -> None:
    """Add the operations and tensors of some layers, with what is before and behind them where ``whole``."""
    instance = builder.instance
    tp_groups = find_tp_groups(instance)
    hidden = _begin(builder, tp_groups) if whole else _begin_inside(builder, tp_groups)
    rows = {layer: row for row, layer in enumerate(instance.moe_layers)}
    for layer in layers:
        if layer in rows:
            hidden = add_moe_layer(builder, tp_groups, hidden, layer, rows[layer])
        else:
            hidden = _add_dense_layer(builder, tp_groups, hidden, layer)
    if whole:
        _end(builder, tp_groups, hidden)
    else:
        _end_inside(builder, tp_groups, hidden)


def _per_token(instance: Instance, flows: Flows) -> dict[str, list[float]]:
    """Return each link's cost of one token, and the microseconds that it needs for one, one way."""
    cost = token_cost(instance, flows.bandwidth)
    us = link_us(instance, flows.bandwidth, np.ones(len(flows.links)))
    return {link: [c, t] for link, c, t in zip(flows.links, cost.tolist(), us.tolist(), strict=True)}


def _begin(builder: GraphBuilder, tp_groups: list[TpGroup]) -> list[Operation]:
    """Split the tokens over the DP replicas, down to tensor-parallel groups, and embed them."""
    instance, size = builder.instance, part_bytes(builder.instance.model, "head")
    tokens = sum(tp_group.total for tp_group in tp_groups)
    first = first_gpu(instance)
    home = first // instance.cluster.gpus_per_node
    source = builder.add("input", "input", (first,))
    split = builder.add("split", "split", _all_gpus(tp_groups))
    away = [(home, node) for tp_group in tp_groups for node in tp_group.tokens]
    builder.connect(source, split, "ids", (tokens,), dtype="tokens", moves=True, pairs=away)
    hidden = []
    for tp_group in tp_groups:
        embedding = builder.add(f"embedding.g{tp_group.index}", "embedding", tp_group.gpus, group=tp_group.group)
        # Only the rows that are looked up are read.
        embedding.bytes_read = tp_group.total * instance.model.hidden_size * size
        builder.connect(split, embedding, f"ids.g{tp_group.index}", (tp_group.total,), dtype="tokens")
        hidden.append(builder.reduce(embedding, tp_group, "embedding_reduce", "embedded"))
    return hidden


def _begin_inside(builder: GraphBuilder, tp_groups: list[TpGroup]) -> list[Operation]:
    return [
        builder.add(f"input.g{tp_group.index}", "input", tp_group.gpus, group=tp_group.group) for tp_group in tp_groups
    ]


def _add_dense_layer(
    builder: GraphBuilder, tp_groups: list[TpGroup], hidden: list[Operation], layer: int
) -> list[Operation]:
    """Attention and a dense MLP under tensor parallelism."""
    model, after = builder.instance.model, []
    for tp_group, before in zip(tp_groups, hidden, strict=True):
        attended = builder.attend(tp_group, before, layer)
        mlp = builder.add(f"L{layer}.mlp.g{tp_group.index}", "mlp", tp_group.gpus, layer, tp_group.group)
        builder.multiply(mlp, tp_group.total, dense_weights(model), "dense")
        builder.connect(attended, mlp, f"attended.g{tp_group.index}", (tp_group.total, model.hidden_size))
        after.append(builder.reduce(mlp, tp_group, "mlp_reduce", "mlp", layer))
    return after


def _end(builder: GraphBuilder, tp_groups: list[TpGroup], hidden: list[Operation]) -> None:
    """Add final norm, head, the likeliest token of each position, and gathering from the replicas."""
    instance, tokens = builder.instance, sum(tp_group.total for tp_group in tp_groups)
    first = first_gpu(instance)
    home = first // instance.cluster.gpus_per_node
    last = [_predict(builder, tp_group, before) for tp_group, before in zip(tp_groups, hidden, strict=True)]
    gather = builder.add("gather", "gather", _all_gpus(tp_groups))
    for tp_group, made in zip(tp_groups, last, strict=True):
        away = [(node, home) for node in tp_group.tokens]
        name = f"next.g{tp_group.index}"
        builder.connect(made, gather, name, (tp_group.total,), dtype="tokens", moves=True, pairs=away)
    output = builder.add("output", "output", (first,))
    builder.connect(gather, output, "next", (tokens,), dtype="tokens")


def _predict(builder: GraphBuilder, tp_group: TpGroup, before: Operation) -> Operation:
    """Norm, head over the TP group's shards of the vocabulary, and the likeliest token over all shards."""
    model, g, shape = builder.instance.model, tp_group.index, (tp_group.total, builder.instance.model.hidden_size)
    norm = builder.add(f"norm.g{g}", "norm", tp_group.gpus, group=tp_group.group)
    norm.flops = 4 * tp_group.total * model.hidden_size  # square, add, scale by the norm, scale by the weight
    norm.bytes_read = model.hidden_size * part_bytes(model, "head")
    head = builder.add(f"head.g{g}", "head", tp_group.gpus, group=tp_group.group)
    builder.multiply(head, tp_group.total, model.hidden_size * model.vocab_size, "head")
    sample = builder.add(f"sample.g{g}", "sample", tp_group.gpus, group=tp_group.group)
    sample.flops = tp_group.total * model.vocab_size
    builder.connect(before, norm, f"hidden.g{g}", shape)
    builder.connect(norm, head, f"normed.g{g}", shape)
    builder.connect(head, sample, f"logits.g{g}", (tp_group.total, model.vocab_size))
    if not tp_group.shares:
        return sample
    total = builder.add(f"sample_reduce.g{g}", "sample_reduce", tp_group.gpus, group=tp_group.group)
    name = f"likeliest.g{g}"
    builder.connect(sample, total, name, (tp_group.total,), dtype="tokens", moves=True, pairs=ring(tp_group.tokens))
    return total


def _end_inside(builder: GraphBuilder, tp_groups: list[TpGroup], hidden: list[Operation]) -> None:
    for tp_group, before in zip(tp_groups, hidden, strict=True):
        output = builder.add(f"output.g{tp_group.index}", "output", tp_group.gpus, group=tp_group.group)
        shape = (tp_group.total, builder.instance.model.hidden_size)
        builder.connect(before, output, f"hidden.g{tp_group.index}", shape)


def _all_gpus(tp_groups: Iterable[TpGroup]) -> tuple[int, ...]:
    return tuple(sorted({gpu for tp_group in tp_groups for gpu in tp_group.gpus}))
