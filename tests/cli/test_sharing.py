"""``--sharing``: what steps say of it, and what it does not go together with; bounds that steps do not look at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import honest, tiny_instance, tiny_traffic
from command_line import TINY, fails, run

from moe_placer.placement import Placement
from moe_placer.verifier import verify


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharing")
    done = run("solve", TINY, "-o", folder, "--workers", 1, "--solver", "contiguous", "--no-dag")
    assert done.returncode == 0, done.stderr
    return folder / "placement.json"


def test_a_step_says_how_its_links_were_shared_and_what_was_not_derived(placed: Path) -> None:
    fine, coarse = run("schedule", TINY, placed), run("schedule", TINY, placed, "--sharing", "coarse")
    assert "--sharing" not in fine.stdout
    assert "in spans of 1% to 10% of a transfer's time" in coarse.stdout
    assert "Bounds were not derived anew" in fine.stdout


def test_links_over_time_need_fine_spans(placed: Path, tmp_path: Path) -> None:
    for option in ("--pictures", "--chrome-trace"):
        fails(
            2, "schedule", TINY, placed, "--sharing", "coarse", option, tmp_path / "out", says="--sharing fine or exact"
        )
    assert not list(tmp_path.iterdir())


def test_points_of_a_sweep_have_it(placed: Path) -> None:
    done = run("sweep", TINY, placed, "--tokens-per-gpu", 64, "--sharing", "coarse", "--workers", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert [point["sharing"] for point in json.loads(done.stdout)["points"]] == ["coarse"]


def test_what_simulates_steps_beside_other_figures_has_it(placed: Path, tmp_path: Path) -> None:
    commands = {
        "step_us": ("evaluate", TINY, placed, "--step"),
        "value": ("gate", TINY, placed, "--max-step", "1e6"),
        "plans": ("solve", TINY, "-o", tmp_path, "--workers", 1, "--solver", "contiguous", "--no-dag", "-q", "--step"),
    }
    for key, command in commands.items():
        fine, coarse = (json.loads(run(*command, "--sharing", how, "--json").stdout) for how in ("fine", "coarse"))
        assert (fine["sharing"], coarse["sharing"]) == ("fine", "coarse"), command
        step, coarser = (found.get("costs", found.get("checks", [found])[0])[key] for found in (fine, coarse))
        assert step != coarser, command
    text = run(*commands["value"], "--sharing", "coarse").stdout
    assert "Steps were simulated with --sharing coarse" in text
    assert "--sharing" not in run(*commands["value"]).stdout
    assert json.loads(run("gate", TINY, placed, "--max-gap", "1000%", "--json").stdout)["sharing"] is None


def test_it_is_refused_where_no_step_is_simulated(placed: Path, tmp_path: Path) -> None:
    evaluate, gate = ("evaluate", TINY, placed), ("gate", TINY, placed, "--max-gap", "1000%")
    solve = ("solve", TINY, "-o", tmp_path / "out")
    for command, option in ((evaluate, "--step"), (gate, "--max-step"), (solve, "--step")):
        fails(2, *command, "--sharing", "coarse", says=f"no step is simulated without {option}")
    assert not (tmp_path / "out").exists()


def test_without_bounds_rules_and_loads_are_checked_all_the_same() -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic)
    good = verify(instance, Placement.model_validate(data), traffic)
    known = verify(instance, Placement.model_validate(data), traffic, bounds=False)
    assert good.ok
    assert known.ok
    assert good.total_bound > known.total_bound == 0
    assert known.total_z == good.total_z
    # A bound between what its proof gives and z is told by deriving it, one above z by z itself.
    low, high = [json.loads(json.dumps(data)) for _ in range(2)]
    low["layers"][0]["bound"] = (good.layers[0].bound + good.layers[0].z) / 2
    high["layers"][0]["bound"] = good.layers[0].z * 1.01
    broken = [
        [one.rule for one in verify(instance, Placement.model_validate(wrong), traffic, bounds=bounds).violations]
        for wrong in (low, high)
        for bounds in (True, False)
    ]
    assert broken[:2] == [["bound"], []]
    assert broken[3] == ["bound"]
    data["layers"][0]["z"] *= 1.01
    assert [one.rule for one in verify(instance, Placement.model_validate(data), traffic, bounds=False).violations] == [
        "z"
    ]
