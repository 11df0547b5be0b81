"""Reports from rows: the same bytes every time, harmless text, and clear words on damaged rows."""

from __future__ import annotations

import copy
import json
import re
import resource
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from builders import tiny_instance
from click.testing import CliRunner
from report_rows import EVIL, Rows, draw_here, failed_row, luminance, write_folder

from moe_placer.cli import main
from moe_placer.cli.commands import cli
from moe_placer.errors import DefectError, InputError, UsageError
from moe_placer.experiments.report import report_files, write_report
from moe_placer.experiments.report.chart_data import (
    _labels,
    cells,
    fabric,
    gpu_table,
    held_out,
    hues,
    link_table,
    profiles,
    steps,
    times,
)
from moe_placer.experiments.report.charts import COLOURS, GREY
from moe_placer.experiments.report.fabric_positions import label_spots, place_vertices
from moe_placer.experiments.report.html_page import to_page
from moe_placer.experiments.report.link_figures import carried, per_token
from moe_placer.experiments.report.markdown import plain
from moe_placer.experiments.report.report_files import draw_report
from moe_placer.experiments.report.rows import Comparison, read_comparison
from moe_placer.experiments.report.sentences import summary
from moe_placer.experiments.report.standings import profile, standings
from moe_placer.experiments.report.view import context


def changed(rows: Rows, place: int, **changes: Any) -> Rows:
    again: Rows = copy.deepcopy(rows)
    again[place].update(changes)
    return again


