"""The report on following traffic: rows of every way and window, and a page that is made of these alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from builders import tiny_instance, tiny_traffic
from command_line import run

from moe_placer.errors import InputError
from moe_placer.experiments.report.report_files import draw_report
from moe_placer.instance.writer import dump_instance
from moe_placer.limits import Limits
from moe_placer.replan.follow import WAYS, gain_kept, ways_for
from moe_placer.solve.solve import solve

PLACEMENT = {"slots_per_gpu": 2, "replica_routing": "even", "replicas": {"redundant_slots": 8}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of all ways on two windows of synthetic traffic."""
    made = tmp_path_factory.mktemp("follow")
    instance = tiny_instance(model={"experts": 8, "top_k": 2}, placement=PLACEMENT)
    plan = solve(instance, tiny_traffic(instance, 0), solver="greedy", limits=Limits(time_s=5.0)).placement
    file, current = made / "instance.yaml", made / "plan.json"
    file.write_text(dump_instance(instance).replace("kind: load", "kind: synthetic"))
    plan.write(current)
    done = run(
        "follow", file, current, "--windows", 3, "--work", 0.002, "--max-moves", 4, "--minimise", "gpus",
        "-o", made / "report",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return made / "report"


def test_the_page_says_what_the_rows_say(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [(row["way"], row["window"]) for row in rows] == [(way, window) for way in WAYS for window in (1, 2)]
    text = (folder / "README.md").read_text()
    for way in WAYS:
        own = [row for row in rows if row["way"] == way]
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{way}` |") and line.count("|") == 11]
        cells = [cell.strip() for cell in line.split("|")[2:]]
        assert cells[0] == f"{sum(row['moves'] for row in own):,}"
        assert cells[1] == f"{sum(row['slots'] for row in own):,}"
        assert cells[6] == f"{sum(row['busiest_gpu'] for row in own):,.0f}"
    assert "at most 4 moves a window" in text
    for picture in ("costs.svg", "moves.svg"):
        assert f"]({picture})" in text
        assert (folder / picture).read_text().startswith("<svg")
    page = (folder / "index.html").read_text()
    assert page.count("<figure>") == 2
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_same_rows_give_the_same_page_and_damaged_ones_none(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "environment.json", "results.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for name, content in draw_report(tmp_path).items():  # what `moe-placer report` writes, in a process of its own
        assert (folder / name).read_text() == content
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    for damaged, says in (
        ([*lines[:1], lines[1].replace('"moves":', '"moved":'), *lines[2:]], "results.jsonl:2: moves: found nothing"),
        (lines[:-1], "a row for every way and window"),
        ([lines[0].replace("follow-row/1", "follow-row/9"), *lines[1:]], "results.jsonl:1: "),
    ):
        (tmp_path / "results.jsonl").write_text("\n".join(damaged) + "\n")
        with pytest.raises(InputError, match=re.escape(says)):
            draw_report(tmp_path)
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "environment.json").write_text("{}")
    with pytest.raises(InputError, match="what is no environment"):
        draw_report(tmp_path)


def test_what_is_left_of_a_gain_is_known_by_hand() -> None:
    costs = {"never": [10.0, 10.0, 10.0], "once": [6.0, 8.0, 9.0], "replan": [6.0, 6.0, 10.0]}
    assert gain_kept(costs) == {1: 1.0, 2: 0.5}
    assert gain_kept({**costs, "replan": [10.0, 6.0, 6.0]}) == {1: None, 2: 0.5}
    assert gain_kept({"never": [1.0]}) == {}


def test_flashlb_is_offered_where_it_knows_the_instance() -> None:
    assert "flashlb" not in ways_for(tiny_instance())
    even = {"model": {"experts": 8, "top_k": 2}}
    assert ways_for(tiny_instance(**even, placement=PLACEMENT)) == list(WAYS)
    for rule in ({"survives": "gpu"}, {"replicas": {"redundant_slots": 3}}, {"replicas_apart": "node"}):
        assert "flashlb" not in ways_for(tiny_instance(**even, placement={**PLACEMENT, **rule}))
