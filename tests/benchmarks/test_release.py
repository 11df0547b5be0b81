"""Figures by release: rows from both commits, ratios over the newer one, runs kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import SEED_PLAN, TINY
from kept_rows import HEAD, cells

from benchmarks.checkouts import REPOSITORY, Checkout, earlier_checkout
from benchmarks.kept_runs import keep_rows
from benchmarks.release.release_page import build_page
from benchmarks.release.release_rows import engine_row, solved_rows


def row(by: str, commit: str, **figures: Any) -> dict[str, Any]:
    return {**HEAD, "instance": "i", "by": by, "commit": commit, **figures}


def figures(cpu: float, links: float) -> dict[str, float]:
    return {"cpu_s": cpu, "busiest_links": links, "bound": 100.0, "busiest_gpus": 50.0, "step_us": 2000.0}


def test_ratios_are_over_the_newer_commit_and_cpu_is_the_median() -> None:
    now = [row("auto", "new", **figures(cpu, 101.0)) for cpu in (2.0, 1.0, 9.0)]
    peer = row("EPLB", "", **{**figures(0.5, 151.5), "bound": 90.0})
    page = build_page([*now, row("auto", "old", **figures(4.0, 202.0)), peer])
    ours, old, theirs = map(cells, [line for line in page.splitlines() if line.startswith("| i |")])
    assert ours == ["i", "auto, new", "2.00", "1.000%", "101", "50", "2.00", *["1.000"] * 4]
    assert old == ["i", "auto, old", "4.00", "102.000%", "202", "50", "2.00", "2.000", "2.000", "1.000", "1.000"]
    assert theirs[3] == "51.500%"
    assert theirs[7:] == ["0.250", "1.500", "1.000", "1.000"]


def test_a_commit_that_cannot_read_an_instance_is_said_so_and_the_latest_run_is_first() -> None:
    later = {"run": "2026-12-01T10:00:00+00:00"}
    failed = row("auto", "old", cpu_s=0.1, error="no such field\nmore") | later
    page = build_page([row("auto", "new", **figures(1.0, 101.0)), failed])
    assert "| auto, old | no such field |" in page
    assert page.index("2026-12-01") < page.index("2026-11-28")


def test_eplb_is_asked_where_replicas_are_chosen_in_every_layer(tmp_path: Path) -> None:
    assert engine_row(SEED_PLAN, tmp_path, tmp_path) is None


@pytest.mark.slow
def test_commits_are_measured_by_their_own_code(tmp_path: Path) -> None:
    (now,) = solved_rows(Checkout("here", REPOSITORY), [TINY], 1, tmp_path)
    assert now["bound"] <= now["busiest_links"] == pytest.approx(400.0, rel=1e-3)
    assert now["cpu_s"] > 0
    with earlier_checkout("HEAD") as same:
        assert (same.folder / "moe_placer" / "solvers").exists()
    broken = Checkout("broken", tmp_path)
    (row,) = solved_rows(broken, [TINY], 1, tmp_path)
    assert "AssertionError" in row["error"]


def test_rows_are_kept_and_the_page_is_made_from_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.jsonl"
    for number in range(2):
        page = keep_rows(file, [{"run": str(number)}, {"run": str(number)}], lambda rows: f"{len(rows)} rows")
        assert page.read_text() == f"{2 * number + 2} rows"
    assert len(file.read_text().splitlines()) == 4