def test_the_command_writes_the_same_bytes_from_the_same_rows_and_names_them(
    made: Path, rows: Rows, tmp_path: Path
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = CliRunner().invoke(cli, ["report", str(write_folder(tmp_path, rows))])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10  # of one core, however busy
    assert said.exit_code == 0
    assert said.output.splitlines()[0] == str(tmp_path / "index.html")
    again = {path.name for path in tmp_path.iterdir()}
    assert again == {path.name for path in made.iterdir()}
    assert again >= {"index.html", "README.md", "links.svg", "gpus.svg", "fabric.svg", "time.svg"}
    for name in again:
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes(), name
        assert (tmp_path / name).stat().st_size < 6_000_000


@pytest.mark.parametrize("name", ["links", "gpus", "fabric"])
def test_colours_that_are_amounts_start_from_nothing(made: Path, name: str) -> None:
    legends = re.findall(r'aria-label="(Gradient legend [^"]*)"', (made / f"{name}.svg").read_text())
    assert legends
    assert all("with values from 0 to" in legend for legend in legends)


def test_the_order_in_which_runs_ended_does_not_matter(made: Path, rows: Rows, tmp_path: Path) -> None:
    instances = [row for row in rows if row["kind"] == "instance"]
    runs = [row for row in rows if row["kind"] == "run"]
    write_folder(tmp_path, [*instances, *reversed(runs)])
    shutil.copy(made / "config.json", tmp_path)  # it names the solvers in the order that was asked for
    draw_here(tmp_path)
    assert (tmp_path / "index.html").read_bytes() == (made / "index.html").read_bytes()


def test_pictures_are_whole_and_linked(made: Path) -> None:
    text = (made / "README.md").read_text()
    pictures = sorted(path.name for path in made.glob("*.svg"))
    assert len(pictures) == 7
    for name in pictures:
        assert f"]({name})" in text
        assert ElementTree.parse(made / name).getroot().tag.endswith("svg")


def test_markdown_has_every_solver_and_what_failed(made: Path, rows: Rows) -> None:
    text = (made / "README.md").read_text()
    for row in rows:
        if row["kind"] == "run" and row["status"] == "ok":
            assert f"| {row['solver']} | {row['traffic']['solved_for']['z_total']:,.0f} |" in text
    assert "| tiny | flow | 0 | hung | did not end within 15 s |" in text
    assert all(line.count("|") > 1 for line in text.splitlines() if line.startswith("|"))


def test_text_of_rows_does_no_harm(rows: Rows, tmp_path: Path) -> None:
    evil = json.loads(json.dumps(rows).replace('"tiny"', json.dumps(EVIL)).replace('"eplb"', json.dumps(EVIL)))
    evil[-1]["reason"] = EVIL
    draw_here(write_folder(tmp_path, evil, question=EVIL))
    assert "<script>alert" not in (tmp_path / "index.html").read_text()
    markdown = (tmp_path / "README.md").read_text()
    assert "<script" not in markdown
    assert "[x](" not in markdown
    for picture in tmp_path.glob("*.svg"):
        assert b"<script" not in picture.read_bytes()


def test_plain_text_stays_plain() -> None:
    assert plain("a|b *c* `d` <e>\n# f_g") == r"a\|b \*c\* \`d\` &lt;e&gt; \# f\_g"


@pytest.mark.parametrize(
    ("damage", "line", "said"),
    [
        (lambda lines: [*lines[:-1], lines[-1][:50]], 8, "cut off"),
        (lambda lines: [lines[0], "[1]", *lines[1:]], 2, "a list"),
        (lambda lines: [lines[0], '{"z": NaN}'], 2, "the number NaN"),
        (lambda lines: [lines[0], '{"schema": "other/1"}'], 2, "schema 'other/1'"),
        (lambda lines: [lines[4], *lines[1:4]], 2, "an instance that has a row"),
        (lambda lines: [], None, "no instance"),
        (lambda lines: [lines[0], lines[1].replace('"z_total"', '"other"')], 2, "z_total"),
        (lambda lines: [lines[0], "[" * 100_000], 2, "nested too deeply"),
    ],
    ids=["truncated", "list", "nan", "schema", "no instance row", "empty", "field", "deep"],
)
def test_damaged_rows_are_named_by_line(damage: Any, line: int | None, said: str, rows: Rows, tmp_path: Path) -> None:
    file = write_folder(tmp_path, rows) / "results.jsonl"
    file.write_text("\n".join(damage(file.read_text().splitlines())))
    with pytest.raises(InputError) as caught:
        draw_report(tmp_path)
    assert said in str(caught.value)
    assert line is None or f"results.jsonl:{line}: " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_command_tells_damage_in_one_line(rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_folder(tmp_path, rows) / "results.jsonl"
    file.write_text(file.read_text()[:-50])
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    error = capsys.readouterr().err
    assert ended.value.code == 1
    assert "cut off" in error
    assert f"results.jsonl:{len(rows)}: " in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"z": [1.0]}, "z: found 1 entries, expected 2"),
        ({"gpu": [[[99]] * 4] * 2}, "GPU 99"),
        ({"traffic": None}, "figures"),
        ({"instance_sha256": "0"}, "an instance that has a row"),
        ({"status": 3}, "status"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], said: str, rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        draw_report(write_folder(tmp_path, changed(rows, 1, **changes)))


def test_links_that_make_no_sense_are_refused(rows: Rows, tmp_path: Path) -> None:
    still = copy.deepcopy(rows[1])
    still["traffic"]["solved_for"]["worst_link"][0] = "nowhere->node0"
    cases: list[tuple[Rows, str]] = [
        ([rows[0], still], "worst_link: found the link 'nowhere->node0'"),
        ([{**rows[0], "fabric": {"kind": "full-mesh", "link_utilization": 0}}], "link_utilization: found 0, expected"),
        ([{**rows[0], "node_bandwidth": 0.0}], "node_bandwidth"),
        ([{**rows[0], "links": [{**rows[0]["links"][0], "bandwidth": -1.0}]}], "bandwidth"),
    ]
    for number, (given, said) in enumerate(cases):
        with pytest.raises(InputError, match=said):
            read_comparison(write_folder(tmp_path / str(number), given))


