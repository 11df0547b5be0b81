"""A simulated step against a slow and obvious one, the verifier's link loads, and bounds that need no simulation."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import networkx as nx
import numpy as np
import pytest
from builders import level_traffic, tiny_instance
from dag_examples import VARIANTS, drawn_traffic, example, placement_of
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_step import SEND, SlowStep, stream_of

from moe_placer.dag.operation import Operation
from moe_placer.experiments.compare.metrics import find_flows
from moe_placer.instance.sizes import combine_wire, dispatch_wire
from moe_placer.schedule.network import Network
from moe_placer.schedule.program import compile_program
from moe_placer.schedule.simulate import Timeline, simulate
from moe_placer.schedule.step import step_time
from moe_placer.schedule.step_figures import find_figures
from moe_placer.schedule.timing import Timing
from moe_placer.schedule.workload import Condition, Workload
from moe_placer.verifier.loads import read_network

ANY = pytest.mark.parametrize("name", VARIANTS)
WORKLOADS = {
    "prefill": Workload(context=2000.0),
    "whole": Workload(tokens_per_gpu=3e5, context=10.0, micro_batches=1),
    "decode": Workload("decode", 5e4, 3.0),
}
# Long enough beside the small instances' microseconds to matter, and no multiples of each other.
TIMING = Timing(kernel_us=0.7, collective_us=1.9, nvlink_step_us=0.31, network_step_us=2.3, nvlink_utilization=0.77)
ENGINE = replace(
    TIMING,
    all_to_all_us=3.7,
    all_to_all_nvlink=0.41,
    all_to_all_slowdown=1.3,
    all_to_all_compute_us=1.7,
    communication_sms=20.0,
    attention_launches=3.0,
    mlp_launches=2.5,
    gate_launches=1.5,
    expert_launches=4.5,
    expert_passes=11.0,
    attention_passes=3.0,
    separate_scores=True,
    last_logits=True,
)
TIMINGS = {"prefill": ENGINE, "whole": TIMING, "decode": replace(ENGINE, head_once=True)}


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flows end one by one."""
    monkeypatch.setattr("moe_placer.schedule.simulate.Network", partial(Network, tolerance=0.0))


@ANY
@pytest.mark.parametrize("kind", WORKLOADS)
@pytest.mark.usefixtures("exact")
def test_a_slow_and_obvious_simulation_agrees(name: str, kind: str) -> None:
    workload, timing = WORKLOADS[kind], TIMINGS[kind]
    instance, placement, traffic = example(name)
    links = read_network(instance).links
    condition = Condition(slow_gpus={instance.gpus - 1: 1.7}, slow_links={links[0]: 0.6} if links else {})
    timeline = simulate(compile_program(instance, placement, traffic), workload, timing, condition)
    size, index = len(timeline.program), {name: p for p, name in enumerate(timeline.program.names)}
    expected = SlowStep(instance, placement, traffic, workload, timing, condition).run()
    assert len(timeline.tasks()) == len(expected)
    found = np.array([[array[b * size + index[n]] for array in (timeline.start, timeline.end)] for n, b in expected])
    assert found == pytest.approx(np.array(list(expected.values())), rel=1e-6)


@ANY
@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_links_carry_the_loads_that_the_verifier_derives(name: str, workload: Workload) -> None:
    instance, placement, traffic = example(name)
    timeline = simulate(compile_program(instance, placement, traffic), workload)
    network, between = read_network(instance), find_flows(instance, placement, traffic).between.sum(axis=0)
    out, back = dispatch_wire(instance).token_bytes, combine_wire(instance).token_bytes
    size = network.load(between) * out + network.load(between.T) * back  # combine is dispatch reversed
    scale = (workload.tokens_per_gpu or instance.traffic.tokens_per_gpu) / instance.traffic.tokens_per_gpu
    expected = dict(zip(network.links, size * scale, strict=True))
    carried = dict(zip(timeline.network.routes.links, timeline.network.carried.tolist(), strict=True))
    assert carried == pytest.approx(expected)


@given(name=st.sampled_from(sorted(VARIANTS)), seed=st.integers(0, 10_000), workload=st.sampled_from(list(WORKLOADS)))
@settings(max_examples=25, deadline=None)
def test_no_step_is_shorter_than_its_longest_chain_of_tensors(name: str, seed: int, workload: str) -> None:
    instance, placement, _ = example(name)
    program = compile_program(instance, placement, drawn_traffic(instance, seed))
    timeline = simulate(program, WORKLOADS[workload], TIMING)
    assert timeline.makespan >= longest_chain(timeline) * (1 - 1e-9)
    assert sum(timeline.end[t] - timeline.start[t] for t in timeline.critical_path()) == pytest.approx(
        timeline.makespan
    )


def longest_chain(timeline: Timeline) -> float:
    """µs of the longest chain of operations of one micro-batch, as if each had its GPUs and links for itself."""
    program, network = timeline.program, timeline.network
    graph: nx.DiGraph[int] = nx.DiGraph()
    for p, after in enumerate(program.after):
        durations = timeline.durations
        alone = float(durations.busy[p])
        if p in program.sent:
            flow = np.zeros((program.instance.cluster.nodes,) * 2)
            flow[program.home[p]] = program.sent[p] * durations.scale
            alone = max(alone, float((network.routes.shares @ flow.ravel() / network.capacity).max(initial=0.0)))
        takes = float(durations.overhead[p]) + alone + float(durations.latency[p])
        graph.add_edges_from(((p, then) for then in after), takes=takes)
    return float(nx.dag_longest_path_length(graph, weight="takes"))


