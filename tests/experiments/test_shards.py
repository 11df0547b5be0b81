"""Work divided over executors and shards gives what one process gives: layers, runs and points."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import TINY, run

from moe_placer import Limits, solve
from moe_placer.experiments.compare import Settings, build_matrix
from moe_placer.experiments.compare import compare as compare_all
from moe_placer.experiments.compare import run as cells
from moe_placer.experiments.compare.cell import Cell
from moe_placer.experiments.sweep import sweep as sweep_points
from moe_placer.experiments.sweep.sweep import run_points
from moe_placer.instance import load_instance


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("placed")
    assert run("solve", TINY, "--solver", "greedy", "--no-dag", "--no-bound", "-q", "-o", folder).returncode == 0
    return TINY, folder / "placement.json"


def same_rows(folder: Path) -> list[str]:
    return sorted((folder / "results.jsonl").read_text(encoding="utf-8").splitlines())


def test_shards_of_a_sweep_come_together_byte_for_byte(placed: tuple[Path, Path], tmp_path: Path) -> None:
    asked = ("sweep", *placed, "--tokens-per-gpu", "64,128,256", "--workers", 1, "-q", "-o")
    assert run(*asked, tmp_path / "whole").returncode == 0
    for part in (1, 2):
        done = run(*asked, tmp_path / "parts", "--executor", f"shard:{part}/2")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert not (tmp_path / "parts" / "results.jsonl").exists()
    gathered = run(*asked, tmp_path / "parts")
    assert gathered.returncode == 0, gathered.stderr
    assert same_rows(tmp_path / "parts") == same_rows(tmp_path / "whole")
    other = run("sweep", *placed, "--tokens-per-gpu", "32", "-q", "-o", tmp_path / "parts")
    assert (other.returncode, "a part of another sweep" in other.stderr) == (1, True)
    alone = run("sweep", *placed, "--executor", "shard:1/2", "-q")
    assert (alone.returncode, "needs -o DIR" in alone.stderr) == (2, True)


def test_a_sweep_that_was_killed_goes_on_from_the_points_that_were_done(
    placed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("sweep", *placed, "--tokens-per-gpu", "64,128,256,512", "--workers", 1, "-q", "-o")
    assert run(*asked, tmp_path / "whole").returncode == 0
    simulated: list[float] = []

    def dies(plans: Any, points: Any, *others: Any) -> Iterator[tuple[int, Any]]:
        for index, row in run_points(plans, points, *others):
            if len(simulated) == 2:
                raise AssertionError("killed")
            simulated.append(points[index].workload.tokens_per_gpu)
            yield index, row

    monkeypatch.setattr(sweep_points, "run_points", dies)
    out = tmp_path / "out"
    first = run(*asked, out)
    assert (first.returncode, "killed" in first.stderr) == (70, True), first.stderr
    done = out / "points-done.jsonl"
    assert [path.name for path in out.iterdir()] == [done.name]
    done.write_text(done.read_text()[:-5])  # killed while it wrote

    def counts(plans: Any, points: Any, *others: Any) -> Iterator[tuple[int, Any]]:
        simulated.extend(point.workload.tokens_per_gpu for point in points)
        yield from run_points(plans, points, *others)

    monkeypatch.setattr(sweep_points, "run_points", counts)
    again = run(*asked, out)
    assert again.returncode == 0, again.stderr
    assert simulated == [64, 128, 128, 256, 512]
    assert same_rows(out) == same_rows(tmp_path / "whole")
    assert not done.exists()
    done.write_text("no JSON")  # of whatever else: it is not ours, and is replaced
    assert run(*asked, out).returncode == 0
    assert same_rows(out) == same_rows(tmp_path / "whole")


def test_shards_of_a_comparison_come_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run_here(cell: Cell, *_: Any) -> dict[str, Any]:
        ran.append(cell.solver)
        return cell.head() | {"status": "infeasible", "reason": None, "seconds": None}

    monkeypatch.setattr(cells, "_run_cell", run_here)
    matrix = build_matrix([TINY], ["greedy", "contiguous", "eplb"], [0, 1], Settings())
    parts = tmp_path / "parts"
    for part in (1, 2, 3):
        folder = compare_all(matrix, parts, executor=f"shard:{part}/3")
        assert folder.file.name == f"results-{part}-of-3.jsonl"
    assert sorted(ran) == sorted(["greedy", "contiguous", "eplb"] * 2)
    with (parts / "results-2-of-3.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"kind":"run","k')  # a run that was killed while it wrote
    compare_all(matrix, parts)
    assert len(ran) == 6  # nothing is run twice
    compare_all(matrix, tmp_path / "whole")
    assert same_rows(parts) == same_rows(tmp_path / "whole")


@pytest.mark.slow  # a run is two processes, each with all imports
def test_runs_of_a_comparison_go_to_an_executor(tmp_path: Path) -> None:
    matrix = build_matrix([TINY], ["greedy"], [0], Settings())
    folder = compare_all(matrix, tmp_path, executor="processes:1")
    ((row,),) = [[row for row in folder.rows if row["kind"] == "run"]]
    assert (row["solver"], row["status"]) == ("greedy", "ok")


def test_layers_go_to_an_executor_and_shards_are_refused() -> None:
    instance = load_instance(TINY)
    here = solve(instance, limits=Limits(work=0.2, bounds=False))
    there = solve(instance, limits=Limits(work=0.2, bounds=False, executor="processes:1"))
    assert there.placement.gpu == here.placement.gpu
    refused = run("solve", TINY, "--executor", "shard:1/2", "-q", "--no-dag")
    assert (refused.returncode, "layers of one placement are not rows apart" in refused.stderr) == (2, True)
    unknown = run("solve", TINY, "--executor", "slurm:2", "-q")
    assert (unknown.returncode, "there is no executor 'slurm'" in unknown.stderr) == (2, True)
