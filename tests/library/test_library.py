"""The library: records that are wrong are found out, better placements are entered, worse ones are not."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jsonschema
import pytest
import yaml
from command_line import TINY, fails, run
from told import told

from moe_placer.cli.results import result_schema
from moe_placer.errors import InputError
from moe_placer.instance import load_instance
from moe_placer.library import Record, catalog, open_library, recheck_record, submit
from moe_placer.library.record import read_record, status_of, write_record
from moe_placer.limits import Limits
from moe_placer.placement import load_placement
from moe_placer.solve.solve import solve

REPO = Path(__file__).parents[2]
LIBRARY = open_library(REPO / "library")
SAMPLE = ("tiny", "tiny-mesh", "tiny-per-node", "tiny-redundant", "plan-4")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A library of three small instances, to change."""
    folder = tmp_path / "library"
    (folder / "records").mkdir(parents=True)
    (folder / "placements").mkdir()
    for name in ("tiny", "tiny-mesh", "dsv2-lite-128"):
        shutil.copy(LIBRARY.record_path(name), folder / "records")
        for file in (LIBRARY.folder / "placements").glob(f"{name}.*"):
            shutil.copy(file, folder / "placements")
    (tmp_path / "instances").symlink_to(REPO / "instances")
    return folder


def held(content: Any) -> Any:
    jsonschema.validate(content, result_schema("library"))
    return content


def test_records_name_instances_that_exist_and_are_theirs() -> None:
    assert 40 <= len(LIBRARY.records) <= 80
    seen: dict[str, str] = {}
    for name, record in LIBRARY.records.items():
        instance = LIBRARY.instance(record) if not record.recordings else None
        if instance is not None:
            assert instance.name == name
            key = f"{instance.sha256} {record.migration}"
            assert seen.setdefault(key, name) == name, "two records have the same instance"
            assert record.instance_sha256 in {None, instance.sha256}
        assert record.best is not None or record.status == "open"


def test_every_file_belongs_to_a_record() -> None:
    parts = [(name, part.placement) for name, one in LIBRARY.records.items() for part in (one.best, one.bound) if part]
    parts += [(name, one.migration.current) for name, one in LIBRARY.records.items() if one.migration]
    named = {LIBRARY.placement_path(sha256, name) for name, sha256 in parts}
    assert named == set((LIBRARY.folder / "placements").iterdir())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SAMPLE else pytest.mark.slow) for name in LIBRARY.records]
)
def test_everything_is_derived_anew(name: str) -> None:
    traces = REPO.parent / "shared" / "traces"
    found = recheck_record(LIBRARY, LIBRARY.records[name], traces)
    if found.verdict == "skipped":
        pytest.skip(found.problems[0])
    assert found.problems == ()


def changed(folder: Path, name: str, **changes: Any) -> tuple[str, ...]:
    """Change a record, and return what checking finds."""
    path = folder / "records" / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        section, _, field = key.partition("__")
        content[section] = {**content[section], field: value} if field else value
    path.write_text(yaml.safe_dump(content))
    library = open_library(folder)
    return recheck_record(library, library.record(name)).problems


def allow(folder: Path, name: str, moves: int) -> None:
    """Change how many moves a record allows."""
    path = folder / "records" / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    content["migration"]["max_moves"] = moves
    path.write_text(yaml.safe_dump(content))


