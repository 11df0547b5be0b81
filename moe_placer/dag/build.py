"""Builds the typed graph of one step: what comes before, in between and after the MoE layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from moe_placer.dag.flows import Flows, read_flows
from moe_placer.dag.groups import Crew, find_crews, first_gpu, ring
from moe_placer.dag.moe_layer import add_moe_layer
from moe_placer.dag.operation import Dag, Operation
from moe_placer.dag.weave import Weaver
from moe_placer.fabric import link_us, token_cost
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic

__all__ = ["build_dag"]


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
        Whether replicas of one expert on the same GPUs are one copy that stands in for others (see `Flows`).

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
    weaver = Weaver(instance, dag, flows)
    crews = find_crews(instance)
    dag.facts = {
        "layers": shown,
        "whole": whole,
        "nodes": instance.cluster.nodes,
        "gpus_per_node": instance.cluster.gpus_per_node,
        "dp": instance.parallelism.dp,
        "tp": instance.parallelism.attention_tp,
        "links": {},
        "metric": instance.objective.metric,
        "per_token": _per_token(instance, flows),
    }
    hidden = _begin(weaver, crews) if whole else _begin_inside(weaver, crews)
    rows = {layer: row for row, layer in enumerate(instance.moe_layers)}
    for layer in shown:
        if layer in rows:
            hidden = add_moe_layer(weaver, crews, hidden, layer, rows[layer])
        else:
            hidden = _add_dense_layer(weaver, crews, hidden, layer)
    if whole:
        _end(weaver, crews, hidden)
    else:
        _end_inside(weaver, crews, hidden)
    weaver.finish()
    return dag


def _per_token(instance: Instance, flows: Flows) -> dict[str, list[float]]:
    """Return each link's cost of one token, and the microseconds that it needs for one, one way."""
    cost = token_cost(instance, flows.bandwidth)
    us = link_us(instance, flows.bandwidth, np.ones(len(flows.links)))
    return {link: [c, t] for link, c, t in zip(flows.links, cost.tolist(), us.tolist(), strict=True)}


def _begin(weaver: Weaver, crews: list[Crew]) -> list[Operation]:
    """Split the tokens over the DP replicas, down to tensor-parallel groups, and embed them."""
    instance, size = weaver.instance, weaver.precision
    tokens = sum(crew.total for crew in crews)
    first = first_gpu(instance)
    home = first // instance.cluster.gpus_per_node
    source = weaver.add("input", "input", (first,))
    split = weaver.add("split", "split", _all_gpus(crews))
    away = [(home, node) for crew in crews for node in crew.tokens]
    weaver.connect(source, split, "ids", (tokens,), dtype="tokens", moves=True, pairs=away)
    hidden = []
    for crew in crews:
        embedding = weaver.add(f"embedding.g{crew.index}", "embedding", crew.gpus, group=crew.group)
        # Only the rows that are looked up are read.
        embedding.bytes_read = crew.total * instance.model.hidden_size * size
        weaver.connect(split, embedding, f"ids.g{crew.index}", (crew.total,), dtype="tokens")
        hidden.append(weaver.reduce(embedding, crew, "embedding_reduce", "embedded"))
    return hidden


def _begin_inside(weaver: Weaver, crews: list[Crew]) -> list[Operation]:
    return [weaver.add(f"input.g{crew.index}", "input", crew.gpus, group=crew.group) for crew in crews]


def _add_dense_layer(weaver: Weaver, crews: list[Crew], hidden: list[Operation], layer: int) -> list[Operation]:
    """Attention and a dense MLP under tensor parallelism."""
    model = weaver.instance.model
    width = model.dense_hidden_size or model.top_k * model.expert_hidden_size
    after = []
    for crew, before in zip(crews, hidden, strict=True):
        attended = weaver.attend(crew, before, layer)
        mlp = weaver.add(f"L{layer}.mlp.g{crew.index}", "mlp", crew.gpus, layer, crew.group)
        weights = model.expert_matrices * model.hidden_size * width
        mlp.flops, mlp.bytes_read = 2 * crew.total * weights, weights * weaver.precision
        weaver.connect(attended, mlp, f"attended.g{crew.index}", (crew.total, model.hidden_size))
        after.append(weaver.reduce(mlp, crew, "mlp_reduce", "mlp", layer))
    return after


def _end(weaver: Weaver, crews: list[Crew], hidden: list[Operation]) -> None:
    """Add final norm, head, the likeliest token of each position, and gathering from the replicas."""
    instance, tokens = weaver.instance, sum(crew.total for crew in crews)
    first = first_gpu(instance)
    home = first // instance.cluster.gpus_per_node
    last = [_predict(weaver, crew, before) for crew, before in zip(crews, hidden, strict=True)]
    gather = weaver.add("gather", "gather", _all_gpus(crews))
    for crew, made in zip(crews, last, strict=True):
        away = [(node, home) for node in crew.tokens]
        name = f"next.g{crew.index}"
        weaver.connect(made, gather, name, (crew.total,), dtype="tokens", moves=True, pairs=away)
    output = weaver.add("output", "output", (first,))
    weaver.connect(gather, output, "next", (tokens,), dtype="tokens")


def _predict(weaver: Weaver, crew: Crew, before: Operation) -> Operation:
    """Norm, head over the crew's shards of the vocabulary, and the likeliest token over all shards."""
    model, g, shape = weaver.instance.model, crew.index, (crew.total, weaver.instance.model.hidden_size)
    norm = weaver.add(f"norm.g{g}", "norm", crew.gpus, group=crew.group)
    norm.flops = 4 * crew.total * model.hidden_size  # square, add, scale by the norm, scale by the weight
    norm.bytes_read = model.hidden_size * weaver.precision
    head = weaver.add(f"head.g{g}", "head", crew.gpus, group=crew.group)
    head.flops = 2 * crew.total * model.hidden_size * model.vocab_size
    head.bytes_read = model.hidden_size * model.vocab_size * weaver.precision
    sample = weaver.add(f"sample.g{g}", "sample", crew.gpus, group=crew.group)
    sample.flops = crew.total * model.vocab_size
    weaver.connect(before, norm, f"hidden.g{g}", shape)
    weaver.connect(norm, head, f"normed.g{g}", shape)
    weaver.connect(head, sample, f"logits.g{g}", (crew.total, model.vocab_size))
    if not crew.shares:
        return sample
    total = weaver.add(f"sample_reduce.g{g}", "sample_reduce", crew.gpus, group=crew.group)
    name = f"likeliest.g{g}"
    weaver.connect(sample, total, name, (crew.total,), dtype="tokens", moves=True, pairs=ring(crew.tokens))
    return total


def _end_inside(weaver: Weaver, crews: list[Crew], hidden: list[Operation]) -> None:
    for crew, before in zip(crews, hidden, strict=True):
        output = weaver.add(f"output.g{crew.index}", "output", crew.gpus, group=crew.group)
        shape = (crew.total, weaver.instance.model.hidden_size)
        weaver.connect(before, output, f"hidden.g{crew.index}", shape)


def _all_gpus(crews: Iterable[Crew]) -> tuple[int, ...]:
    return tuple(sorted({gpu for crew in crews for gpu in crew.gpus}))
