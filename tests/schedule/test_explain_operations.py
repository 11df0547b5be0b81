"""Explanations of times: they sum to what was simulated, and say which values gave it."""

from __future__ import annotations

import pytest
from dag_examples import example

from benchmarks.fidelity.deployments import balanced, contiguous, deployment
from moe_placer.errors import UsageError
from moe_placer.schedule.explain import FORMULAS, explain, find_task
from moe_placer.schedule.program import compile_program
from moe_placer.schedule.simulate import Timeline, simulate
from moe_placer.schedule.step_text import explanation_lines
from moe_placer.schedule.timing import PRESETS, Timing
from moe_placer.schedule.workload import Condition, Workload

DEEPEP = Timing(**PRESETS["deepep"]["prefill"])  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["plain", "deepep", "slow"])
def timeline(request: pytest.FixtureRequest) -> Timeline:
    program = compile_program(*example("tensor-parallel-over-nodes"))
    timing, slow = (Timing() if request.param == "plain" else DEEPEP), {1: 2.0} if request.param == "slow" else {}
    return simulate(program, Workload(tokens_per_gpu=4e4, context=50.0), timing, Condition(slow_gpus=slow))


def test_parts_sum_to_the_time_of_every_operation(timeline: Timeline) -> None:
    formulas = set()
    for task in timeline.tasks().tolist():
        found = explain(timeline, task)
        formulas.add(found.formula)
        assert sum(part.us for part in found.parts) == pytest.approx(found.end_us - found.start_us, abs=1e-6)
        assert all(part.us >= 0 and part.formula for part in found.parts)
        assert find_task(timeline, timeline.name(task)) == task
    assert formulas == set(FORMULAS)


def test_it_says_what_starts_and_what_binds(timeline: Timeline) -> None:
    lines = explanation_lines(explain(timeline, find_task(timeline, "L1.dispatch_send.n0")))
    assert "once " in lines[0]
    assert "all_to_all" in lines[1]
    assert any("bytes between nodes" in line and "GB/s = " in line for line in lines)


def test_an_operation_that_is_not_there_is_refused(timeline: Timeline) -> None:
    with pytest.raises(UsageError, match=r"no operation L1\.attention\.g77, expected one such as L1\.attention\.g"):
        find_task(timeline, "L1.attention.g77")


def test_two_micro_batches_of_decode_by_kind_of_operation() -> None:
    """Latent attention, dense and shared MLPs, a joined head, and starts that wait for the order of stages."""
    instance = deployment("explained", nodes=2, gpu="H800", tokens_per_gpu=64, layers=5)
    program = compile_program(instance, contiguous(instance), balanced(instance))
    timeline = simulate(program, Workload("decode", 64, 4096, 2))
    found: dict[str, str] = {}
    waited = set()
    for task in timeline.tasks().tolist():
        p = timeline.operation(task)
        key = "shared" if program.kinds[p] == "mlp" and program.layer[p] > 2 else program.kinds[p]
        if key in found and not (key == "attention" and program.layer[p] == 4 and "stages" not in waited):
            continue
        explained = explain(timeline, task)
        waited.add(explained.waited_for)
        assert sum(part.us for part in explained.parts) == pytest.approx(
            explained.end_us - explained.start_us, abs=1e-6
        )
        found[key] = "; ".join(f"{part.name}: {part.formula}" for part in explained.parts)
    assert waited >= {"", "tensors", "stages"}
    # The dense MLP has its tensors when its own attention ends, and its stream when that of the other micro-batch does.
    dense = explain(timeline, find_task(timeline, "L0.mlp.g0.b0"))
    assert (dense.started_by, dense.waited_for) == ("L0.attention.g0.b1", "stream")
    assert explain(timeline, find_task(timeline, "head.g0")).waited_for == "tensors"
    # 2 x 128 x (2 x 512 + 64)
    assert "scores and values (32 tokens x 4096 x 278,528 FLOPs of mla)" in found["attention"]
    assert "TFLOP/s of bf16" in found["attention"]
    assert "values x attention_passes 4 bytes" in found["attention"]
    for kind, words in {
        "mlp": "8 launches", "shared": "8 launches", "gate": "5 launches", "expert": "10 launches",
        "head": "1 launches", "embedding": "memory_utilization 0.8", "aggregate": "memory_utilization 0.8",
        "norm": "bytes / (", "dispatch_send": "all_to_all_us 22", "combine_send": "link_utilization 0.9 in it",
    }.items():  # fmt: skip
        assert words in found[kind], found[kind]
    assert "FLOPs alone 199.89 µs" in found["head"]  # of all 64 tokens: 2 x 64 x 129,280 x 7168 at 0.6 of 989 TFLOP/s
    assert all("L" in timeline.name(t) and ".b" in timeline.name(t) for t in timeline.tasks()[40:60].tolist())