@pytest.mark.parametrize("name", ["config.json", "environment.json", "results.jsonl"])
def test_a_missing_file_is_named(name: str, rows: Rows, tmp_path: Path) -> None:
    (write_folder(tmp_path, rows) / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: found no such file"):
        draw_report(tmp_path)


def test_a_control_character_in_a_name_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    """The drawing library ended the process with exit code 134 and a native backtrace."""
    folder = tmp_path / "rows"
    shutil.copytree(Path(__file__).parents[1] / "cases" / "report-panic", folder)
    with pytest.raises(InputError) as caught:
        write_report(folder)
    assert str(caught.value) == (
        f"{folder}/results.jsonl:1: found control or direction characters in '\\x1b[31m', "
        "expected names, with characters that can be read"
    )
    assert not (folder / "index.html").exists()


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("os.abort()", "killed by SIGABRT"),
        ("sys.exit('not\\ndrawn')", "exit code 1: drawn"),
        ("time.sleep(600)", "ended after 1 s without an answer"),
    ],
)
def test_where_drawing_crashes_one_line_says_so(
    does: str, said: str, rows: Rows, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_files, "CHILD", (sys.executable, "-c", f"import os, sys, time; {does}"))
    monkeypatch.setattr(report_files, "_PATIENCE_S", 1.0 if "sleep" in does else 240.0)
    folder = write_folder(tmp_path, rows)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(folder)])
    assert ended.value.code == DefectError.exit_code
    error = capfd.readouterr().err
    assert error == f"moe-placer: {folder}: no page was made, since drawing it failed: {said}\n"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "environment.json", "results.jsonl"]


def test_without_the_extra_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, made: Path) -> None:
    monkeypatch.setattr("moe_placer.experiments.report.report_files.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'moe-placer\[report\]'"):
        write_report(made)


def test_nothing_placed_is_a_report_too(rows: Rows, tmp_path: Path) -> None:
    draw_here(write_folder(tmp_path, [rows[0], rows[-1]]))
    assert "No run gave a placement" in (tmp_path / "README.md").read_text()
    assert not list(tmp_path.glob("*.svg"))


def test_ratios_are_to_contiguous_and_to_the_best(made: Path, rows: Rows) -> None:
    comparison = read_comparison(made)
    table = standings(comparison, comparison.instances[0])
    totals = {row["solver"]: row["traffic"]["solved_for"]["z_total"] for row in rows[1:4]}
    assert [s.run.solver for s in table] == sorted(totals, key=lambda solver: totals[solver])
    for standing in table:
        total = totals[standing.run.solver]
        assert standing.to_base == pytest.approx(total / totals["contiguous"])
        assert standing.to_best == pytest.approx(total / min(totals.values()))


def test_the_median_of_the_seeds_is_shown(rows: Rows, tmp_path: Path) -> None:
    runs = []
    for seed, factor in enumerate((3.0, 1.0, 2.0)):
        (run,) = changed([rows[1]], 0, seed=seed, key=f"seed{seed}")
        run["traffic"]["solved_for"]["z_total"] *= factor
        runs.append(run)
    comparison = read_comparison(write_folder(tmp_path, [rows[0], *runs]))
    (standing,) = standings(comparison, comparison.instances[0])
    assert (standing.run.seed, standing.seeds) == (2, 3)
    assert standing.highest == pytest.approx(3 * standing.lowest)


def test_of_one_key_the_last_row_counts(rows: Rows, tmp_path: Path) -> None:
    again = failed_row(tiny_instance(), "eplb", "crashed", "exit code 1")
    again.update(key=rows[2]["key"], instance_sha256=rows[0]["sha256"])
    comparison = read_comparison(write_folder(tmp_path, [*rows[:4], again]))
    assert [(run.solver, run.status) for run in comparison.failed] == [("eplb", "crashed")]


def test_a_profile_by_hand(rows: Rows, tmp_path: Path) -> None:
    first, second = changed(rows[1:3], 0)
    first["traffic"]["solved_for"]["z"], second["traffic"]["solved_for"]["z"] = [10.0, 30.0], [20.0, 15.0]
    comparison = read_comparison(write_folder(tmp_path, [rows[0], first, second]))
    assert profile(comparison) == {"contiguous": [1.0, 2.0], "eplb": [1.0, 2.0]}


def set_metrics(run: dict[str, Any], traffic: str = "solved_for", **values: Any) -> None:
    run["traffic"][traffic].update(values)


