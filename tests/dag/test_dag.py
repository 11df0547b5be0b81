"""The graph itself: what is in it, how many tokens go where, and that its files say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from dag_examples import VARIANTS, Written, contiguous, drawn_traffic, example, placement_of, reference

from moe_placer.dag import VIEWS, build_dag, write_dags
from moe_placer.errors import InputError, UsageError
from moe_placer.traffic.recording import Traffic

ANY = pytest.mark.parametrize("name", VARIANTS)


@ANY
def test_every_operation_is_on_a_path_from_an_input_to_an_output(name: str) -> None:
    for whole in (True, False):
        graph = build_dag(*example(name), whole=whole).graph
        assert nx.is_directed_acyclic_graph(graph)
        kinds = {vertex: data["operation"].kind for vertex, data in graph.nodes(data=True)}
        assert {kinds[v] for v in graph if graph.in_degree(v) == 0} == {"input"}
        assert {kinds[v] for v in graph if graph.out_degree(v) == 0} == {"output"}


@ANY
def test_every_replica_computes_once_on_its_gpus(name: str) -> None:
    instance, placement, traffic = example(name)
    dag = build_dag(instance, placement, traffic)
    for row, layer in enumerate(instance.moe_layers):
        placed = {
            (expert, replica): tuple(sorted(gpus))
            for expert in range(instance.model.experts)
            for replica, gpus in enumerate(placement.shards(row, expert))
        }
        drawn = [(op.experts[0], op.gpus) for op in dag.operations("expert") if op.layer == layer]
        assert len(drawn) == len(placed)
        assert dict(drawn) == placed


@ANY
def test_tokens_are_conserved_from_gate_to_aggregation(name: str) -> None:
    instance, placement, traffic = example(name)
    dag = build_dag(instance, placement, traffic)
    started = instance.traffic.tokens_per_gpu * instance.gpus
    for layer in instance.moe_layers:
        counted: Counter[str] = Counter()
        for edge in dag.edges():
            if edge.source.startswith(f"L{layer}."):
                counted[edge.tensor.partition(".")[0]] += edge.shape[0]  # type: ignore[assignment]
        for family in ("tokens", "results"):
            assert counted[family] == pytest.approx(started * instance.model.top_k)
        assert counted["sent"] == pytest.approx(counted["back"])
        assert counted["sent"] == pytest.approx(counted["combined"])
        if instance.placement.counts_tokens_once:
            assert started <= counted["sent"] < counted["tokens"] * (1 - 1e-6)
        else:
            assert counted["sent"] == pytest.approx(counted["tokens"])
        assert counted["leaving"] == counted["chosen"] == pytest.approx(started)


def test_tokens_of_an_expert_are_its_demand() -> None:
    instance, placement, traffic = example("redundant")
    dag = build_dag(instance, placement, traffic)
    per_node = instance.traffic.tokens_per_gpu * instance.cluster.gpus_per_node
    layer, row = 2, 1
    for expert in range(instance.model.experts):
        choices = [recording.load[row, expert] / recording.tokens[row] for recording in traffic.recordings]
        demand = per_node * float((traffic.mix @ np.array(choices)).sum())
        replicas = len(placement.gpu[row][expert])
        for replica in range(replicas):
            op = dag.operation(f"L{layer}.expert.e{expert}.r{replica}")
            assert op.inputs[f"tokens.e{expert}.r{replica}"][0] == pytest.approx(demand / replicas)


def test_link_costs_by_hand() -> None:
    """Two nodes, one expert each, every token of both nodes to expert 1: node 0's tokens cross one link."""
    instance, _, _ = example("full-mesh")
    instance = instance.model_copy(
        update={
            "model": instance.model.model_copy(update={"experts": 2, "top_k": 1, "layers": 1, "dense_layers": ()}),
            "cluster": instance.cluster.model_copy(update={"nodes": 2}),
            "parallelism": instance.parallelism.model_copy(update={"dp": 1}),
        }
    )
    traffic = drawn_traffic(instance)
    for recording in traffic.recordings:
        recording.load[:] = [[0.0, 7.0]]
        recording.tokens[:] = 7.0
    dag = build_dag(instance, placement_of(instance, [[[0], [2]]]), traffic)
    assert dag.facts["links"] == {0: {"node0->node1": pytest.approx(200.0), "node1->node0": 0.0}}
    (crossing,) = [edge for edge in dag.edges() if edge.tensor == "sent.n0.n1"]
    assert (crossing.travel, crossing.shape, crossing.hot) == ("network", (pytest.approx(200.0), 64), 1.0)
    assert crossing.bytes == pytest.approx(200 * 64 * 2)
    assert dag.links_on_the_way(crossing) == {"node0->node1": 1.0}
    assert dag.operation("L0.expert.e0.r0").flops == 0
    assert dag.operation("L0.expert.e1.r0").flops == pytest.approx(2 * 400 * 2 * 64 * 32)