def test_only_placements_within_the_moves_of_a_record_count(tmp_path: Path) -> None:
    folder, name = tmp_path / "library", "dsv3-64-50-moves"
    for part in ("records", "placements"):
        (folder / part).mkdir(parents=True)
        for file in (LIBRARY.folder / part).glob(f"{name}.*"):
            shutil.copy(file, folder / part)
    (tmp_path / "instances").symlink_to(REPO / "instances")

    def problems() -> tuple[str, ...]:
        library = open_library(folder)
        return recheck_record(library, library.record(name)).problems

    got = held(told("library", "get", name, "-o", tmp_path / "got", "--library", folder, "--json").json)
    assert got["entries"][0]["max_moves"] == 50
    assert got["entries"][0]["proof"] == "moves"
    assert Path(got["files"][-1]).name == f"{name}.current.json"
    allow(folder, name, 51)  # what was proved for 50 moves says nothing of 51
    assert any("the bound is" in problem for problem in problems())
    allow(folder, name, 49)
    assert problems() == ("[moves] 50 moves from the old plan, the record allows 49",)
    fails(5, "library", "submit", got["files"][1], "--library", folder, says="50 moves from the old plan")


def test_what_a_record_overstates_is_found(copied: Path) -> None:
    def one(**changes: Any) -> str:
        shutil.copy(LIBRARY.record_path("tiny"), copied / "records")
        (problem,) = changed(copied, "tiny", **changes)
        return problem

    assert "the value is 400.0" in one(best__value=399.0)
    assert "the bound is 392.5" in one(bound__value=393.0)
    assert "proofs are dual in 2 layers, the record says magic" in one(bound__proof="magic")
    assert "the status is open, the record says optimal" in one(status="optimal")
    assert "the placement is by auto 0.1.0, the record says mine 0.1.0" in one(best__solver="mine")
    assert "the placement is by auto 0.1.0, the record says auto 9" in one(bound__version="9")
    assert "the instance has SHA-256" in one(instance_sha256="0" * 64)
    assert "its traffic has SHA-256" in one(traffic_sha256="0" * 64)
    assert "the record says None" in one(traffic_sha256=None)


def test_an_instance_that_cannot_be_read_is_wrong_and_the_others_are_checked(copied: Path) -> None:
    assert any("no such file" in problem for problem in changed(copied, "tiny", instance="missing.yaml"))
    shutil.copy(LIBRARY.record_path("tiny"), copied / "records")
    assert any("model.experts" in problem for problem in changed(copied, "tiny", changes={"model": {"experts": -1}}))
    done = run("library", "check", "tiny", "tiny-mesh", "--library", copied)
    assert done.returncode == 5
    assert "1 good, 1 wrong, 0 skipped" in done.stdout


def test_a_placement_is_unpacked_no_further_than_a_file_may_be_long(copied: Path) -> None:
    path = next((copied / "placements").glob("tiny.*"))
    good = path.read_bytes()
    for raw, says in (
        (good + b"more", "a damaged file"),
        (good[:-9], "a damaged file"),
        (lzma.compress(b" " * 30_001), "more than 0.03 MB, unpacked"),
    ):
        path.write_bytes(raw)
        with patch.object(catalog, "MAX_BYTES", 30_000):
            assert any(says in problem for problem in changed(copied, "tiny")), says


def test_another_placement_than_the_one_named_is_found(copied: Path) -> None:
    record = LIBRARY.record("tiny-mesh")
    assert record.best is not None
    path = copied / "placements" / LIBRARY.placement_path(record.best.placement, "tiny-mesh").name
    whole = json.loads(lzma.decompress(path.read_bytes()))
    whole["gpu"][0][0], whole["gpu"][0][1] = whole["gpu"][0][1], whole["gpu"][0][0]
    path.write_bytes(lzma.compress(json.dumps(whole).encode()))
    assert any("another placement" in problem for problem in changed(copied, "tiny-mesh"))
    path.write_bytes(b"not xz")
    assert any("a damaged file" in problem for problem in changed(copied, "tiny-mesh"))
    path.unlink()
    assert any("no such file" in problem for problem in changed(copied, "tiny-mesh"))


def test_records_are_strict(copied: Path) -> None:
    path = copied / "records" / "tiny.yaml"
    good = path.read_text()
    for old, new, says in (
        ("family: small", "families: small", "families"),
        ("name: tiny", "name: other", "the file's own name"),
        ("status: open", "status: solved", "status"),
    ):
        path.write_text(good.replace(old, new))
        with pytest.raises(InputError, match=says):
            read_record(path)
    path.write_text(good)
    write_record(read_record(path), path)
    assert read_record(path) == LIBRARY.record("tiny")