def test_the_summary_by_hand(rows: Rows, tmp_path: Path) -> None:
    first, second = changed(rows[1:3], 0)
    second["traffic"] = copy.deepcopy(first["traffic"])
    for run, total in ((first, 100.0), (second, 80.0)):
        set_metrics(run, z_total=total, z=[total / 4, total * 3 / 4], token_hops=7.0, pair_total=total / 2)
        run["traffic"]["held_out"] = None
    second["seconds"]["total"] = 10.0
    text = summary(read_comparison(write_folder(tmp_path, [rows[0], first, second])))
    assert text == (
        "eplb has the least sum of busiest links on tiny, 20.0% below the next best, contiguous. "
        "When not: contiguous ends in less than half its 10.0 s, 25.0% above it."
    )


def test_the_summary_says_where_others_are_better(rows: Rows, tmp_path: Path) -> None:
    first, second = changed(rows[1:3], 0)
    second["traffic"] = copy.deepcopy(first["traffic"])
    set_metrics(first, z_total=100.0, z=[60.0, 40.0], token_hops=90.0, busiest_node_tokens=50.0)
    set_metrics(second, z_total=80.0, z=[30.0, 50.0], token_hops=100.0, busiest_node_tokens=50.4)
    set_metrics(first, "held_out", z_total=100.0)
    set_metrics(second, "held_out", z_total=110.0)
    text = summary(read_comparison(write_folder(tmp_path, [rows[0], first, second])))
    assert text == (
        "eplb has the least sum of busiest links on tiny, 20.0% below the next best, contiguous "
        "(10.0% above contiguous on held-out traffic). "
        "When not: on held-out traffic of tiny contiguous is better (it is 10.0% above); "
        "in 1 of 2 layers another's busiest link is cooler; "
        "others are better at token-hops (contiguous, 10.0% less)."
    )


def test_a_sum_that_is_not_0_is_not_level_with_0(rows: Rows, tmp_path: Path) -> None:
    first, second = changed(rows[1:3], 0)
    second["traffic"] = copy.deepcopy(first["traffic"])
    for run in (first, second):
        run["traffic"]["held_out"] = None
    set_metrics(first, z_total=0.0, z=[0.0, 0.0])
    text = summary(read_comparison(write_folder(tmp_path, [rows[0], first, second])))
    assert text == (
        "contiguous has the least sum of busiest links on tiny, 100.0% below the next best, eplb. "
        "No other solver of this comparison does as well at anything that is measured here, or is faster."
    )


def test_equal_results_are_called_level(rows: Rows, tmp_path: Path) -> None:
    first, second = changed(rows[1:3], 0)
    second["traffic"] = first["traffic"]
    text = summary(read_comparison(write_folder(tmp_path, [rows[0], first, second])))
    assert text == (
        "contiguous has the least sum of busiest links on tiny, level with eplb. "
        "When not: on tiny eplb does as well, within 0.1%; on held-out traffic of tiny eplb does as well, within 0.1%."
    )


def test_two_instances_have_their_sums_in_the_summary(rows: Rows, tmp_path: Path) -> None:
    comparison = read_comparison(write_folder(tmp_path, [*rows[:2], rows[4], rows[5]]))
    text = summary(comparison)
    for row in comparison.instances:
        assert f" on {row.name}" in text


def test_columns_without_any_entry_are_left_out(made: Path, rows: Rows) -> None:
    tree, dragonfly = context(read_comparison(made))["instances"]
    titles = {table["title"]: [column.title for column in table["columns"]] for table in tree["tables"]}
    assert "On held-out traffic" in titles
    assert "On held-out traffic" not in {table["title"] for table in dragonfly["tables"]}
    shown = [title for columns in titles.values() for title in columns]
    assert "step, ms" not in shown
    assert "seeds" not in shown
    (proofs,) = {
        row[1][titles["Busiest links and bounds"].index("proof, layers")].text for row in tree["tables"][0]["rows"]
    }
    assert proofs == f"dual {len(rows[1]['proof'])}"


def test_held_out_ratios_are_to_contiguous_and_to_the_best(made: Path, rows: Rows) -> None:
    comparison = read_comparison(made)
    totals = {row["solver"]: row["traffic"]["held_out"]["z_total"] for row in rows[1:4]}
    for standing in standings(comparison, comparison.instances[0]):
        total = totals[standing.run.solver]
        assert standing.held_out_to_base == pytest.approx(total / totals["contiguous"])
        assert standing.held_out_to_best == pytest.approx(total / min(totals.values()))
    for standing in standings(comparison, comparison.instances[1]):
        assert (standing.held_out_to_base, standing.held_out_to_best) == (None, None)


