"""What `solve` says of the plans beside each other: links, busiest GPUs, steps, the verdict, the gate on the gap."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import level_traffic, tiny_instance, tiny_traffic
from command_line import TINY, fails, run
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.cli.plans import PlanFigures, bound_us, measure_plans, simulate_steps, verdict
from moe_placer.cli.summary import print_summary
from moe_placer.experiments.compare.metrics import metrics
from moe_placer.limits import Limits
from moe_placer.schedule.step import step_time
from moe_placer.solve.solve import Solution, solve
from moe_placer.verifier import verify

# One layer of 8 experts on 4 nodes of 2 GPUs; "tokens" counts links between leaves as if they were as fast as others.
METRICS: dict[str, dict[str, Any]] = {
    "time": {},
    "tokens": {"objective": {"metric": "tokens"}},
    "aggregate": {"objective": {"minimise": "aggregate"}},
    "aggregate in tokens": {"objective": {"minimise": "aggregate", "metric": "tokens"}},
}


def quick(seed: int = 0, **changes: Any) -> Solution:
    instance = tiny_instance(**changes)
    return solve(instance, tiny_traffic(instance, seed), limits=Limits(time_s=240, work=0.5))


def test_every_plan_is_measured_as_compare_measures_it() -> None:
    instance = tiny_instance(objective={"metric": "tokens"})
    traffic = tiny_traffic(instance, 1)
    solution = solve(instance, traffic, limits=Limits(time_s=240, work=0.5))
    plans = measure_plans(instance, solution)
    assert list(plans) == ["contiguous", "eplb", "greedy", "auto"]
    placements = {**solution.baseline_placements(), "auto": solution.placement}
    for name, figures in plans.items():
        compared = metrics(instance, placements[name], traffic)
        assert figures.wire_us == pytest.approx(compared["communication_us"], rel=1e-9)
        assert figures.busiest_gpu_tokens == pytest.approx(compared["busiest_gpu_tokens"], rel=1e-9)
        assert figures.objective == pytest.approx(compared["z_total"], rel=1e-9)
    # Each layer's choices are 2 a token, spread over 8 GPUs that compute one replica each.
    mean = 2 * (800 * 2) / 8
    assert plans["auto"].above_mean == pytest.approx(plans["auto"].busiest_gpu_tokens / mean - 1)


def test_the_placement_is_last_also_where_it_is_a_heuristics() -> None:
    instance = tiny_instance()
    solution = solve(instance, tiny_traffic(instance), solver="contiguous")
    plans = measure_plans(instance, solution)
    assert list(plans) == ["eplb", "greedy", "contiguous"]
    assert plans["contiguous"].objective == pytest.approx(solution.verification.total_z)


def test_baselines_are_placements_that_can_be_verified() -> None:
    instance = tiny_instance(model={"experts": 3}, placement={"slots_per_gpu": 2})
    traffic = tiny_traffic(instance)
    for placement in solve(instance, traffic, solver="greedy").baseline_placements().values():
        rules = {violation.rule for violation in verify(instance, placement, traffic).violations}
        assert rules == {"shape"}  # no records of layers, and nothing else


def test_steps_are_those_of_the_schedule() -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    solution = solve(instance, traffic, solver="greedy")
    told: list[str] = []
    steps = simulate_steps(instance, solution, measure_plans(instance, solution), told.append)
    assert told == list(steps) == ["contiguous", "eplb", "greedy"]
    assert steps["greedy"].step_us == step_time(instance, solution.placement, traffic).step_us
    contiguous = solution.baseline_placements()["contiguous"]
    assert steps["contiguous"].step_us == step_time(instance, contiguous, traffic).step_us


@pytest.mark.parametrize("metric", METRICS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_no_plan_needs_less_time_than_the_bound_proves(metric: str, seed: int) -> None:
    instance = tiny_instance(**METRICS[metric])
    solution = solve(instance, tiny_traffic(instance, seed), limits=Limits(time_s=240, work=0.3))
    bound = bound_us(instance, solution)
    assert bound > 0
    for figures in measure_plans(instance, solution).values():
        assert bound <= figures.wire_us * (1 + 1e-9)


def test_the_bound_in_time_is_exact_where_costs_are_times() -> None:
    solution = quick()
    us_per_cost = solution.verification.us[0].max() / solution.verification.cost[0].max()
    assert bound_us(tiny_instance(), solution) == pytest.approx(solution.bound * us_per_cost, rel=1e-9)


def test_tokens_are_bounded_in_time_by_the_weights_that_prove_them() -> None:
    # Weights on one half-speed link alone: its bound in tokens takes twice the time of a node's link.
    instance = tiny_instance(objective={"metric": "tokens"})
    solution = quick(objective={"metric": "tokens"})
    records = [
        record.model_copy(update={"proof": "dual", "weights": {"leaf0->spine0": 1.0}})
        for record in solution.placement.layers
    ]
    placement = solution.placement.model_copy(update={"layers": tuple(records)})
    node_us = 1e6 * 64 * 2 / (400e9 * 0.8)
    found = bound_us(instance, replace(solution, placement=placement))
    assert found == pytest.approx(2 * node_us * sum(check.bound for check in solution.verification.layers))


FIGURES = PlanFigures(100.0, 1000.0, 50.0, 0.1)


def judged(mine: float, eplb: float, steps: bool = True) -> str:
    """Return the verdict on a plan against contiguous (1,100 µs) and EPLB."""
    values = {"contiguous": 1100.0, "eplb": eplb, "greedy": 1.0, "auto": mine}
    plans = {name: replace(FIGURES, wire_us=us, step_us=us if steps else None) for name, us in values.items()}
    return str(verdict(plans))


def test_verdicts() -> None:
    assert judged(900.0, 1000.0) == (
        "Verdict: placing pays here: a step takes 0.9 ms, -10.0% against the best engine rule, eplb."
    )
    assert judged(985.0, 1000.0).startswith("Verdict: placing does not pay here: a step takes 1.0 ms, -1.5%")
    assert judged(985.0, 1000.0).endswith("count as equal. Without a map, as contiguous, it takes 1.1 ms.")
    assert judged(1085.0, 1090.0).endswith("differences below 2% count as equal.")
    assert judged(1015.0, 1000.0).startswith("Verdict: placing does not pay here: ")
    assert judged(1030.0, 1000.0).startswith("Verdict: eplb is better here: a step takes 1.0 ms, +3.0%")
    assert "against the best engine rule, contiguous" in judged(900.0, 1200.0)
    links = judged(900.0, 1000.0, steps=False)
    assert "links need 0.9 ms for dispatch, -10.0% against the best engine rule, eplb" in links
    assert "at most 0.2 ms of a step" in links  # 100 µs, there and back
    assert "--step" in links
    assert "does not pay on these links" in judged(990.0, 1000.0, steps=False)
    assert verdict({"auto": FIGURES}) is None


def test_solve_prints_steps_and_gates_on_the_gap(tmp_path: Path) -> None:
    common = ("solve", TINY, "-o", tmp_path, "--no-dag", "--time-limit", 20, "--workers", 1, "-q")
    done = run(*common, "--step", "--fail-above-gap", "0.5")
    assert done.returncode == 0, done.stderr
    assert "Verdict: placing" in done.stdout
    assert "Steps simulated in" in done.stdout
    assert "Cost: tokens at node-link speed (a token on a link of half" in done.stdout
    failed = run(*common, "--json", "--gap", "0.1%", "--fail-above-gap", "0.01%")
    assert failed.returncode == 6
    content = json.loads(failed.stdout)
    assert content["objective_gap"] > 0.0001
    found = f"the gap to the re-checkable bound is {content['objective_gap']:.3%}"
    assert failed.stderr == f"moe-placer: {found}, above --fail-above-gap 0.010%\n"
    assert (tmp_path / "placement.json").exists()
    assert content["plans"]["auto"]["step_us"] is None
    assert content["dispatch_us"] == pytest.approx(content["plans"]["auto"]["wire_us"])
    assert content["layers"][0]["worst_link_tokens"] > 0
    fails(2, *common, "--fail-above-gap", "-1", says="--fail-above-gap is -1, expected 0 or more")
    fails(2, *common, "--fail-above-gap", "nan", says="--fail-above-gap is nan")


def test_the_gate_holds_for_every_method(tmp_path: Path) -> None:
    done = run("solve", TINY, "-o", tmp_path, "--no-dag", "-q", "--solver", "random", "--fail-above-gap", "1e-9")
    assert done.returncode == 6


def test_failed_gpus_do_not_count_in_the_mean() -> None:
    instance = tiny_instance(
        model={"layers": 1, "dense_layers": [], "experts": 2},
        cluster={"nodes": 2, "gpus_per_node": 2},
        parallelism={"dp": 1},
        placement={"failed_gpus": [1, 3]},
    )
    traffic = level_traffic(instance, [[3.0, 1.0]], 2.0)
    solution = solve(instance, traffic, solver="contiguous")
    (figures,) = (plan for name, plan in measure_plans(instance, solution).items() if name == "contiguous")
    # 400 tokens choose 2 experts each: 600 on one GPU, 200 on the other.
    assert figures.busiest_gpu_tokens == pytest.approx(600)
    assert figures.above_mean == pytest.approx(0.5)
    assert np.isfinite(figures.wire_us)


def test_a_heuristic_that_cannot_serve_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    instance = tiny_instance(placement={"pinned": [{"layer": 1, "expert": 0, "gpu": 7}]})
    solution = solve(instance, tiny_traffic(instance), solver="greedy")
    print_summary(instance, solution, measure_plans(instance, solution), None, [])
    shown = capsys.readouterr().out
    assert "contiguous cannot serve: in layer 1 the contiguous plan breaks slots, pins" in shown
    table = shown.splitlines()[1:9]
    assert [line.split()[0] for line in table if line.strip()][-4:] == ["contiguous", "eplb", "greedy", "lower"]
    assert max(map(len, table)) <= 100
