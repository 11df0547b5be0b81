"""DAGs and steps where a token goes once to a GPU or node with several of its experts: every byte is counted."""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders import ONE_LAYER, tiny_instance, tiny_tokens, tiny_traffic
from command_line import run
from dag_examples import contiguous, placement_of
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_step import SlowStep

from moe_placer.dag.build import build_dag
from moe_placer.dag.operation import Dag
from moe_placer.dag.texts import to_dot, to_json
from moe_placer.dag.token_copies import copies_to_places
from moe_placer.errors import InputError
from moe_placer.experiments.compare import Settings, build_matrix
from moe_placer.experiments.compare.step_process import predict
from moe_placer.fabric import node_routes, token_cost
from moe_placer.instance import Instance
from moe_placer.placement import Placement, load_placement
from moe_placer.problem.compile import compile_problem
from moe_placer.schedule.busiest_link import layer_link_times
from moe_placer.schedule.program import compile_program
from moe_placer.schedule.simulate import simulate
from moe_placer.schedule.timing import Timing
from moe_placer.schedule.what_if import after_failure
from moe_placer.schedule.workload import Condition, Workload
from moe_placer.search.moves import repair
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.verifier.dags import verify_dags

RAILS = {"nics": {"per_node": 2, "gb_per_s": 200.0, "receive": "source-rail"}}
BYTES = {"dispatch_dtype": "fp8", "combine_dtype": "bf16"}  # of 64 values: 68, with a scale, and 128
CASES: dict[str, dict[str, Any]] = {
    "per-node, group": {"cluster": RAILS, "placement": {"dispatch": "per-node", **BYTES}},
    "per-node, even": {"placement": {"dispatch": "per-node", "replica_routing": "even", **BYTES}},
    "per-node, one replica": {"parallelism": {"dp": 1}, "placement": {"dispatch": "per-node", **BYTES}},
    "per-node, redundant": {
        "placement": {
            "dispatch": "per-node",
            "replica_routing": "even",
            "replicas": {"redundant_slots": 3},
            **BYTES,
        }
    },
    "per-gpu, group": {"cluster": {"nodes": 2, **RAILS}, "placement": {"dispatch": "per-gpu", "slots_per_gpu": 2}},
    "per-gpu, even": {
        "cluster": {"nodes": 2},
        "placement": {"dispatch": "per-gpu", "slots_per_gpu": 2, "replica_routing": "even", **BYTES},
    },
    "per-expert": {"cluster": RAILS, "placement": BYTES},
}


def placed_at_random(instance: Instance, traffic: Traffic, seed: int) -> tuple[Placement, list[dict[str, float]]]:
    """Place every layer at random within its limits; return also what the problem says that each link costs."""
    problem, rng = compile_problem(instance, traffic), np.random.default_rng(seed)
    rows: list[list[list[int]]] = []
    costs: list[dict[str, float]] = []
    for index in range(len(instance.moe_layers)):
        layer = problem.layer(index)
        place = repair(layer, rng.permutation(np.repeat(np.arange(layer.nodes), layer.slots))[: layer.items], rng)
        assert place is not None
        replicas: list[list[tuple[int, int]]] = [[] for _ in range(instance.model.experts)]
        for at in range(layer.nodes):
            for position, item in enumerate(np.flatnonzero(place == at).tolist()):
                gpu = at * problem.gpus_per_node + position // instance.placement.slots_per_gpu
                replicas[int(layer.expert[item])].append(
                    (int(layer.replica[item]), at if problem.gpus_per_node == 1 else gpu)
                )
        rows.append([[gpu for _, gpu in sorted(row)] for row in replicas])
        costs.append(dict(zip(problem.links, layer.cost(place).tolist(), strict=True)))
    return placement_of(instance, rows), costs


