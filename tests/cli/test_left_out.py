"""`solve --quick`: the verified plan alone, the same as with everything beside it, and a list of what was left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import tiny_instance, tiny_traffic
from command_line import TINY, fails, run

from moe_placer.instance import load_instance
from moe_placer.placement import load_placement
from moe_placer.solve.solve import solve
from moe_placer.verifier import verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quick")


def test_a_quick_plan_is_verified_and_comes_alone(made: Path) -> None:
    done = run("solve", TINY, "--quick", "--json", "-o", made / "quick")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["solver"]["name"] == "quick"
    assert told["left_out"] == ["baselines", "bounds", "dags"]
    assert told["verified"] is True
    assert told["baselines"] == {}
    assert list(told["plans"]) == ["quick"]
    assert told["verdict"] is told["better_than_contiguous"] is None
    assert [path.name for path in (made / "quick").iterdir()] == ["placement.json"]
    assert verify(load_instance(TINY), load_placement(made / "quick" / "placement.json")).ok


def test_a_method_s_quick_plan_is_its_plan(made: Path) -> None:
    for flags in (("--quick",), ("--no-dag",)):
        done = run("solve", TINY, "--solver", "eplb", *flags, "-q", "-o", made / flags[0])
        assert done.returncode == 0, done.stderr
        assert ("Left out (--quick)" in done.stdout) == (flags == ("--quick",))
        assert ("contiguous" in done.stdout) == (flags != ("--quick",))
        assert ("above the gap of" in done.stdout) == (flags != ("--quick",))
    quick, whole = (load_placement(made / flag / "placement.json") for flag in ("--quick", "--no-dag"))
    assert quick.gpu == whole.gpu


def test_without_quick_nothing_is_said_to_be_left_out_that_was_asked_for(made: Path) -> None:
    done = run("solve", TINY, "--solver", "eplb", "--no-bound", "--no-dag", "--json", "-o", made / "whole")
    told = json.loads(done.stdout)
    assert told["left_out"] == ["bounds", "dags"]
    assert list(told["baselines"]) == ["contiguous", "eplb", "greedy"]


def test_a_search_has_its_start_all_the_same() -> None:
    instance = tiny_instance()
    solution = solve(instance, tiny_traffic(instance), solver="auto", baselines=False)
    assert list(solution.baselines) == ["contiguous", "eplb", "greedy"]
    assert not solve(instance, tiny_traffic(instance), solver="greedy", baselines=False).baselines


def test_what_quick_cannot_place_names_what_can(made: Path) -> None:
    per_node = made / "per-node.yaml"
    per_node.write_text(TINY.read_text() + "placement: {dispatch: per-node}\n")
    fails(4, "solve", per_node, "--quick", "-o", made / "none", says="the solver affinity is quick, too")
    assert run("solve", per_node, "--quick", "--solver", "affinity", "-o", made / "affinity").returncode == 0