def test_where_nothing_flows_no_link_is_drawn(rows: Rows, tmp_path: Path) -> None:
    (still,) = changed([rows[1]], 0)
    layers, links = len(still["z"]), len(rows[0]["links"])
    still.update(z=[0.0] * layers, bound=[0.0] * layers)
    set_metrics(still, z_total=0.0, z=[0.0] * layers, link_cost=[[0.0] * links] * layers, worst_link=[""] * layers)
    made = draw_here(write_folder(tmp_path, [rows[0], still]))
    assert made & {"links.svg", "fabric.svg", "layers.svg", "time.svg"} == set()
    assert "gpus.svg" in made


def test_what_is_far_above_the_best_is_left_out_of_the_curves(rows: Rows, tmp_path: Path) -> None:
    first, second = changed(rows[1:3], 0)
    best = first["traffic"]["solved_for"]["z_total"]
    first["trajectory"], second["trajectory"] = [[0.1, 2 * best, 1.0], [0.2, best, 1.0]], [[0.1, 3 * best, 1.0]]
    set_metrics(second, z_total=3 * best)
    comparison = read_comparison(write_folder(tmp_path, [rows[0], first, second]))
    shown = times(comparison, comparison.instances[0])
    assert {record["solver"] for record in shown} == {first["solver"]}
    assert max(record["cost"] for record in shown) == best


def test_a_solver_has_one_colour_in_all_pictures_or_is_grey(made: Path) -> None:
    comparison = read_comparison(made)
    colours = hues(comparison)
    assert set(colours.values()) == set(COLOURS[: len(colours)])
    assert {"contiguous", "eplb"} < set(colours)
    monochrome = Comparison(comparison.config, {}, comparison.instances, comparison.runs[:3])
    for records in (profiles(comparison), held_out(comparison), steps(comparison), profiles(monochrome)):
        for record in records:
            if "colour" in record:
                assert record["colour"] == colours.get(record["solver"], GREY)
    shown = [record["colour"] for record in profiles(comparison) if "colour" in record]
    assert shown == sorted(shown, key=lambda colour: colour != GREY)  # what is grey lies below


def test_bars_of_steps_say_how_far_they_are_from_contiguous(rows: Rows, tmp_path: Path) -> None:
    given = copy.deepcopy(rows)
    for row, step in zip(given[1:4], (20_000.0, 30_000.0, 19_000.0), strict=True):
        set_metrics(row, step_us=step)
    shown = steps(read_comparison(write_folder(tmp_path, given[:4])))
    assert [(bar["row"], bar["ms"], bar["label"]) for bar in shown] == [
        ("greedy", 19.0, "19.0 ms, -5.0%"),
        ("contiguous", 20.0, "20.0 ms"),
        ("eplb", 30.0, "30.0 ms, +50.0%"),
    ]
    assert "step.svg" in draw_here(tmp_path)
    assert steps(read_comparison(write_folder(tmp_path / "without", rows))) == []  # rows of older versions


def test_names_stand_on_their_lines_and_apart() -> None:
    lines = {"low": [(0.0, 0.0), (10.0, 1.0)], "high": [(0.0, 9.0), (6.0, 10.0)], "other": [(0.0, 8.9), (10.0, 8.9)]}
    spots = label_spots(lines, ["low", "high"])
    assert set(spots) == {"low", "high"}
    assert spots["low"][1] in {0.0, 1.0}
    assert spots["high"][1] in {9.0, 10.0}
    assert spots["high"][0] <= 6.0
    assert label_spots({}, []) == {}
    assert label_spots({"one": [(2.0, 3.0)]}, ["one"]) == {"one": (2.0, 3.0)}


