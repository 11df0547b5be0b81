"""The contract that other packages rely on, and the template that the documentation shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Forks

from moe_placer import plugin

REPO = Path(__file__).parent.parent


def test_the_contract_has_what_it_promises() -> None:
    promised = {"Solver", "LayerSolver", "Heuristic", "LayerProblem", "LayerResult", "Problem", "Bound", "Limits"}
    assert promised | {"Deadline", "LayerTask", "find_solver"} <= set(plugin.__all__)
    assert all(hasattr(plugin, name) for name in plugin.__all__)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the template as a package of its own; return an environment whose Python finds it."""
    site = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    template = tmp_path_factory.mktemp("template")
    for file in (REPO / "examples" / "solver_plugin").iterdir():
        if file.is_file():
            (template / file.name).write_bytes(file.read_bytes())
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(template)], check=True, capture_output=True)
    return {**os.environ, "PYTHONPATH": str(site)}


def cli(forks: Forks, env: dict[str, str], *arguments: str) -> str:
    done = forks.run(*arguments, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_template_is_listed_with_its_source(forks: Forks, installed: dict[str, str]) -> None:
    assert "random-swaps" in cli(forks, installed, "solvers")


def test_the_template_places_and_repeats_itself(forks: Forks, installed: dict[str, str], tmp_path: Path) -> None:
    tiny = str(REPO / "instances" / "tiny.yaml")
    plans = []
    for name in ("a", "b"):
        out = tmp_path / name
        limits = ["--time-limit", "240", "--work", "0.1"]  # effort, so that the clock decides nothing
        cli(forks, installed, "solve", tiny, "--solver", "random-swaps", *limits, "--no-dag", "-q", "-o", str(out))
        plans.append(json.loads((out / "placement.json").read_text()))
    assert plans[0]["gpu"] == plans[1]["gpu"]
    assert plans[0]["solver"]["name"] == "random-swaps"