@pytest.mark.parametrize(
    ("value", "bound", "status"),
    [
        *((0.0, 0.0, "optimal"), (1.0, 0.0, "open"), (1.0, 1.0, "optimal"), (100.00009, 100.0, "optimal")),
        *((100.0002, 100.0, "bounded"), (100.9, 100.0, "bounded"), (101.1, 100.0, "open")),
    ],
)
def test_the_status_follows_from_the_gap(value: float, bound: float, status: str) -> None:
    assert status_of(value, bound) == status


def without_results(folder: Path, name: str) -> None:
    record = read_record(folder / "records" / f"{name}.yaml")
    for part in filter(None, (record.best, record.bound)):
        open_library(folder).placement_path(part.placement, name).unlink(missing_ok=True)
    bare = record.model_dump(by_alias=True, exclude={"best", "bound", "status"})
    write_record(Record.model_validate(bare), folder / "records" / f"{name}.yaml")


def test_only_what_is_better_is_entered(copied: Path, tmp_path: Path) -> None:
    without_results(copied, "tiny")
    plans = {}
    for solver in ("contiguous", "auto"):
        plans[solver] = tmp_path / f"{solver}.json"
        solve(load_instance(TINY), solver=solver, limits=Limits(time_s=5, workers=1)).placement.write(plans[solver])

    def submitted(solver: str) -> Any:
        return held(told("library", "submit", plans[solver], "--library", copied, "--json").json)

    first = submitted("contiguous")
    assert first["entries"][0]["value"] == first["submitted"]["value"] > 400.1
    assert len(first["files"]) == 2
    better = submitted("auto")
    assert better["entries"][0]["value_by"] == "auto"
    assert better["submitted"]["value"] < first["submitted"]["value"]
    again = submitted("contiguous")
    assert again["files"] == []
    assert again["entries"] == better["entries"]
    told("library", "check", "tiny", "--library", copied)
    kept = {part["placement"] for part in yaml.safe_load((copied / "records" / "tiny.yaml").read_text()).values()
            if isinstance(part, dict) and "placement" in part}  # fmt: skip
    assert len(list((copied / "placements").glob("tiny.*"))) == len(kept)