def test_vertices_are_named_where_there_is_room() -> None:
    names = ["node0", "node1", "leaf0", "leaf1", "7"]
    assert _labels(names) == {"node0": "node0", "node1": "1", "leaf0": "leaf0", "leaf1": "leaf1", "7": "7"}
    crowded = _labels([*(f"node{node}" for node in range(41)), "leaf0", "leaf1"])
    shown = [crowded[name] for name in ("node0", "node40", "leaf0", "leaf1")]
    assert shown == ["0", "40", "leaf0", "1"]


def test_cells_mark_the_worst_of_each_layer() -> None:
    shown = cells({"rows": ["a", "b"], "of": 2, "layers": [3, 4], "values": [[1, 2], [5, 5]]})
    assert [(cell["layer"], cell["row"]) for cell in shown if cell["worst"]] == [(3, "b"), (4, "a")]


def test_every_vertex_has_a_place_of_its_own(made: Path) -> None:
    for row in read_comparison(made).instances:
        places = place_vertices(row)
        assert places.keys() == {name for link in row.links for name in (link.source, link.target)}
        assert len({(round(x, 3), round(y, 3)) for x, y in places.values()}) == len(places)
        assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y in places.values())


def test_details_that_find_no_room_are_left_out(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_placer.experiments.report.html_page._ROOM", 0)
    assert '"details":null' in to_page(read_comparison(made))


@pytest.mark.parametrize("paper", ["#ffffff", "#121212"])
@pytest.mark.parametrize("colour", [*COLOURS, GREY])
def test_colours_can_be_seen_on_light_and_dark(colour: str, paper: str) -> None:
    low, high = sorted((luminance(colour), luminance(paper)))
    assert (high + 0.05) / (low + 0.05) >= 3


def test_the_help_shows_the_example_on_a_line_of_its_own() -> None:
    lines = CliRunner().invoke(cli, ["report", "--help"]).output.splitlines()
    assert "    moe-placer report reports/2026-11-24-methods" in lines


# Comparisons, and ways to follow traffic; sweeps and cross-checks are made by others, and tested with these.
REPORTS = sorted(
    path.parent
    for path in (Path(__file__).parents[2] / "reports").glob("*/config.json")
    if json.loads(path.read_text()).get("schema") in {"moe-placer/comparison/1", "moe-placer/follow-config/1"}
)


@pytest.mark.slow
@pytest.mark.parametrize("folder", REPORTS, ids=lambda path: path.name)
def test_a_committed_report_is_what_its_rows_give(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    page, *committed = write_report(copy)
    assert page.name == "index.html"  # anybody can make it from the rows
    for path in committed:
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_plain_tokens_and_times_follow_from_costs_by_hand(rows: Rows, tmp_path: Path) -> None:
    reached = {**rows[0]["fabric"], "link_utilization": 0.8}
    for metric, leaf_cost in (("time", 2.0), ("tokens", 1.0)):
        given = changed(rows, 0, fabric=reached, metric=metric)
        row = read_comparison(write_folder(tmp_path / metric, given)).instances[0]
        # A token of 7,168 bytes on 400 GB/s of which 0.8 is reached: 22.4 ns; links between leaf and spine have half.
        figures = per_token(row)
        assert figures["node0->leaf0"] == pytest.approx((1.0, 0.0224))
        assert figures["leaf0->spine0"] == pytest.approx((leaf_cost, 0.0448))
        assert carried(figures, "leaf0->spine0", 1000.0) == pytest.approx((1000 / leaf_cost, 44.8 / leaf_cost))
    assert carried(figures, "", 0.0) == (0.0, 0.0)


def test_costs_of_links_stand_beside_their_tokens_and_times(rows: Rows, tmp_path: Path) -> None:
    comparison = read_comparison(write_folder(tmp_path, rows))
    row, run = comparison.instances[0], comparison.runs[0]
    figures = per_token(row)
    for record in [*cells(link_table(row, run)), *(one for one in fabric(row, run) if one["kind"] == "link")]:
        cost, us = figures[record["row"] if "row" in record else record["name"]]
        assert record["plain"] == pytest.approx(record["value"] / cost, rel=1e-3)
        assert record["us"] == pytest.approx(record["value"] / cost * us, rel=1e-3)
    assert "plain" not in cells(gpu_table(row, run))[0]
