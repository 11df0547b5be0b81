"""Moves counted from the plan that runs today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe_placer.errors import MoePlacerError
from moe_placer.experiments.compare import Given, Settings, build_matrix
from moe_placer.experiments.compare.run_process import run
from moe_placer.instance import load_instance
from moe_placer.solve.solve import solve

TINY = Path(__file__).parents[2] / "instances" / "tiny.yaml"
SOLVERS = ("contiguous", "greedy")


def today(folder: Path, **changes: Any) -> Path:
    """Write greedy's plan, changed, as what runs today."""
    plan = json.loads(solve(load_instance(TINY), solver="greedy").placement.to_json())
    file = folder / "today.json"
    file.write_text(json.dumps(plan | changes))
    return file


def test_moves_are_counted_from_the_plan_that_runs_today(tmp_path: Path) -> None:
    given = Given(current=[today(tmp_path)])
    matrix = build_matrix([TINY], SOLVERS, [0], Settings(time_limit_s=5), given)
    without = build_matrix([TINY], SOLVERS, [0], Settings(time_limit_s=5))
    contiguous, greedy = (run(cell)["moves"] for cell in matrix.cells)
    from_contiguous = [run(cell)["moves"] for cell in without.cells]
    # One replica of each expert, one on each GPU: as many moves one way as the other.
    assert (contiguous, greedy) == (from_contiguous[1], 0)
    assert contiguous > 0
    assert (matrix.instances[0]["current"], without.instances[0]["current"]) == ("today.json", None)
    assert matrix.config["current"] == ["today.json"]
    assert {cell.key for cell in matrix.cells}.isdisjoint(cell.key for cell in without.cells)


def test_a_plan_that_changed_since_is_refused(tmp_path: Path) -> None:
    given = Given(current=[today(tmp_path)])
    (cell,) = build_matrix([TINY], ["greedy"], [0], Settings(time_limit_s=5), given).cells
    today(tmp_path, gpu=[[[0], [1], [2], [3]]] * 2)
    with pytest.raises(MoePlacerError, match="files that changed during the comparison"):
        run(cell)


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"instance": {"name": "other", "sha256": "", "traffic_sha256": ""}}, 2, "is for other, which is none of"),
        ({"gpu": [[[0], [1], [2], [3]]]}, 1, "a current plan of 1 MoE layers, expected 2"),
        ({"gpu": [[[0], [1], [2]]] * 2}, 1, "a current plan of 3 experts in layer 1, expected 4"),
        ({"gpu": [[[0], [1], [2], [4]]] * 2}, 1, "a current plan on GPU 4, expected GPUs 0 to 3"),
        ({"gpu": [[[], [], [], []]] * 2}, 1, "a current plan without any replica"),
    ],
)
def test_a_plan_of_something_else_is_refused(tmp_path: Path, change: dict[str, Any], code: int, says: str) -> None:
    with pytest.raises(MoePlacerError, match=says) as refused:
        build_matrix([TINY], SOLVERS, [0], Settings(), Given(current=[today(tmp_path, **change)]))
    assert refused.value.exit_code == code


def test_two_plans_of_one_instance_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MoePlacerError, match="the current plan of tiny is given twice"):
        build_matrix([TINY], SOLVERS, [0], Settings(), Given(current=[today(tmp_path)] * 2))
