"""Explanations of times: they sum to what was simulated, and say which values gave it."""

from __future__ import annotations

import pytest
from dag_examples import example

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
        assert find_task(timeline, task_name(timeline, task)) == task
    assert formulas == set(FORMULAS)


def task_name(timeline: Timeline, task: int) -> str:
    name = timeline.program.names[timeline.operation(task)]
    return name if timeline.is_once(task) else f"{name}.b{timeline.batch(task)}"


def test_it_says_what_starts_and_what_binds(timeline: Timeline) -> None:
    lines = explanation_lines(explain(timeline, find_task(timeline, "L1.dispatch_send.n0")))
    assert "once " in lines[0]
    assert "all_to_all" in lines[1]
    assert any("bytes between nodes" in line and "GB/s = " in line for line in lines)


def test_an_operation_that_is_not_there_is_refused(timeline: Timeline) -> None:
    with pytest.raises(UsageError, match=r"no operation L1\.attention\.g77, expected one such as L1\.attention\.g"):
        find_task(timeline, "L1.attention.g77")
