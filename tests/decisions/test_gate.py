"""Limits on a placement that is verified again: each figure, each verdict, each exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import tiny_instance, tiny_traffic
from told import told

from moe_placer import Limits, solve
from moe_placer.decisions.gate import UNITS, GateLimits, gate
from moe_placer.errors import InputError, UsageError
from moe_placer.instance import Instance
from moe_placer.solve.solve import Solution

REPO = Path(__file__).parents[2]
TINY = REPO / "instances" / "tiny.yaml"
EVEN = tiny_instance(placement={"replica_routing": "even"})


@pytest.fixture(scope="module")
def solution() -> Solution:
    return solve(EVEN, tiny_traffic(EVEN), solver="greedy", limits=Limits(workers=1))


@pytest.fixture
def instance() -> Instance:
    return EVEN


def by_hand(instance: Instance, solution: Solution) -> dict[str, float]:
    """Work the figures out from the definitions: every replica of an expert takes an equal part of its tokens."""
    from moe_placer.problem.demand import demand

    placement, found = solution.placement, solution.verification
    imbalance, busiest = 0.0, 0.0
    for experts, tokens in zip(placement.gpu, demand(instance, solution.traffic).sum(axis=1), strict=True):
        gpus = [0.0] * instance.gpus
        for replicas, amount in zip(experts, tokens, strict=True):
            for replica in replicas:
                assert isinstance(replica, int)
                gpus[replica] += amount / len(replicas)
        busiest = max(busiest, *gpus)
        imbalance = max(imbalance, max(gpus) / (sum(gpus) / len(gpus)) - 1)
    z, bounds = [layer.z for layer in placement.layers], [layer.bound for layer in found.layers]
    return {
        "gap": sum(z) / sum(bounds) - 1,
        "layer-gap": max(a / b - 1 for a, b in zip(z, bounds, strict=True)),
        "z": max(z),
        "total-z": sum(z),
        "aggregate": found.aggregate,
        "dispatch": found.dispatch_us / 1e3,
        "layer-time": found.total_layer_us / 1e3,
        "busiest-gpu": busiest,
        "imbalance": imbalance,
    }


def test_every_figure_is_the_one_of_its_definition_and_its_limit_is_sharp(
    instance: Instance, solution: Solution
) -> None:
    for name, value in by_hand(instance, solution).items():
        field = f"max_{name.replace('-', '_')}{'_ms' if name in {'dispatch', 'layer-time'} else ''}"
        for factor, ok in ((1 + 1e-6, True), (1 - 1e-6, False)):
            limits = GateLimits(**{field: value * factor})
            (check,) = gate(instance, solution.placement, limits, solution.traffic).checks
            assert (check.limit, check.ok, check.unit) == (f"max-{name}", ok, UNITS[field])
            assert check.value == pytest.approx(value, rel=1e-9), name


def test_the_step_is_the_one_that_schedule_simulates(instance: Instance, solution: Solution) -> None:
    from moe_placer import simulate

    (check,) = gate(instance, solution.placement, GateLimits(max_step_ms=1e6), solution.traffic).checks
    assert check.value == simulate(instance, solution.placement, solution.traffic).latency_us / 1e3


def test_gain_and_moves_are_against_what_runs_today(instance: Instance, solution: Solution) -> None:
    traffic, mine = solution.traffic, solution.placement
    reached = {name: value for name, value in solution.baselines.items() if isinstance(value, float)}
    worst = max(reached, key=reached.__getitem__)
    current, before = solution.baseline_placements()[worst], reached[worst]
    moved = sum(
        gpu not in old
        for new_layer, old_layer in zip(mine.gpu, current.gpu, strict=True)
        for new, old in zip(new_layer, old_layer, strict=True)
        for gpu in new
    )
    gain, moves = gate(instance, mine, GateLimits(min_gain=0.0, max_moves=moved), traffic, current).checks
    assert gain.value == pytest.approx(1 - solution.verification.total_z / before)
    assert gain.ok
    assert gain.value > 0
    assert (moves.value, moves.ok) == (moved, True)
    assert not gate(instance, mine, GateLimits(min_gain=gain.value + 1e-6), traffic, current).ok
    assert not gate(instance, mine, GateLimits(max_moves=moved - 1), traffic, current).ok
    with pytest.raises(UsageError, match="give it as --current"):
        gate(instance, mine, GateLimits(max_moves=1), traffic)
    single = current.model_copy(update={"gpu": tuple(tuple(one[:1] for one in layer) for layer in current.gpu)})
    (other,) = gate(instance, mine, GateLimits(min_gain=0.0), traffic, single).checks  # fewer replicas may run today
    assert other.value != pytest.approx(gain.value)
    none = current.model_copy(update={"gpu": (((), *current.gpu[0][1:]), *current.gpu[1:])})
    with pytest.raises(InputError, match="0 replicas of layer 1 expert 0, expected at least one"):
        gate(instance, mine, GateLimits(min_gain=0.0), traffic, none)


def test_what_is_not_known_does_not_hold(instance: Instance, solution: Solution) -> None:
    layers = tuple(
        layer.model_copy(update={"proof": "solver", "bound": 0.0, "weights": None, "solver_bound": None})
        for layer in solution.placement.layers
    )
    placement = solution.placement.model_copy(update={"layers": layers})
    found = gate(instance, placement, GateLimits(max_gap=1e9), solution.traffic)
    assert found.verification.ok
    assert [(check.value, check.ok) for check in found.checks] == [(None, False)]


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_limits_that_make_no_sense(value: float) -> None:
    with pytest.raises(UsageError, match=r"max-gap is .*, expected 0 or more"):
        GateLimits(max_gap=value)


def test_the_command_and_its_exit_codes(tmp_path: Path) -> None:
    told("solve", TINY, "-o", tmp_path, "--no-dag", "--workers", 1, "--solver", "greedy", "-q")
    file = tmp_path / "placement.json"
    good = told("gate", TINY, file, "--max-gap", "50%", "--max-imbalance", "300%")
    assert good.out.splitlines()[0] == f"{file}: good; 2 of 2 limits hold"
    assert good.err == ""
    failed = told("gate", TINY, file, "--max-gap", "0.001%", "--max-z", 1e9, code=6)
    assert "  FAILS  gap" in failed.out
    assert "  holds  z " in failed.out
    assert "does not hold a limit: gap is" in failed.err
    assert "no limit is given, expected at least one of max-gap" in told("gate", TINY, file, code=2).err
    assert "'much' is not a share" in told("gate", TINY, file, "--max-gap", "much", code=2).err
    assert "give it as --current" in told("gate", TINY, file, "--min-gain", "1%", code=2).err
    content = json.loads(file.read_text())
    content["layers"][0]["z"] += 1
    (tmp_path / "wrong.json").write_text(json.dumps(content))
    wrong = told("gate", TINY, tmp_path / "wrong.json", "--max-gap", "50%", "--json", code=5)
    assert (wrong.json["ok"], wrong.json["verified"], wrong.json["checks"]) == (False, False, [])
    assert wrong.json["violations"][0]["rule"] == "z"
    assert "breaks a rule: [z]" in wrong.err
