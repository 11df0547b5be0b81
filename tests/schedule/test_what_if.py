"""What if a GPU is slow or fails, or a link is slow: closed forms, who takes over, and which replica helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import honest, level_traffic, tiny_instance
from click.testing import CliRunner
from dag_examples import example, placement_of
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.cli.commands import cli
from moe_placer.errors import InputError, UsageError
from moe_placer.instance import load_instance
from moe_placer.schedule.added_replicas import AddedReplica, free_slots, with_added_replicas
from moe_placer.schedule.failure import after_failure
from moe_placer.schedule.program import SENDS, compile_program
from moe_placer.schedule.simulate import simulate
from moe_placer.schedule.what_if import Answer, Question, ask
from moe_placer.schedule.workload import Condition, Workload
from moe_placer.traffic import load_traffic
from moe_placer.traffic.recording import Recording, Traffic

BIG = {"traffic": {"tokens_per_gpu": 1e6}}
WHOLE = Workload(context=1.0, micro_batches=1)


def two_nodes(slots: int = 2, gpus_per_node: int = 1, load: tuple[float, float] = (1.0, 1.0), **changes: Any) -> Any:
    """One MoE layer of two experts, one on each of two nodes."""
    model = {"layers": 1, "dense_layers": [], "experts": 2, "top_k": 1, "vocab_size": 1000}
    fabric = {"kind": "full-mesh", "node_gb_per_s": 100.0}
    cluster = {"nodes": 2, "gpus_per_node": gpus_per_node, "fabric": fabric}
    replicas = {"slots_per_gpu": slots, "replica_routing": "even", "replicas": {"redundant_slots": 0}}
    instance = tiny_instance(
        model=model, cluster=cluster, parallelism={"dp": 1}, placement=replicas, **{**BIG, **changes}
    )
    traffic = level_traffic(instance, [list(load)], sum(load))
    return instance, placement_of(instance, [[[0], [gpus_per_node]]]), traffic


def asked(scene: Any, question: Question, workload: Workload = WHOLE, **more: Any) -> Answer:
    before = simulate(compile_program(*scene), workload).makespan
    return ask(*scene, workload, question, before_us=before, **more)


def slow(gpu: int, factor: float) -> Question:
    return Question(Condition(slow_gpus={gpu: factor}))


def took(scene: Any, kinds: set[str], gpu: int) -> float:
    """µs that a GPU computes operations of some kinds."""
    program = compile_program(*scene)
    timeline = simulate(program, WHOLE)
    return sum(
        float(timeline.durations.busy[p])
        for p in range(len(program))
        if program.kinds[p] in kinds and gpu in program.gpus[p]
    )


def test_a_straggler_by_hand() -> None:
    # Both nodes do the same; all that GPU 1 computes is in the chain of the step, twice as long.
    scene = two_nodes()
    kinds = {"attention", "gate", "expert", "aggregate", "norm", "head", "sample", "embedding"}
    answer = asked(scene, slow(1, 2.0), most=0)
    assert answer.after_us is not None
    assert answer.after_us - answer.before_us == pytest.approx(took(scene, kinds, 1), rel=0.01)
    assert answer.advice == ()


def test_half_a_link_takes_twice_as_long() -> None:
    scene = two_nodes()
    answer = asked(scene, Question(Condition(slow_links={"node0->node1": 0.5})), most=0)
    sent = 5e5 * 64 * 2 / (100e3 * 0.8)
    assert answer.after_us is not None
    assert answer.after_us - answer.before_us == pytest.approx(2 * sent, rel=1e-3)  # dispatch, and combine later


def test_a_replica_beside_a_slow_link_saves_it() -> None:
    # Each node's tokens choose the other node's expert. A replica of expert 1 on node 0 keeps half of node 0's at home.
    instance, placement, _ = two_nodes()
    loads = [np.array([[0.0, 2.0]]), np.array([[2.0, 0.0]])]
    recordings = tuple(Recording(f"node-{index}", load, np.array([2.0])) for index, load in enumerate(loads))
    scene = (instance, placement, Traffic(recordings, np.eye(2)))
    answer = asked(scene, Question(Condition(slow_links={"node0->node1": 0.1})))
    best = answer.advice[0]
    # Or, as good, a replica of expert 0 on node 1, whose results come back over the link.
    assert [(replica.expert, replica.gpu) for replica in best.replicas] in ([(1, 0)], [(0, 1)])
    assert answer.spare == 0
    assert answer.after_us is not None
    sent = 1e6 * 64 * 2 / (100e3 * 0.8 * 0.1)
    assert answer.after_us - best.latency_us == pytest.approx(sent / 2, rel=0.02)
    assert asked(two_nodes(), Question(Condition(slow_links={"node0->node1": 0.1}))).advice == ()  # none would help


def test_a_replica_relieves_a_straggler_on_its_own_node() -> None:
    # Three GPUs of a node are idle in the experts' time; the fastest help is there, where no link is used.
    scene = two_nodes(gpus_per_node=4, slots=1, load=(9.0, 1.0))
    answer = asked(scene, slow(0, 50.0))
    (replica,) = answer.advice[0].replicas
    assert (replica.expert, replica.gpu) == (0, 1)
    assert answer.advice[0].latency_us < (answer.after_us or 0)


def test_full_slots_are_said_and_one_more_is_assumed() -> None:
    answer = asked(two_nodes(slots=1), slow(0, 5.0))
    assert answer.spare == 1
    assert answer.advice[0].replicas[0].gpu == 1
    assert asked(two_nodes(slots=2), slow(0, 5.0)).spare == 0


def test_a_failed_gpu_without_other_replicas_stops_the_step() -> None:
    instance, placement, traffic = two_nodes(gpus_per_node=2)
    answer = asked((instance, placement, traffic), Question(failed=(0,)))
    assert answer.after_us is None
    assert answer.survivors.lost == ((0, 0),)
    assert asked((instance, placement, traffic), Question(failed=(3,))).survivors.stranded == ((3,),)


def in_groups() -> Any:
    """Build the small example: two DP groups of two nodes, a replica of four experts in each, TP groups of two GPUs."""
    return example("small")


@given(gpu=st.integers(0, 7))
@settings(max_examples=8, deadline=None)
def test_the_other_groups_replicas_take_over_and_no_token_is_lost(gpu: int) -> None:
    instance, placement, traffic = in_groups()
    left = after_failure(instance, placement, [gpu])
    assert left.runs
    program = compile_program(left.instance, left.placement, traffic, stand_ins=True)
    before = compile_program(instance, placement, traffic)
    assert all(gpu not in gpus for gpus in program.gpus)
    # Every layer's experts receive as many tokens as before; what was the failed GPU's is now with a replica elsewhere.
    assert program.expert_tokens.sum(axis=1) == pytest.approx(before.expert_tokens.sum(axis=1))
    gained = program.expert_tokens - before.expert_tokens
    gained[:, gpu] = 0
    assert gained.sum(axis=1) == pytest.approx(before.expert_tokens[:, gpu])
    assert (gained >= -1e-9).all()
    flow = {kind: np.zeros((4, 4)) for kind in SENDS}
    for p, sent in program.sent.items():
        flow[program.kinds[p]][program.home[p]] += sent
    assert flow["dispatch_send"] == pytest.approx(flow["combine_send"].T)
    # Bytes to a node over links and NVLink are those of the tokens that its experts receive.
    within = np.zeros(4)
    for p in program.sent:
        if program.kinds[p] == "dispatch_send":
            within[program.home[p]] += program.nvlink[p]
    received = program.expert_tokens.sum(axis=0).reshape(4, 2).sum(axis=1) * 64 * 2
    assert flow["dispatch_send"].sum(axis=0) + within == pytest.approx(received)
    names = [p for p, kind in enumerate(program.kinds) if kind == "expert"]
    assert len(names) == len([1 for kind in before.kinds if kind == "expert"]) - 3  # its expert in three layers


def test_the_stand_in_serves_both_groups() -> None:
    instance, placement, _ = in_groups()
    left = after_failure(instance, placement, [0])
    for row in range(3):
        for expert in range(4):
            old, new = placement.shards(row, expert), left.placement.shards(row, expert)
            assert new == (old if old[0] != (0,) else (old[1], old[1]))


def test_even_routing_drops_the_failed_replica() -> None:
    instance, placement, traffic = example("redundant")
    replicas = [placement.shards(0, expert) for expert in range(4)]
    expert = next(e for e, shards in enumerate(replicas) if len(shards) == 2)
    gpu = replicas[expert][0][0]
    left = after_failure(instance, placement, [gpu])
    assert left.placement.shards(0, expert) == (replicas[expert][1],)
    assert not left.lost or all(layer_expert[1] != expert for layer_expert in left.lost if layer_expert[0] == 1)
    assert traffic.mix.shape[0] == instance.cluster.nodes


@pytest.mark.parametrize("name", ["small", "redundant"])
def test_a_further_replica_shares_the_tokens_evenly(name: str) -> None:
    instance, placement, traffic = example(name)
    before = compile_program(instance, placement, traffic)
    (home,) = placement.shards(0, 0)[0]
    gpu = next(g for g in range(8) if (g,) not in placement.shards(0, 0))
    program = compile_program(
        instance, with_added_replicas(instance, placement, [AddedReplica(0, 0, 0, gpu)]), traffic, stand_ins=True
    )
    assert program.expert_tokens.sum() == pytest.approx(before.expert_tokens.sum())
    change = program.expert_tokens[1] - before.expert_tokens[1]
    assert change[gpu] > 0
    assert change[home] < 0
    assert change.sum() == pytest.approx(0)
    if name == "small":  # the group's own replica and the further one, half each
        assert change[home] == pytest.approx(-before.expert_tokens[1, home] / 2)


def test_free_slots_count_what_is_left() -> None:
    instance, placement, _ = example("small")
    assert free_slots(instance, placement).sum() == 0
    assert (free_slots(instance, placement, 1) == 1).all()
    left = after_failure(instance, placement, [3])
    assert free_slots(left.instance, left.placement)[:, 3].tolist() == [0, 0, 0]


def test_advice_is_simulated_with_worker_processes_as_without() -> None:
    scene = in_groups()
    here = asked(scene, slow(0, 4.0), Workload())
    there = asked(scene, slow(0, 4.0), Workload(), workers=2)
    assert here.advice == there.advice
    assert [one.latency_us for one in here.advice] == sorted(one.latency_us for one in here.advice)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question(failed=(99,)), "no GPU 99"),
        (Question(failed=(-1,)), "no GPU -1"),
        (Question(failed=(1, 1)), "failed already"),
        (Question(Condition(slow_gpus={1: 2.0}), (1,)), "to be slow and to fail"),
        (slow(99, 2.0), "no GPU 99"),
    ],
)
def test_questions_that_make_no_sense_are_refused(question: Question, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        asked(in_groups(), question)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    content = tiny_instance(parallelism={"attention_tp": 2}).model_dump(mode="json", exclude_none=True)
    (tmp_path / "tiny.yaml").write_text(json.dumps(content | {"traffic": {"kind": "synthetic", "seed": 1}}))
    opened = load_instance(tmp_path / "tiny.yaml")
    (tmp_path / "placement.json").write_text(json.dumps(honest(opened, load_traffic(opened))))
    return [str(tmp_path / "tiny.yaml"), str(tmp_path / "placement.json")]


def schedule(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["schedule", *arguments])


def test_the_command_answers_in_words_and_in_json(files: list[str]) -> None:
    said = schedule(*files, "--slow-gpu", "3=4", "--slow-link", "leaf0->spine1=0.5", "--copies", "1")
    assert said.exit_code == 0, said.exception
    assert "What if GPU 3 takes 4 times as long and link leaf0->spine1 has 0.5 of its bandwidth:" in said.stdout
    assert "µs later (+" in said.stdout
    assert "placement.slots_per_gpu: 2" in said.stdout
    content = json.loads(schedule(*files, "--fail-gpu", "3", "--copies", "1", "--json").stdout)
    answer = content["what_if"]
    assert answer["runs"]
    assert answer["later_us"] == pytest.approx(answer["latency_us"] - content["latency_us"])
    assert answer["slots_full"]
    assert answer["assumed_slots_per_gpu"] == 2
    assert answer["copies"][0]["copies"][0]["layer"] in {1, 2}


def test_the_command_names_what_is_lost(files: list[str]) -> None:
    said = schedule(*files, "--fail-gpu", "0", "--fail-gpu", "1", "--fail-gpu", "4")
    assert "cannot run: of the tensor-parallel group of GPUs 0, 1 none is left" in said.stdout
    assert "have no other replica: layer 1 expert 0, layer 2 expert 0." in said.stdout
    content = json.loads(schedule(*files, "--fail-gpu", "0", "--fail-gpu", "4", "--json").stdout)
    assert content["what_if"]["lost_experts"] == [{"layer": 1, "expert": 0}, {"layer": 2, "expert": 0}]
    assert content["what_if"]["latency_us"] is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--slow-gpu", "x=2"], UsageError, "expected a global GPU id"),
        (["--slow-gpu", "²=2"], UsageError, "expected a global GPU id"),
        (["--slow-gpu", "1"], UsageError, "ID=FACTOR"),
        (["--slow-gpu", "1=fast"], UsageError, "ID=FACTOR"),
        (["--slow-gpu", "1=nan"], UsageError, "nan times as long"),
        (["--slow-gpu", "1=2", "--slow-gpu", "01=3"], UsageError, "twice"),
        (["--slow-link", "=0.5"], UsageError, "NAME=SHARE"),
        (["--slow-link", "nowhere=0.5"], InputError, "nowhere"),
        (["--slow-link", "leaf0->spine1=0"], UsageError, "more than 0"),
        (["--slow-link", "leaf0->spine1=1", "--slow-link", "leaf0->spine1=1"], UsageError, "twice"),
        (["--fail-gpu", "99"], UsageError, "no GPU 99"),
        (["--fail-gpu", "1", "--copies", "-1"], UsageError, "-1 replicas"),
    ],
)
def test_hostile_options_are_refused(files: list[str], options: list[str], error: type, message: str) -> None:
    done = schedule(*files, *options)
    assert isinstance(done.exception, error)
    assert message in str(done.exception)