def test_a_submission_that_fails_leaves_no_placement(copied: Path, tmp_path: Path) -> None:
    without_results(copied, "tiny")
    plan = tmp_path / "plan.json"
    instance = load_instance(TINY)
    solve(instance, solver="contiguous", limits=Limits(time_s=5, workers=1)).placement.write(plan)
    folder, record = copied / "placements", copied / "records" / "tiny.yaml"
    before, files = record.read_bytes(), set(folder.iterdir())
    library = open_library(copied)
    with patch.object(submit, "write_record", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        submit.submit_placement(library, library.record("tiny"), instance, load_placement(plan), "2026-11-27")
    assert (record.read_bytes(), set(folder.iterdir())) == (before, files)
    # What a killed process left is of this record alone, and goes with its next placement.
    for left in ("tiny.0123456789ab.json.xz", "tiny.x.0123456789ab.json.xz"):
        (folder / left).write_bytes(b"")
    told("library", "submit", plan, "--library", copied)
    assert {path.name for path in folder.glob("tiny.*")} == {
        library.placement_path(catalog.placement_sha256(load_placement(plan)), "tiny").name,
        "tiny.x.0123456789ab.json.xz",
    }


def test_a_placement_that_breaks_a_rule_changes_nothing(copied: Path, tmp_path: Path) -> None:
    record = LIBRARY.record("tiny")
    assert record.best is not None
    wrong = json.loads(LIBRARY.placement(record, record.best.placement).to_json())
    wrong["gpu"][0][0] = wrong["gpu"][0][1]
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    before = (copied / "records" / "tiny.yaml").read_bytes()
    fails(5, "library", "submit", tmp_path / "wrong.json", "--library", copied, says="breaks a rule")
    assert (copied / "records" / "tiny.yaml").read_bytes() == before


def test_an_engine_s_file_is_submitted_under_a_name(copied: Path, tmp_path: Path) -> None:
    without_results(copied, "tiny")
    plan = tmp_path / "plan.json"
    placement = tmp_path / "placement.json"
    solve(load_instance(TINY), solver="contiguous", limits=Limits(time_s=5, workers=1)).placement.write(placement)
    told("export", TINY, placement, "--format", "sglang", "-o", plan)
    engine = ("library", "submit", plan, "--format", "sglang", "--library", copied)
    fails(2, *engine, says="--as NAME")
    held(told(*engine, "--as", "tiny", "--json").json)
    best = open_library(copied).record("tiny").best
    assert best is not None
    assert best.value > 400.1


def test_the_commands_say_what_is_known(copied: Path, tmp_path: Path) -> None:
    shutil.copy(LIBRARY.folder / "reported.yaml", copied)
    place = ("--library", copied)
    listed = held(told("library", "list", *place, "--json").json)
    assert [entry["name"] for entry in listed["entries"]] == ["dsv2-lite-128", "tiny", "tiny-mesh"]
    assert "3 instances:" in told("library", "list", *place).out
    shown = told("library", "show", "tiny", *place).out
    assert LIBRARY.record("tiny").reason in shown
    assert "reported    400.0 in reports/2026-11-24-bench" in shown
    held(told("library", "show", "tiny", *place, "--json").json)
    made = held(told("library", "show", "dsv2-lite-128", *place, "--json").json)["entries"][0]["recording_commands"]
    assert [command.split()[:2] for command in made] == [["git", "clone"], *[["moe-placer", "import"]] * 2]
    shown, page = told("library", "show", "dsv2-lite-128", *place).out, (REPO / "docs" / "library.md").read_text()
    assert all(f"make it by  {command}" in shown and command in page for command in made)
    checked = held(told("library", "check", *place, "--recordings", tmp_path, "--json").json)
    assert [entry["verdict"] for entry in checked["entries"]] == ["skipped", "good", "good"]
    assert "needs esft_deepseek-v2-lite_intent.npz" in checked["entries"][0]["problems"][0]
    changed(copied, "tiny", status="optimal")
    assert "tiny: wrong. the status is open" in told("library", "check", "tiny", *place, code=5).out


def test_what_is_got_is_the_instance_and_its_best_placement(copied: Path, tmp_path: Path) -> None:
    got = held(told("library", "get", "tiny-mesh", "-o", tmp_path / "got", "--library", copied, "--json").json)
    instance, placement, _ = map(Path, got["files"])
    assert load_instance(instance).sha256 == LIBRARY.record("tiny-mesh").instance_sha256
    assert load_placement(placement).instance.name == "tiny-mesh"
    told("verify", instance, placement)
    said = told("library", "get", "dsv2-lite-128", "-o", tmp_path / "got", "--library", copied).out
    assert "make it by: moe-placer import ESFT/results/expert_scores/intent" in said


def test_what_is_not_there_is_bad_input(copied: Path, tmp_path: Path) -> None:
    fails(1, "library", "list", "--library", tmp_path, says="a folder with records/*.yaml")
    fails(1, "library", "show", "nope", "--library", copied, says="no instance 'nope'")
    other = tmp_path / "other.json"
    whole = json.loads(LIBRARY.placement(LIBRARY.record("tiny"), LIBRARY.record("tiny").best.placement).to_json())  # type: ignore[union-attr]
    whole["instance"]["name"] = "elsewhere"
    other.write_text(json.dumps(whole))
    fails(2, "library", "submit", other, "--library", copied, says="give --as NAME")