def carried(dag: Dag, layer: int, ends: tuple[str, str]) -> dict[str, float]:
    """Bytes of edges between two kinds of operations that cross each link."""
    found: dict[str, float] = defaultdict(float)
    for edge in dag.edges():
        kinds = (dag.operation(edge.source).kind, dag.operation(edge.target).kind)
        if kinds == ends and dag.operation(edge.source).layer == layer:
            for link, share in dag.links_on_the_way(edge).items():
                found[link] += share * edge.bytes
    return found


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_bytes_over_every_link_are_the_copies_that_the_problem_counts(name: str, seed: int) -> None:
    instance = tiny_instance(**{"model": {"top_k": 3}, **CASES[name]})
    traffic = tiny_tokens(instance, seed)
    placement, costs = placed_at_random(instance, traffic, seed)
    dag = build_dag(instance, placement, traffic)
    routes = node_routes(instance)
    of_token = dict(zip(routes.links, token_cost(instance, routes.bandwidth).tolist(), strict=True))
    size = 68.0 if instance.placement.dispatch_dtype == "fp8" else 128.0
    for layer, cost in zip(instance.moe_layers, costs, strict=True):
        there = carried(dag, layer, ("dispatch_send", "dispatch_receive"))
        assert {link: there.get(link, 0.0) for link in cost} == pytest.approx(
            {link: value / of_token[link] * size for link, value in cost.items()}, rel=1e-9, abs=1e-9
        )
        back = carried(dag, layer, ("combine_send", "combine_receive"))
        reversed_ = {f"{head}->{tail}": value for (tail, _, head), value in
                     ((link.partition("->"), value) for link, value in back.items())}  # fmt: skip
        assert reversed_ == pytest.approx({link: value / size * 128.0 for link, value in there.items()}, rel=1e-9)


@pytest.mark.parametrize("name", ["per-node, group", "per-node, redundant", "per-gpu, even"])
def test_no_step_beats_its_links_and_every_byte_crosses_them(name: str) -> None:
    instance = tiny_instance(**{"model": {"top_k": 3}, **CASES[name]})
    traffic = tiny_tokens(instance, 5)
    placement, _ = placed_at_random(instance, traffic, 5)
    step = simulate(compile_program(instance, placement, traffic), Workload(tokens_per_gpu=1e4, micro_batches=1))
    floor = layer_link_times(step).max(axis=1).sum()  # in one micro-batch layers follow each other
    assert 0 < floor <= step.makespan
    dag = build_dag(instance, placement, traffic)
    sums: dict[str, float] = defaultdict(float)
    for edge in dag.edges():
        if edge.tensor.startswith(("sent.", "back.")):
            for link, share in dag.links_on_the_way(edge).items():
                sums[link] += share * edge.bytes * 100  # as many tokens as in the step
    assert dict(zip(step.network.links, step.network.carried.tolist(), strict=True)) == pytest.approx(
        {link: sums[link] for link in step.network.links}
    )


def test_with_one_expert_per_token_per_node_is_per_expert() -> None:
    found = []
    for dispatch in ("per-expert", "per-node"):
        instance = tiny_instance(model={"top_k": 1}, placement={"dispatch": dispatch}, traffic={"kind": "trace"})
        traffic = tiny_tokens(instance, 3)
        placement, _ = placed_at_random(tiny_instance(model={"top_k": 1}), traffic, 3)
        dag = build_dag(instance, placement, traffic)
        found.append({edge.tensor: edge.bytes for edge in dag.edges() if edge.tensor.startswith(("sent.", "back."))})
    assert found[0] == pytest.approx(found[1])


def by_hand(**placement: Any) -> tuple[Instance, Placement, Traffic]:
    """Two nodes of two GPUs, experts 0 and 1 on the first; tokens choose {0, 1}, {2, 3}, {0, 2}; 3 start per GPU."""
    instance = tiny_instance(
        model=ONE_LAYER,
        cluster={"nodes": 2, "fabric": {"kind": "full-mesh"}},
        parallelism={"dp": 1},
        placement={"dispatch": "per-node", **placement},
        traffic={"kind": "trace", "tokens_per_gpu": 3.0},
    )
    topk = np.array([[[0, 1]], [[2, 3]], [[0, 2]]], dtype=np.uint8)
    load = np.array([[2.0, 1.0, 2.0, 1.0]])
    traffic = Traffic((Recording("three", load, np.array([3.0]), topk),), np.ones((2, 1)))
    return instance, placement_of(instance, [[[0], [1], [2], [3]]]), traffic


