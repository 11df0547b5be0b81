"""A simulated step: closed forms by hand, and what must hold whatever is placed where."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from builders import honest, level_traffic, tiny_instance, tiny_traffic
from click.testing import CliRunner
from command_line import run
from dag_examples import VARIANTS, example, placement_of
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.cli.commands import cli
from moe_placer.errors import InputError, UsageError
from moe_placer.fabric import build_fabric, compile_routes
from moe_placer.instance.sizes import back_ratio
from moe_placer.placement import Placement
from moe_placer.schedule.program import SENDS, Program, compile_program
from moe_placer.schedule.simulate import Timeline, simulate, simulate_placement
from moe_placer.schedule.step_figures import SHARES, find_figures, plan_holds, planned_shares
from moe_placer.schedule.step_text import print_figures
from moe_placer.schedule.timing import Timing
from moe_placer.schedule.workload import Condition, Workload

ANY = pytest.mark.parametrize("name", VARIANTS)
WORKLOADS = [Workload(), Workload(micro_batches=1), Workload("decode", 3.0, 100.0)]
FREE = Timing(kernel_us=0, collective_us=0, nvlink_step_us=0, network_step_us=0, nvlink_utilization=1)


@cache
def program_of(name: str = "small") -> Program:
    """Compile an example once for all tests that simulate it."""
    return compile_program(*example(name))


def two_nodes(**changes: Any) -> Program:
    """One MoE layer, an expert on each of two nodes of one GPU; half of all tokens choose that of the other node."""
    model = {"layers": 1, "dense_layers": [], "experts": 2, "top_k": 1, "vocab_size": 1000}
    cluster = {"nodes": 2, "gpus_per_node": 1, "fabric": {"kind": "full-mesh", "node_gb_per_s": 100.0}}
    instance = tiny_instance(model=model, cluster=cluster, parallelism={"dp": 1}, **changes)
    traffic = level_traffic(instance, [[1.0, 1.0]], 2.0)
    return compile_program(instance, placement_of(instance, [[[0], [1]]]), traffic)


def roofline(flops: float, size: float) -> float:
    """µs at 60% of 400 TFLOP/s, or at 80% of 1.8 TB/s."""
    return max(flops / 240e6, size / 1.44e6)


def test_a_step_of_one_layer_on_two_nodes_by_hand() -> None:
    # 100 tokens of 64 bf16 values on each GPU; 4 heads of 16; experts of 2 x 64 x 32; vocabulary of 1,000; context 10.
    hidden, attention, expert, head = 100 * 64 * 2, 4 * 64 * 64, 2 * 64 * 32, 64 * 1000
    by_hand = [
        roofline(0, 100 * 64 * 2),  # embedding: rows looked up (its ids are among what is fed)
        roofline(2 * 100 * attention + 4 * 100 * 5.5 * 64, 2 * attention + hidden + 100 * 2 * 64 * 2),
        roofline(2 * 100 * 64 * 2, 2 * 64 * 2 + hidden),  # gate
        50 * 64 * 2 / (100e3 * 0.8),  # dispatch: 50 tokens each way at 80% of 100 GB/s, in bytes/µs
        roofline(2 * 100 * expert, 2 * expert + hidden),  # 50 tokens of its own node, 50 of the other
        50 * 64 * 2 / (100e3 * 0.8),  # combine
        roofline(100 * 64 * 3, hidden + hidden + 100 * (4 + 2)),  # aggregate: results, residual, choices
        roofline(4 * 100 * 64, 64 * 2 + hidden),  # norm
        roofline(2 * 100 * head, 2 * head + hidden),
        roofline(100 * 1000, 100 * 1000 * 2),  # sample: logits
    ]
    program = two_nodes()
    timeline = simulate(program, Workload(context=10.0, micro_batches=1), FREE)
    took = {program.kinds[timeline.operation(t)]: timeline.end[t] - timeline.start[t] for t in timeline.tasks()}
    kinds = ("attention", "gate", "dispatch_send", "expert", "combine_send", "aggregate", "norm", "head", "sample")
    assert [took[kind] for kind in kinds] == pytest.approx(by_hand[1:])
    ids = 200 * 4 / (100e3 * 0.8)  # all token ids from the first GPU to both, and back: at one GPU's share of the links
    embedding = took["embedding"]
    assert embedding == pytest.approx(by_hand[0], rel=0.05)
    assert timeline.makespan == pytest.approx(sum(by_hand[1:]) + embedding + took["split"] + took["gather"])
    assert took["split"] == pytest.approx(ids)


def test_a_ring_of_eight_by_hand() -> None:
    instance, placement, traffic = example("one-node")
    program = compile_program(instance, placement, traffic)
    timeline = simulate(program, Workload(micro_batches=1), Timing(nvlink_utilization=0.5))
    reduce = next(t for t in timeline.tasks() if program.kinds[timeline.operation(t)] == "attention_reduce")
    moved = 800 * 64 * 2 * 2 * 7 / 8 / (450e3 * 0.5)  # each GPU's link, in bytes/µs
    assert timeline.end[reduce] - timeline.start[reduce] == pytest.approx(6.6 + 14 * 0.6 + moved)


def test_decode_reads_the_whole_context_from_memory() -> None:
    program = two_nodes()
    short, long = (simulate(program, Workload("decode", 100.0, c, 1), FREE) for c in (1_000.0, 2_000.0))
    cache = 100 * 1_000 * 2 * 64 * 2 / 1.44e6
    assert long.makespan - short.makespan == pytest.approx(cache)


def test_two_micro_batches_hide_what_one_shows() -> None:
    # Communication and computation of about the same length: the halves take turns.
    program = two_nodes(traffic={"tokens_per_gpu": 1e6})
    one, two = (simulate(program, Workload(context=1.0, micro_batches=m), FREE).makespan for m in (1, 2))
    assert two < 0.95 * one


def test_one_half_is_routed_and_sent_while_the_other_attends() -> None:
    program = program_of()
    timeline = simulate(program, Workload(tokens_per_gpu=1e5, context=1e4))
    size = len(program)

    def first(kind: str, batch: int, moments: npt.NDArray[np.float64]) -> float:
        return min(float(moments[batch * size + p]) for p in range(size) if program.names[p].startswith(f"L1.{kind}"))

    assert first("dispatch_send", 0, timeline.start) < first("attention.", 1, timeline.end)


@ANY
@pytest.mark.parametrize("workload", WORKLOADS, ids=["prefill", "whole", "decode"])
def test_what_must_hold_of_any_step(name: str, workload: Workload) -> None:
    timeline = simulate(program_of(name), workload)
    no_stream_runs_two_things_at_once(timeline)
    everything_waits_for_what_it_needs(timeline)
    links_carry_what_is_sent(timeline)
    the_critical_path_has_no_gaps(timeline)
    busy = timeline.network.carried / timeline.network.capacity
    assert (busy <= timeline.makespan * (1 + 1e-9)).all()
    figures = find_figures(timeline)
    assert sum(figures.shares.values()) == pytest.approx(1)
    assert sum(figures.path_us.values()) == pytest.approx(figures.latency_us)
    assert 0 < figures.mfu < timeline.program.instance.cluster.gpu.mfu
    assert figures.layer_us.sum() <= figures.latency_us * (1 + 1e-9)


def no_stream_runs_two_things_at_once(timeline: Timeline) -> None:
    spans = defaultdict(list)
    for task in timeline.tasks().tolist():
        for stream in timeline.program.streams(timeline.operation(task)):
            spans[stream].append((timeline.start[task], timeline.end[task]))
    for stream in spans.values():
        stream.sort()
        assert all(first[1] <= then[0] for first, then in itertools.pairwise(stream))
        assert sum(end - start for start, end in stream) <= timeline.makespan * (1 + 1e-9)


def everything_waits_for_what_it_needs(timeline: Timeline) -> None:
    size = len(timeline.program)
    for task in timeline.tasks().tolist():
        for after in timeline.program.after[timeline.operation(task)]:
            later = timeline.batch(task) * size + after
            if np.isfinite(timeline.start[later]):
                assert timeline.end[task] <= timeline.start[later]


def links_carry_what_is_sent(timeline: Timeline) -> None:
    program = timeline.program
    nodes = program.instance.cluster.nodes
    flow = np.zeros((nodes, nodes))
    for p, sent in program.sent.items():
        flow[program.home[p]] += sent
    asked = timeline.workload.tokens_per_gpu or program.instance.traffic.tokens_per_gpu
    expected = compile_routes(build_fabric(program.instance), nodes).shares @ flow.ravel()
    expected = expected * asked / program.instance.traffic.tokens_per_gpu
    assert timeline.network.carried == pytest.approx(expected)
    # Dispatch reversed is combine.
    by_kind = {kind: np.zeros((nodes, nodes)) for kind in SENDS}
    for p, sent in program.sent.items():
        by_kind[program.kinds[p]][program.home[p]] += sent
    back = by_kind["dispatch_send"] * back_ratio(program.instance)
    assert back == pytest.approx(by_kind["combine_send"].T)


def the_critical_path_has_no_gaps(timeline: Timeline) -> None:
    path = timeline.critical_path()
    assert timeline.start[path[0]] == 0
    assert timeline.end[path[-1]] == timeline.makespan
    assert all(timeline.end[a] == timeline.start[b] for a, b in itertools.pairwise(path))


@given(seed=st.integers(0, 1000), gpu=st.integers(0, 7), factor=st.floats(1, 20))
@settings(max_examples=15, deadline=None)
def test_a_straggler_makes_no_step_materially_shorter(seed: int, gpu: int, factor: float) -> None:
    instance, placement, _ = example("small")
    program = compile_program(instance, placement, tiny_traffic(instance, seed))
    before = simulate(program, Workload()).makespan
    after = simulate(program, Workload(), condition=Condition(slow_gpus={gpu: factor})).makespan
    assert after >= before * 0.98  # list scheduling has anomalies (Graham, 1969)


def test_a_slow_link_is_waited_for() -> None:
    program = two_nodes(traffic={"tokens_per_gpu": 1e6})
    workload = Workload(micro_batches=1, context=1.0)
    before = simulate(program, workload, FREE)
    after = simulate(program, workload, FREE, Condition(slow_links={"node0->node1": 0.5}))
    sent = 5e5 * 64 * 2 / (100e3 * 0.8)
    assert after.makespan - before.makespan == pytest.approx(2 * sent, rel=1e-6)  # dispatch, and combine later


def test_the_same_step_takes_the_same_time_again() -> None:
    first, again = (simulate(program_of("redundant"), Workload()) for _ in range(2))
    assert np.array_equal(first.end, again.end, equal_nan=True)


def test_memory_counts_every_expert_and_the_cache() -> None:
    program = two_nodes()
    memory = find_figures(simulate(program, Workload("decode", 10.0, 50.0))).memory
    weights = 2 * (4 * 64 * 64 + 2 * 64 * 32 + 2 * 64 * 1000)
    assert memory.weights == pytest.approx([weights] * 2)
    assert memory.kv_cache == pytest.approx([10 * 50 * 2 * 64 * 2] * 2)
    assert memory.fits
    assert not find_figures(simulate(program, Workload("decode", 1e6, 1e3))).memory.fits


def test_what_is_reserved_for_the_cache_counts_as_taken() -> None:
    used = 10 * 50 * 2 * 64 * 2  # bytes, on each of the two GPUs
    for reserved_gb, taken in ((0.0, used), (used / 2e9, used), (0.25, 0.25e9)):
        program = two_nodes(placement={"kv_cache_gb": reserved_gb})
        memory = find_figures(simulate(program, Workload("decode", 10.0, 50.0))).memory
        assert memory.kv_cache == pytest.approx([used] * 2)
        assert memory.high_water == pytest.approx(memory.weights + taken + memory.activations)
        assert memory.fits
    free = memory.size - memory.weights - memory.activations
    full = two_nodes(placement={"kv_cache_gb": float(free.min()) / 1e9 + 1e-6})
    assert not find_figures(simulate(full, Workload("decode", 10.0, 50.0))).memory.fits


def test_the_plan_holds_within_five_points() -> None:
    asked = dict(zip(SHARES, (0.40, 0.35, 0.15, 0.10), strict=True))
    planned = planned_shares(tiny_instance(schedule={"planned_shares": asked}))
    assert planned == asked
    assert plan_holds(dict(zip(SHARES, (0.44, 0.31, 0.15, 0.10), strict=True)), planned)
    assert not plan_holds(dict(zip(SHARES, (0.46, 0.29, 0.15, 0.10), strict=True)), planned)
    assert planned_shares(tiny_instance()) is None


def test_a_plans_shares_are_shown_only_where_an_instance_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    for asked in (None, dict(zip(SHARES, (0.40, 0.35, 0.15, 0.10), strict=True))):
        instance = tiny_instance(schedule={"planned_shares": asked})
        traffic = tiny_traffic(instance)
        placement = Placement.model_validate(honest(instance, traffic))
        timeline = simulate_placement(instance, placement, traffic)
        print_figures(timeline, find_figures(timeline), "by-hand")
        shown = capsys.readouterr().out
        assert ("The plan's estimate (40%/35%/15%/10%) " in shown) == (asked is not None)
        assert ("the plan's estimate" in shown) == (asked is not None)
        assert "time of a mean GPU" in shown


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Workload("train"), "phase is train"),  # type: ignore[arg-type]
        (lambda: Workload(tokens_per_gpu=0.0), "0 tokens per GPU"),
        (lambda: Workload(context=float("nan")), "context is nan"),
        (lambda: Workload(micro_batches=3), "3 micro-batches"),
        (lambda: Timing(kernel_us=-1), "kernel_us is -1"),
        (lambda: Timing(nvlink_utilization=0), "nvlink_utilization is 0"),
        (lambda: simulate(program_of(), Workload(), condition=Condition(slow_gpus={99: 2.0})), "no GPU 99"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_an_unknown_link_is_refused() -> None:
    with pytest.raises(InputError, match="node0->node9"):
        simulate(program_of(), Workload(), condition=Condition(slow_links={"node0->node9": 0.5}))


DEEPEP = ["--kernels", "deepep"]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    instance = tiny_instance()
    content = instance.model_dump(mode="json", exclude_none=True) | {"traffic": {"kind": "synthetic", "seed": 1}}
    (tmp_path / "tiny.yaml").write_text(json.dumps(content))
    from moe_placer.instance import load_instance
    from moe_placer.traffic import load_traffic

    opened = load_instance(tmp_path / "tiny.yaml")
    (tmp_path / "placement.json").write_text(json.dumps(honest(opened, load_traffic(opened))))
    return [str(tmp_path / "tiny.yaml"), str(tmp_path / "placement.json")]


def test_the_command_reports_in_words_and_in_json(files: list[str]) -> None:
    said = CliRunner().invoke(
        cli, ["schedule", *files, "--phase", "decode", "--context", "100"], catch_exceptions=False
    )
    assert said.exit_code == 0
    for word in ("latency", "tokens/s", "MFU", "synchronization", "critical path", "Memory:"):
        assert word in said.output
    found = json.loads(CliRunner().invoke(cli, ["schedule", *files, "--json"], catch_exceptions=False).stdout)
    assert found["schema"] == "moe-placer/schedule/1"
    assert found["latency_us"] == pytest.approx(found["critical_path"][-1]["end_us"])
    assert sum(found["shares"].values()) == pytest.approx(1)


def test_the_command_takes_another_preset_of_kernels(files: list[str]) -> None:
    plain, deepep = (json.loads(run("schedule", *files, "--json", *kernels).stdout) for kernels in ([], DEEPEP))
    assert (plain["timing"]["communication_sms"], deepep["timing"]["communication_sms"]) == (0, 24)
    assert deepep["latency_us"] > plain["latency_us"]


def test_the_command_explains_the_time_of_an_operation(files: list[str]) -> None:
    said = run("schedule", *files, "--explain", "L1.gate.g0.b1").stdout
    assert "L1.gate.g0 (gate) takes" in said
    assert "1 launches x kernel_us 2" in said
    found = json.loads(run("schedule", *files, "--explain", "L1.gate.g0", "--json").stdout)
    assert sum(part["us"] for part in found["explained"]["parts"]) == pytest.approx(
        found["explained"]["end_us"] - found["explained"]["start_us"]
    )
    assert {one["formula"] for one in found["critical_path"]} <= set(found["formulas"])
    assert (found["hardware"]["mfu"], found["hardware"]["nvlink_gb_per_s"]) == (0.6, 450.0)
    assert f"had ended ({found['explained']['waited_for']}" in said.replace("its ", "")


def test_a_placement_that_breaks_a_rule_is_not_simulated(files: list[str]) -> None:
    content = json.loads(Path(files[1]).read_text())
    content["gpu"][0][0][0] = content["gpu"][0][1][0]
    Path(files[1]).write_text(json.dumps(content))
    done = CliRunner().invoke(cli, ["schedule", *files])
    assert "breaks a rule" in str(done.exception)
