"""Two micro-batches: sums stay, weights are read twice, and nothing overlaps that shares GPUs or the network."""

from __future__ import annotations

from collections import Counter, defaultdict

import networkx as nx
import pytest
from dag_examples import VARIANTS, example

from moe_placer.dag.operation import Dag
from moe_placer.dag.views import VIEWS


def both(name: str) -> tuple[Dag, Dag]:
    parts = example(name)
    return VIEWS["comprehensive_moe_dag"].build(*parts), VIEWS["complete_deployment_dag"].build(*parts)


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_and_bytes_on_the_network_stay(name: str) -> None:
    whole, halves = both(name)
    assert sum(op.flops for op in halves.operations()) == pytest.approx(sum(op.flops for op in whole.operations()))
    inside = sum(sum(op.moved.values()) for op in halves.operations())
    moved = sum(edge.bytes for edge in halves.edges())
    assert moved + inside == pytest.approx(sum(edge.bytes for edge in whole.edges()))


def test_weights_are_read_once_for_every_micro_batch() -> None:
    whole, halves = both("small")

    def weights(dag: Dag) -> Counter[str]:
        table: Counter[str] = Counter()
        for op in dag.operations():
            table[op.kind] += round(op.bytes_read - sum(edge.bytes for edge in dag.incoming(op.id)))
        return table

    once, twice = weights(whole), weights(halves)
    assert twice["expert"] == 2 * once["expert"] > 0
    assert twice["attention"] == 2 * once["attention"] > 0
    assert twice["embedding"] == once["embedding"] > 0  # only the rows that are looked up


@pytest.mark.parametrize("name", VARIANTS)
def test_what_shares_gpus_or_the_network_is_in_order(name: str) -> None:
    dag = both(name)[1]
    assert nx.is_directed_acyclic_graph(dag.graph)
    before = nx.transitive_closure_dag(nx.DiGraph(dag.graph))
    per_node = dag.facts["gpus_per_node"]
    streams = defaultdict(list)
    for op in dag.operations("attention", "mlp", "expert"):
        for node in {gpu // per_node for gpu in op.gpus}:
            streams[node].append(op)
    streams["network"] = list(dag.operations("dispatch", "combine"))
    for ops in streams.values():
        for one in ops:
            for other in ops:
                if (one.layer, one.kind, one.batch) != (other.layer, other.kind, other.batch):
                    assert before.has_edge(one.id, other.id) or before.has_edge(other.id, one.id)


def test_one_half_computes_while_the_other_is_on_the_links() -> None:
    dag = both("small")[1]
    before = nx.transitive_closure_dag(nx.DiGraph(dag.graph))
    experts = [op.id for op in dag.operations("expert") if (op.layer, op.batch) == (1, 0)]
    for expert in experts:
        for name in ("dispatch.L1.b1",):
            assert not before.has_edge(expert, name)
            assert not before.has_edge(name, expert)