def test_a_layer_by_hand() -> None:
    dag = build_dag(*by_hand(**BYTES))
    shapes = {edge.tensor: edge.shape[0] for edge in dag.edges() if edge.shape}
    # 6 tokens start on each node, 2 of each kind; a node gets those of two kinds.
    assert [shapes[tensor] for tensor in ("sent.n0.n0", "sent.n0.n1", "sent.n1.n0", "back.n1.n0")] == [4.0] * 4
    # Node 0 forwards 8 copies; expert 0 works on 8 tokens, expert 1 on 4, and 12 results become 8 sums.
    edges = {edge.tensor: edge for edge in dag.edges()}
    assert [edges[f"tokens.e{e}.r0"].shape[0] for e in range(4)] == [8.0, 4.0, 8.0, 4.0]
    assert {edges[f"tokens.e{e}.r0"].travel for e in range(4)} == {"nvlink"}
    assert (edges["tokens.e0.r0"].bytes, edges["results.e0.r0"].bytes) == (8 * 68.0, 8 * 128.0)
    assert (edges["sent.n0.n0"].travel, edges["sent.n0.n1"].travel) == ("same-gpu", "network")
    assert shapes["combined.g0.n0"] == pytest.approx(4.0)  # of 3 tokens, 4 in 3 of which come from two nodes
    assert dag.operation("L0.combine_send.n0").flops == 2 * 12 * 64
    assert dag.operation("L0.aggregate.g0").flops == pytest.approx(64 * (4 + 3))
    assert dag.facts["dispatch"] == "per-node"