def test_the_time_of_a_step_is_that_of_its_operations() -> None:
    parts = example("small")
    workload = WORKLOADS["whole"]
    spans: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    slow = SlowStep(*parts, workload, Timing(), Condition())
    ended = slow.run()
    for (name, batch), span in ended.items():
        if slow.ops[name].kind in SEND:
            spans.setdefault((name.partition(".")[0], slow.ops[name].kind, batch), []).append(span)
    moving = sum(max(end for _, end in group) - min(start for start, _ in group) for group in spans.values())
    found = step_time(*parts, workload)
    assert len(spans) == 2 * 3  # MoE layers
    assert found.communication_us == pytest.approx(moving, rel=0.01)  # flows may end together
    assert found.step_us == pytest.approx(max(end for _, end in ended.values()), rel=0.01)


def test_a_step_is_by_default_a_prefill_of_the_instances_own_tokens() -> None:
    parts = example("redundant")
    asked = Workload("prefill", parts[0].traffic.tokens_per_gpu, micro_batches=2)
    assert step_time(*parts) == step_time(*parts, asked)
    assert step_time(*parts).step_us != step_time(*parts, WORKLOADS["decode"]).step_us


@pytest.mark.parametrize(
    ("model", "largest"),
    [
        ({"vocab_size": 1000}, 100 * 1000),  # logits
        # 100 tokens come to the expert and 100 results leave, 100 replicas are on their way, and 100 rows inside.
        ({"vocab_size": 1, "attention_heads": 2}, 100 * (2 * 64 + 64 + 32)),
        ({"vocab_size": 1, "attention_heads": 2, "expert_matrices": 3}, 100 * (2 * 64 + 64 + 2 * 32)),
        ({"vocab_size": 1, "attention_heads": 8}, 4 * 100 * 8 * 16),  # queries, keys, values, result
        ({"vocab_size": 1, "layers": 2, "dense_layers": [0], "dense_hidden_size": 700}, 100 * 700),
    ],
)
def test_activations_by_hand(model: dict[str, object], largest: int) -> None:
    shape = {"layers": 1, "dense_layers": [], "experts": 2, "top_k": 1, "expert_hidden_size": 32} | model
    cluster = {"nodes": 2, "gpus_per_node": 1, "fabric": {"kind": "full-mesh"}}
    instance = tiny_instance(model=shape, cluster=cluster, parallelism={"dp": 1})
    traffic = level_traffic(instance, [[1.0, 1.0]], 2.0)
    program = compile_program(instance, placement_of(instance, [[[0], [1]]]), traffic)
    memory = find_figures(simulate(program, Workload())).memory
    assert memory.activations == pytest.approx([2 * (2 * 100 * 64 + largest)] * 2)  # bf16
    assert memory.kv_reserved == pytest.approx(0.0)
    assert memory.high_water == pytest.approx(memory.weights + memory.kv_cache + memory.activations)


@pytest.mark.parametrize("name", ["small", "tensor-parallel-over-nodes", "redundant", "failed-gpu"])
@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
@pytest.mark.usefixtures("exact")
def test_shares_are_what_each_gpu_does_at_each_moment(name: str, workload: Workload) -> None:
    parts = example(name)
    slow = SlowStep(*parts, workload, TIMING, Condition())
    ended = slow.run()
    latency = max(end for _, end in ended.values())
    spans = {
        gpu: [
            (start, start + slow.cost[one].overhead, end, work_of(slow.ops[one[0]]))
            for one, (start, end) in ended.items()
            if gpu in slow.ops[one[0]].gpus and stream_of(slow.ops[one[0]])
        ]
        for gpu in range(parts[0].gpus)
    }
    total = dict.fromkeys(("computation", "communication", "synchronization", "overhead"), 0.0)
    for doing in spans.values():
        moments = sorted({0.0, latency, *(moment for span in doing for moment in span[:3])})
        for here, then in itertools.pairwise(moments):
            middle = (here + then) / 2
            running = {stream for _, begun, end, stream in doing if begun <= middle < end}
            starting = any(start <= middle < begun for start, begun, _, _ in doing)
            what = "overhead" if starting else "synchronization"
            what = "computation" if "compute" in running else "communication" if running else what
            total[what] += (then - here) / latency
    working = sum(bool(doing) for doing in spans.values())
    total["synchronization"] -= len(spans) - working  # what failed waits for nobody
    figures = find_figures(simulate(compile_program(*parts), workload, TIMING))
    assert figures.shares == pytest.approx({what: share / working for what, share in total.items()}, abs=1e-6)
    assert figures.mfu == pytest.approx(flops_of_a_step(slow, workload) / (parts[0].gpus * 400e6 * latency), rel=1e-6)


def work_of(op: Operation) -> str:
    """A gate computes, beside the stream where everything else that computes is."""
    return "compute" if op.kind == "gate" else stream_of(op)


def flops_of_a_step(slow: SlowStep, workload: Workload) -> float:
    """Sum what operations do, and what attention does with the context."""
    instance = slow.instance
    tokens = workload.tokens_per_gpu or instance.traffic.tokens_per_gpu
    seen = workload.context if workload.phase == "decode" else (workload.context + 1) / 2
    projected = sum(op.flops for op in slow.ops.values()) * tokens / instance.traffic.tokens_per_gpu
    return projected + tokens * instance.gpus * 4 * seen * 4 * 16 * instance.model.layers  # 4 heads of 16
