"""What commands cost: rows from real runs, ratios over the newer commit, runs kept, failures told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kept_rows import HEAD, cells

from benchmarks.checkouts import REPOSITORY, this_checkout
from benchmarks.commands.command_page import build_page
from benchmarks.commands.command_rows import CASES, Case, command_rows


def row(commit: str, cpu: float, **more: Any) -> dict[str, Any]:
    found = {"instance": "i", "command": "solve", "commit": commit, "exit": 0, "cpu_s": cpu, "peak_bytes": 5e8}
    return {**HEAD, **found, "z": 100.0, "median_gap": 0.0005, "largest_gap": 0.001, **more}


def table(page: str) -> list[list[str]]:
    return [cells(line) for line in page.splitlines() if line.startswith("| i ")]


def test_ratios_are_over_the_newer_commit_and_what_failed_is_told() -> None:
    steps = [
        row("new", 2.0, command="schedule", step_us=2500.0),
        row("old", 9.0, command="schedule", exit=4, error="x"),
    ]
    (solved, step) = table(build_page([row("new", 2.0), row("old", 7.0), *steps]))
    gaps = "cost 100, gap 0.050% median, 0.100% largest"
    assert solved == ["i", "`solve`", "7.00", "2.00", "3.5", "500", gaps, gaps]
    assert step == ["i", "`schedule`", "9.00", "2.00", "-", "500", "exit 4", "step 2.50 ms"]


def test_an_earlier_run_stays_below_the_latest() -> None:
    page = build_page([row("new", 2.0), row("new", 1.0, run="2026-11-29T10:00:00+00:00", before=None)])
    assert page.index("2026-11-29") < page.index("2026-11-28")
    assert table(page)[0][2:5] == ["-", "1.00", "-"]


def test_commands_are_run_on_what_was_placed(tmp_path: Path) -> None:
    quick = Case("tiny", "solve", ("--quick",))
    cases = [quick, Case("tiny", "schedule", ("--replicas", "0"), quick.name), Case("tiny", "verify", (), quick.name)]
    now = this_checkout()
    rows = [*command_rows(now, None, cases, tmp_path)]
    assert [one["exit"] for one in rows] == [0, 0, 0], rows
    assert all(0.1 < one["cpu_s"] < 100 and 1e7 < one["peak_bytes"] < 1e9 for one in rows)
    assert rows[0]["z"] > 0
    assert rows[1]["step_us"] > 0
    assert rows[2]["ok"] is True


def test_every_case_has_its_instance_and_the_placement_that_it_takes() -> None:
    names = {(case.instance, case.name) for case in CASES if case.command == "solve"}
    for case in CASES:
        assert (REPOSITORY / "instances" / f"{case.instance}.yaml").is_file()
        assert case.command == "solve" or (case.instance, case.placed_by) in names