def test_worst_link_is_what_the_verifier_finds() -> None:
    from moe_placer.verifier import verify

    instance, placement, traffic = example()
    found = build_dag(instance, placement, traffic).facts["links"]
    for check in verify(instance, placement, traffic).layers:
        assert max(found[check.layer].values()) == pytest.approx(check.z)


def test_how_tensors_travel() -> None:
    dag = build_dag(*example())
    travel = {edge.tensor: (edge.travel, edge.dashed) for edge in dag.edges() if edge.target.startswith("L1.")}
    assert travel["attention_parts.g0"] == ("nvlink", True)
    assert travel["choices.g0"] == ("same-gpu", True)  # the last one: from the scatter to the aggregation
    assert travel["sent.n0.n0"] == ("nvlink", False)
    assert travel["sent.n0.n1"] == ("network", False)
    assert travel["tokens.e0.r0"] == ("same-gpu", False)
    links = dag.links_on_the_way(next(edge for edge in dag.edges() if edge.tensor == "sent.n1.n0"))
    assert links == {"node1->leaf0": 1.0, "leaf0->node0": 1.0}


@pytest.mark.parametrize("view", VIEWS)
@ANY
def test_files_agree_and_are_the_same_bytes_again(name: str, view: str, tmp_path: Path, written: Written) -> None:
    import pydot

    parts, first = example(name), written(name, view)
    by_kind = {path.name.partition(".")[2]: path for path in first}
    assert list(by_kind) == sorted({"dot", "json", "svg"} | ({"html"} if VIEWS[view].page else set()))
    again = write_dags(*parts, tmp_path / "b", [view])
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    graph = nx.node_link_graph(json.loads(by_kind["json"].read_text()), edges="edges")
    drawn = VIEWS[view].build(*parts)
    assert set(graph) == set(drawn.graph)
    if name != "special-characters":
        return  # pydot's parser is slow; the rest differs in numbers and plainer names only
    (dot,) = pydot.graph_from_dot_data(by_kind["dot"].read_text())
    assert {json.loads(node.get_name()) for node in dot.get_nodes()} - {"\\n"} == set(graph)
    assert len(dot.get_edges()) == graph.number_of_edges() == drawn.graph.number_of_edges()


def test_contraction_keeps_the_work_and_the_replicas() -> None:
    instance, placement, traffic = example()
    whole = build_dag(instance, placement, traffic, VIEWS["simplified_moe_dag"].build(*example()).facts["layers"])
    coarse = VIEWS["simplified_moe_dag"].build(instance, placement, traffic)
    assert sum(op.flops for op in coarse.operations()) == pytest.approx(sum(op.flops for op in whole.operations()))
    pairs = Counter(pair for op in coarse.operations("expert") for pair in op.experts)
    assert set(pairs.values()) == {1}
    assert len(pairs) == instance.replicas_per_layer
    assert len(list(coarse.operations("expert"))) == instance.parallelism.dp


def test_what_does_not_fit_is_refused_all_at_once(tmp_path: Path) -> None:
    instance, placement, traffic = example()
    short = placement_of(instance, [[[0]] * 3, [[99, 1]] * 4])
    with pytest.raises(InputError) as caught:
        build_dag(instance, short, Traffic(traffic.recordings, traffic.mix[:2]))
    paths = {mistake.path for mistake in caught.value.mistakes}
    assert paths >= {"gpu", "gpu[0]", "gpu[0][2]", "gpu[1][0]", "traffic.mix"}
    with pytest.raises(UsageError, match="simplified_moe_dag"):
        write_dags(instance, placement, traffic, tmp_path, ["simplified"])
    assert not list(tmp_path.iterdir())


def test_import_loads_no_drawing_library() -> None:
    script = "import sys, moe_placer.dag; sys.exit('pydot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_reference_has_every_expert_of_every_layer() -> None:
    instance, _, traffic = reference()
    dag = build_dag(instance, contiguous(instance), traffic)
    experts = Counter(op.layer for op in dag.operations("expert"))
    assert experts == dict.fromkeys(range(3, 61), 128)
    assert dag.operation("L3.expert.e63.r1").gpus == (127,)
    assert all(op.gpus for op in dag.operations())
