"""Comparisons that leave out one recording after the other: solved without it, measured on it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import TINY, fails

from moe_placer.errors import UsageError
from moe_placer.experiments.compare import Cell, Given, Settings, build_matrix, read_config
from moe_placer.experiments.compare.metrics import metrics
from moe_placer.experiments.compare.run_process import run
from moe_placer.experiments.report.view import _beyond_base
from moe_placer.instance import load_instance
from moe_placer.placement import Placement


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of an instance with a mix of three recordings, and of these."""
    root = tmp_path_factory.mktemp("traced")
    instance, rng = load_instance(TINY), np.random.default_rng(0)
    head, _, _ = TINY.read_text().partition("traffic:")
    rows = "".join(f"    - {row}\n" for row in [[0.5, 0.25, 0.25], [0, 0, 1], [0.2, 0.2, 0.6], [1, 0, 0]])
    assert instance.cluster.nodes == 4
    text = f"{head}traffic:\n  kind: trace\n  tokens_per_gpu: 100\n  mix:\n{rows}"
    (root / "traced.yaml").write_text(text.replace("name: tiny", "name: traced", 1))
    for name in "abc":
        shape = (200, len(instance.moe_layers), instance.model.experts)
        topk = np.argsort(rng.random(shape) * rng.random(shape[2]), axis=2)[:, :, :2].astype(np.uint8)
        np.savez(root / f"{name}.npz", topk=topk)
    return root


def traces(folder: Path) -> list[Path]:
    return [folder / f"{name}.npz" for name in "abc"]


def test_each_recording_is_left_out_once(folder: Path) -> None:
    given = Given(traces(folder), leave_one_out=True)
    matrix = build_matrix([folder / "traced.yaml"], ["contiguous", "greedy"], [0], Settings(), given)
    assert [row["name"] for row in matrix.instances] == [f"traced without {name}" for name in "abc"]
    assert [(row["recordings"], row["held_out"]) for row in matrix.instances] == [
        (["b.npz", "c.npz"], ["a.npz"]),
        (["a.npz", "c.npz"], ["b.npz"]),
        (["a.npz", "b.npz"], ["c.npz"]),
    ]
    assert len({cell.key for cell in matrix.cells}) == len(matrix.cells) == 6
    _, traffic, beside, _ = matrix.cells[4].open()  # without c
    assert traffic.mix == pytest.approx(np.array([[2 / 3, 1 / 3], [0.5, 0.5], [0.5, 0.5], [1, 0]]))
    assert beside is not None
    assert beside.mix == pytest.approx(np.ones((4, 1)))


def test_a_run_is_measured_on_the_recording_left_out(folder: Path) -> None:
    given = Given(traces(folder), leave_one_out=True)
    matrix = build_matrix([folder / "traced.yaml"], ["greedy"], [0], Settings(time_limit_s=100.0), given)
    row = run(Cell(**asdict(matrix.cells[1])))
    assert (row["status"], row["instance"]) == ("ok", "traced without b")
    instance = load_instance(folder / "traced.yaml").with_traces([folder / "b.npz"])
    content = {
        "schema": "moe-placer/placement/1",
        "instance": {"name": "traced", "sha256": "", "traffic_sha256": ""},
        "solver": {"name": "greedy", "version": "", "seed": 0},
        "gpu": row["gpu"],
        "layers": [],
    }
    _, _, beside, _ = matrix.cells[1].open()
    assert beside is not None
    found = metrics(instance, Placement.model_validate(content), beside)
    assert row["traffic"]["held_out"]["z"] == pytest.approx(found["z"])
    assert row["traffic"]["held_out"]["z"] != pytest.approx(row["traffic"]["solved_for"]["z"])


@pytest.mark.parametrize(
    ("ratios", "says"),
    [
        ({"contiguous": 1.0, "greedy": 0.9}, []),
        ({"contiguous": 1.0, "greedy": 1.1}, ["greedy put more on the busiest links than contiguous; no plan here"]),
        ({"contiguous": 1.0, "eplb": 1.1, "auto": 0.8, "mip": None}, ["eplb put more .* than contiguous; auto less"]),
    ],
)
def test_pages_say_which_plans_lose_on_what_they_have_not_seen(ratios: dict[str, Any], says: list[str]) -> None:
    table: Any = [SimpleNamespace(run=SimpleNamespace(solver=n), held_out_to_base=r) for n, r in ratios.items()]
    found = list(_beyond_base(table))
    assert len(found) == len(says)
    assert all(re.search(said, note) for said, note in zip(says, found, strict=True))


def test_a_config_asks_for_the_same_again(folder: Path) -> None:
    given = Given(traces(folder), leave_one_out=True)
    matrix = build_matrix([folder / "traced.yaml"], ["greedy"], [0], Settings(), given)
    file = folder / "config.json"
    content = {"schema": "moe-placer/comparison/1", "name": "n", "question": None, **matrix.config}
    file.write_text(json.dumps(content))
    arguments, _ = read_config(file, [folder])
    assert [cell.key for cell in build_matrix(*arguments).cells] == [cell.key for cell in matrix.cells]


def test_what_has_nothing_to_leave_out_is_refused(folder: Path) -> None:
    instance = folder / "traced.yaml"
    with pytest.raises(UsageError, match=r"two recordings or more \(--trace\); tiny.yaml has 0"):
        build_matrix([TINY], ["greedy"], [0], Settings(), Given(leave_one_out=True))
    given = Given(traces(folder), held_out=traces(folder), leave_one_out=True)
    with pytest.raises(UsageError, match="its own held-out traffic"):
        build_matrix([instance], ["greedy"], [0], Settings(), given)
    fails(2, "compare", TINY, "--leave-one-out", says="--leave-one-out needs two recordings")
