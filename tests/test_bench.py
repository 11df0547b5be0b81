"""The benchmark: from events to figures, from rows to the page, and runs that fail."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from moe_placer.errors import UsageError
from moe_placer.experiments.bench import (
    Event,
    Job,
    Report,
    build_page,
    figures,
    fitted_exponent,
    measure,
    primal_integral,
)
from moe_placer.experiments.bench.report import read_report

REPO = Path(__file__).parent.parent
TINY = REPO / "instances" / "tiny.yaml"
COMMAND = [sys.executable, "-c", "from moe_placer.cli import main; main()"]

# Two layers; the second is placed late, and proved by the solver's word alone.
EVENTS: list[Event] = [
    (1.0, 0, 120.0, 0.0, 0.0),
    (2.0, 1, 300.0, 0.0, 0.0),
    (3.0, 0, 100.5, 100.0, 100.0),
    (4.0, 1, 300.0, 200.0, 200.0),
    (5.0, 1, 201.0, 200.0, 200.0),
    (6.0, 0, 100.05, 100.0, 100.05),
    (6.0, 1, 200.1, 200.0, 200.0),
    (8.0, 1, 200.1, 200.0, 200.1),
]


def test_when_a_run_reached_what() -> None:
    found = figures(EVENTS, layers=2, bound=300.0, until=10.0)
    assert found["first_s"] == 2.0
    assert found["bounded_s"] == 4.0
    assert (found["bounded_layers"], found["seconds_per_bounded_layer"]) == (2, 1.0)
    assert found["within_1_percent_s"] == 5.0
    assert found["within_0_1_percent_s"] == 6.0
    assert found["proved_s"] == 8.0


def test_what_is_never_reached_has_no_time() -> None:
    found = figures(EVENTS[:4], layers=2, bound=300.0, until=10.0)
    assert found["bounded_s"] == 4.0
    assert found["within_1_percent_s"] is found["within_0_1_percent_s"] is found["proved_s"] is None
    nothing = figures(EVENTS[:1], layers=2, bound=300.0, until=10.0)
    assert nothing.pop("primal_integral") == 10.0
    assert nothing.pop("bounded_layers") == 0
    assert set(nothing.values()) == {None}


def test_nothing_to_carry_is_optimal_at_once() -> None:
    found = figures([(0.5, 0, 0.0, 0.0, 0.0)], layers=1, bound=0.0, until=10.0)
    assert found["first_s"] == found["bounded_s"] == found["proved_s"] == 0.5
    assert found["primal_integral"] == 0.5


@pytest.mark.parametrize(
    ("sums", "expected"),
    [
        ([], 10.0),  # never a placement: gap 1 throughout
        ([(4.0, 100.0)], 4.0),  # optimal at once: only the wait counts
        ([(2.0, 200.0)], 2.0 + 8 * 0.5),
        ([(2.0, 200.0), (6.0, 125.0)], 2.0 + 4 * 0.5 + 4 * 0.2),
        ([(2.0, 200.0), (12.0, 100.0)], 2.0 + 8 * 0.5),  # too late to count
    ],
)
def test_primal_integral_by_hand(sums: list[tuple[float, float]], expected: float) -> None:
    assert primal_integral(sums, bound=100.0, until=10.0) == pytest.approx(expected)


def test_the_primal_integral_of_events_sums_the_layers() -> None:
    # Complete from 2 s on, with sums of z of 420, 400.5, 400.5, 301.5 and 300.15 against 300.
    gaps = [(1, 120 / 420), (1, 100.5 / 400.5), (1, 100.5 / 400.5), (1, 1.5 / 301.5), (4, 0.15 / 300.15)]
    expected = 2.0 + sum(seconds * gap for seconds, gap in gaps)
    assert figures(EVENTS, 2, 300.0, 10.0)["primal_integral"] == pytest.approx(expected)


def test_a_power_law_is_fitted_exactly() -> None:
    sizes = [10.0, 100.0, 400.0]
    assert fitted_exponent(sizes, [3 * size**1.3 for size in sizes]) == pytest.approx(1.3)
    assert fitted_exponent([10.0, 10.0, 100.0], [1.0, 1.0, 2.0]) is None


def job(**changes: Any) -> Job:
    return Job(
        **{"instance": str(TINY), "name": "tiny", "traces": (), "solver": "greedy", "time_limit_s": 10.0, **changes}
    )


def test_a_run_is_measured() -> None:
    row = measure(job())
    assert row["failed"] is None
    assert row["verified"]
    assert row["bound"] <= row["z"]
    assert 0 < row["first_s"] <= row["better_s"] <= row["total_s"]
    assert row["largest_process_bytes"] > 10e6
    assert [event[1] for event in row["events"][:2]] == [0, 1]
    assert {"instance_sha256", "traffic_sha256", "proofs"} <= row.keys()
    assert str(REPO) not in json.dumps(row)


def test_a_solver_that_improves_on_the_heuristics_has_a_placement_from_the_start() -> None:
    row = measure(job(solver="auto"))
    start = [event for event in row["events"] if event[0] == row["first_s"]]
    assert [event[1] for event in start] == [0, 1]
    assert sum(event[2] for event in start) <= min(row["baselines"].values()) * (1 + 1e-9)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("child", "says"),
    [
        (python("import os; os.kill(os.getpid(), 9)"), "killed by SIGKILL"),
        (python("import time; time.sleep(60)"), "ended after 1 s without an answer"),
        (python("raise SystemExit('no way: /somewhere/private/file.npz')"), "exit code 1: no way: file.npz"),
    ],
)
def test_a_run_that_fails_says_so(child: list[str], says: str) -> None:
    row = measure(job(), child, patience_s=1.0)
    assert row["failed"] == says
    assert row["solver"] == "greedy"


def bench(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_failed_run_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    # A trace instance without its traces cannot run; the one after it can.
    traces = REPO / "instances" / "dsv2-lite-128.yaml"
    best = tmp_path / "best.yaml"
    done = bench(traces, TINY, "--solver", "greedy", "-o", tmp_path / "report", "--update-best-known", best)
    assert done.returncode == 0, done.stderr
    environment, rows = read_report(tmp_path / "report")
    assert [row["instance"] for row in rows] == ["dsv2-lite-128", "tiny"]
    assert "traffic.files" in rows[0]["failed"]
    assert rows[1]["failed"] is None
    page = (tmp_path / "report" / "README.md").read_text()
    assert page == build_page(rows, environment)
    assert rows[0]["failed"] in page
    assert best.read_text().count("instance: ") == 1
    assert str(REPO) not in page + (tmp_path / "report" / "rows.jsonl").read_text()


def test_all_runs_failing_is_exit_code_4(tmp_path: Path) -> None:
    done = bench(REPO / "instances" / "dsv2-lite-128.yaml", "--solver", "greedy", "-o", tmp_path)
    assert done.returncode == 4


@pytest.mark.parametrize("wrong", [["--solver", "nope"], ["--time-limit", "-1"], ["--repeat", "0"], []])
def test_what_makes_no_sense_is_refused_before_any_run(tmp_path: Path, wrong: list[str]) -> None:
    done = bench(*([TINY, *wrong] if wrong else []), "-o", tmp_path / "report")
    assert done.returncode == 2
    assert not (tmp_path / "report").exists()


def test_a_stopped_benchmark_leaves_no_run_behind(tmp_path: Path) -> None:
    command = [*COMMAND, "bench", str(REPO / "instances" / "h100-128.yaml"), "--solver", "auto", "-o", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.parent.exists():
        process.kill()
        pytest.skip("the system does not list child processes")
    while not children.read_text():
        time.sleep(0.05)
    child = int(children.read_text().split()[0])
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_folder_of_another_machine_or_commit_is_not_continued(tmp_path: Path) -> None:
    here = {"date": "2026-11-24", "commit": "a", "cpu": "x", "cores": 2, "memory_gb": 1.0, "system": "s", "python": "3"}
    here["versions"] = {}
    row = job().settings() | {"failed": "killed by SIGKILL"}
    Report(tmp_path, here).add(row)
    again = Report(tmp_path, here | {"date": "2026-11-25"})
    again.add(row)
    assert len(again.rows) == 2
    assert again.environment["date"] == "2026-11-24"
    with pytest.raises(UsageError, match="another machine"):
        Report(tmp_path, here | {"commit": "b"})


@pytest.mark.parametrize("folder", sorted((REPO / "reports").glob("*-bench")), ids=lambda folder: folder.name)
def test_a_committed_page_is_what_its_rows_give(folder: Path) -> None:
    environment, rows = read_report(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == build_page(rows, environment)
    assert not any(math.isnan(row["total_s"]) for row in rows if not row["failed"])