def test_forwarding_takes_nvlink_while_tokens_arrive_by_hand() -> None:
    program = compile_program(*by_hand(**BYTES))
    timing = Timing(nvlink_utilization=0.5)
    step = simulate(program, Workload(micro_batches=1), timing)
    send, combine = (program.names.index(f"L0.{kind}.n0") for kind in ("dispatch_send", "combine_send"))
    receive = program.names.index("L0.dispatch_receive.n0")
    # 12 copies of 68 bytes, and 12 results of 128: half is on its GPU, and two GPUs move the rest at once.
    per_us = program.instance.cluster.nvlink_gb_per_s * 1e3 * 0.5
    assert step.durations.busy[send] == pytest.approx(12 * 68 / 4 / per_us)
    assert step.durations.busy[combine] == pytest.approx(12 * 128 / 4 / per_us)
    assert receive in program.after[send]
    assert program.sent[send].tolist() == [0.0, 4 * 68.0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_replicas_drawn_with_any_chances_are_counted_as_every_draw(seed: int) -> None:
    rng = np.random.default_rng(seed)
    expert, place = np.array([0, 0, 0, 1, 2, 2]), rng.permutation(np.array([0, 1, 2, 0, 1, 2]))
    share = np.array([[0.5, 0.25, 0.25, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0, 0.7, 0.3]])
    topk = np.array([[[0, 1]], [[0, 2]], [[0, 1]]], dtype=np.uint8)
    traffic = Traffic((Recording("r", np.zeros((1, 3)), np.array([3.0]), topk),), np.array([[1.0], [0.5]]))
    expected = np.zeros((2, 3))
    for source, token in product(range(2), topk[:, 0].tolist()):
        options = [[(share[source, r], place[r]) for r in np.flatnonzero(expert == e)] for e in token]
        for draw in product(*options):
            chance = np.prod([one[0] for one in draw])
            for at in {int(one[1]) for one in draw}:
                expected[source, at] += 6.0 * traffic.mix[source, 0] / 3 * chance
    assert copies_to_places(traffic, 0, 6.0, share, (expert, place)) == pytest.approx(expected)


def test_what_ifs_share_the_tokens_of_a_failed_gpu_among_stand_ins() -> None:
    instance = tiny_instance(placement={"dispatch": "per-node"})
    traffic = tiny_tokens(instance, 7)
    placement, _ = placed_at_random(instance, traffic, 7)
    before, left = compile_program(instance, placement, traffic), after_failure(instance, placement, [3])
    program = compile_program(left.instance, left.placement, traffic, stand_ins=True)
    assert program.expert_tokens.sum(axis=1) == pytest.approx(before.expert_tokens.sum(axis=1))
    assert program.expert_tokens[:, 3].sum() == 0
    # With fewer places a token reaches no more of them.
    sent, was = [float(sum(row.sum() for row in one.sent.values())) for one in (program, before)]
    assert 0 < sent <= was * 1.5


def test_commands_draw_check_simulate_and_compare_steps(tmp_path: Path) -> None:
    traffic = {"kind": "synthetic", "tokens_per_gpu": 10.0}
    instance = tiny_instance(model=ONE_LAYER, placement={"dispatch": "per-node"}, traffic=traffic)
    file, out = tmp_path / "tiny.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(instance.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    placed = out / "placement.json"
    solved = run("solve", file, "-o", out, "--work", "0.05", "--quiet", "--step")
    assert solved.returncode == 0, solved.stderr
    assert "step" in solved.stdout
    assert {"simplified_moe_dag.json", "detailed_expert_dag.svg"} <= {one.name for one in out.iterdir()}
    for words, says in (
        (["verify", file, placed], "detailed_expert_dag: good"),
        (["schedule", file, placed], "latency"),
        (["evaluate", file, placed, "--step"], "step"),
        (["gate", file, placed, "--max-step", "1e6"], "step"),
        (["sweep", file, placed, "--tokens-per-gpu", "8", "-o", tmp_path / "sweep"], ""),
    ):
        done = run(*words)
        assert done.returncode == 0, (words, done.stderr)
        assert says in done.stdout, done.stdout
    (cell,) = build_matrix([file], ["contiguous"], [0], Settings()).cells
    assert predict(cell, load_placement(placed).model_dump(mode="json")["gpu"])["solved_for"] > 0


def test_sharded_experts_get_a_copy_on_each_of_their_gpus(tmp_path: Path) -> None:
    instance = tiny_instance(
        model={**ONE_LAYER, "experts": 8, "top_k": 3},
        parallelism={"expert_tp": 2, "dp": 1},
        placement={"dispatch": "per-node", "slots_per_gpu": 2},
    )
    placement, traffic = contiguous(instance), tiny_tokens(instance, 1)
    dag = build_dag(instance, placement, traffic)
    for suffix, write in (("json", to_json), ("dot", to_dot)):
        (tmp_path / f"comprehensive_moe_dag.{suffix}").write_text(write(dag, "comprehensive_moe_dag"))
    (check,) = verify_dags(instance, placement, tmp_path, traffic)
    assert check.violations == ()
    workload = Workload(micro_batches=1)
    program = compile_program(instance, placement, traffic)
    received = sum(edge.bytes for edge in dag.edges() if edge.tensor.startswith("tokens."))
    sends = [program.names.index(f"L0.dispatch_send.n{node}") for node in range(4)]
    assert program.nvlink[sends].sum() == pytest.approx(2 * received)
    slow = SlowStep(instance, placement, traffic, workload, Timing(), Condition()).run()
    found = simulate(program, workload, Timing()).makespan
    assert found == pytest.approx(max(end for _, end in slow.values()), rel=1e-3)  # flows may end together


def test_loads_say_nothing_of_copies(tmp_path: Path) -> None:
    instance, placement, _ = by_hand()
    loads = tiny_traffic(instance)
    for refuses in (
        lambda: build_dag(instance, placement, loads),
        lambda: verify_dags(instance, placement, written(instance, tmp_path), loads),
    ):
        with pytest.raises(InputError, match="which experts a token chooses together"):
            refuses()


def written(instance: Instance, folder: Path) -> Path:
    for suffix in ("json", "dot"):
        (folder / f"detailed_expert_dag.{suffix}").write_text("{}")
    return folder
