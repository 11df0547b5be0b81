"""What every command prints with ``--json``, held to the schema that ``moe-placer schema --of`` prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from command_line import REPO, TINY
from drafted import SMALL
from engine_recordings import make, write_routed_experts
from told import told

import moe_placer
from moe_placer.cli import interrupts, log
from moe_placer.cli.commands import cli
from moe_placer.cli.results import RESULTS, result_schema
from moe_placer.cli.schema_command import SCHEMAS
from moe_placer.errors import UsageError

WITHOUT_RESULT = {"schema"}  # it prints a schema


def closed(schema: Any) -> Any:
    """Forbid every key that the schema does not name, so that no output has a key that is not documented."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(part) for key, part in schema.items()}
    return inner | {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else inner


def check(name: str, content: Any) -> None:
    schema = result_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(content, closed(schema))


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    done = told("solve", TINY, "-o", folder, "--workers", 1, "--solver", "greedy", "--step", "--json")
    check("solve", done.json)
    assert done.json["plans"]["greedy"]["step_us"] > 0
    (folder / "solve.json").write_text(done.out)
    return folder


def test_every_command_has_a_schema_and_every_key_of_it_a_description() -> None:
    assert set(cli.commands) - WITHOUT_RESULT == set(RESULTS) - {"instance", "placement", "log"}
    assert set(SCHEMAS) == set(RESULTS)
    assert moe_placer.result_schema("solve")["properties"]["schema"]["const"] == "moe-placer/solve/1"
    for name, kind in RESULTS.items():
        if name in {"instance", "placement"}:
            continue
        schema = result_schema(name)
        for owner, one in [(name, schema), *schema.get("$defs", {}).items()]:
            assert one["description"], owner
            for key, field in one.get("properties", {}).items():
                # What refers to another object is described there.
                assert {"description", "$ref"} & field.keys() or key in one["description"], f"{owner}.{key}"
        assert kind.__doc__
    with pytest.raises(UsageError, match="there is no schema of 'nope', expected one of"):
        result_schema("nope")


def test_schema_prints_what_python_returns() -> None:
    assert told("schema", "--of", "verify").json == result_schema("verify")
    assert told("schema").json == told("schema", "instance").json == result_schema("instance")
    assert "expected one of them" in told("schema", "instance", "--of", "solve", code=2).err


def test_a_key_that_is_missing_or_not_documented_is_noticed(solved: Path) -> None:
    content = json.loads((solved / "solve.json").read_text())
    with pytest.raises(jsonschema.ValidationError, match="'total_z' is a required property"):
        check("solve", {key: value for key, value in content.items() if key != "total_z"})
    with pytest.raises(jsonschema.ValidationError, match="'further' was unexpected"):
        check("solve", content | {"further": 1})
    jsonschema.validate(content | {"further": 1}, result_schema("solve"))  # later versions may add keys


def test_what_looks_at_a_placement(solved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_placer import dag

    placed = (TINY, solved / "placement.json")
    check("verify", told("verify", *placed, "--json").json)
    content = json.loads(placed[1].read_text())
    content["gpu"][0][0] = content["gpu"][0][1]
    wrong = tmp_path / "placement.json"
    wrong.write_text(json.dumps(content))
    refuted = told("verify", TINY, wrong, "--json", code=5).json
    check("verify", refuted)
    assert refuted["violations"]
    check("gate", told("gate", TINY, wrong, "--max-gap", "50%", "--json", code=5).json)
    failed = told("gate", *placed, "--max-gap", "50%", "--max-z", 1, "--current", placed[1], "--json", code=6).json
    check("gate", failed)
    check("evaluate", told("evaluate", *placed, "--json").json)
    assert [one["ok"] for one in failed["checks"]] == [True, False]
    check("inspect", told("inspect", TINY, "--json").json)
    check("solvers", told("solvers", "--json").json)
    monkeypatch.setattr(dag, "write_dags", lambda *_, wrote, **__: wrote(tmp_path / "a.svg"))  # drawn in tests of DAGs
    drawn = told("dag", *placed, "-o", tmp_path / "dag", "--json").json
    check("dag", drawn)
    assert drawn["files"] == [str(tmp_path / "a.svg")]
    check("placement", json.loads(placed[1].read_text()))


def test_what_simulates(solved: Path) -> None:
    placed = (TINY, solved / "placement.json")
    fine = told("schedule", *placed, "--json").json
    check("schedule", fine)
    coarse = told("schedule", *placed, "--sharing", "coarse", "--json").json
    check("schedule", coarse)
    assert (fine["sharing"], coarse["sharing"], fine["not_rederived"]) == ("fine", "coarse", ["bounds"])
    assert 0 < abs(coarse["latency_us"] / fine["latency_us"] - 1) < 0.05
    slow = told("schedule", *placed, "--slow-gpu", "0=2", "--copies", 1, "--json").json
    check("schedule", slow)
    assert slow["what_if"]["later_us"] > 0
    failed = told("schedule", *placed, "--fail-gpu", "0", "--json").json
    check("schedule", failed)
    assert not failed["what_if"]["runs"]
    swept = told("sweep", *placed, "--tokens-per-gpu", "64,128", "--workers", 1, "--json").json
    check("sweep", swept)
    assert len(swept["points"]) == 2


def test_a_comparison_and_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_placer.experiments import report
    from moe_placer.experiments.compare import comparison
    from moe_placer.experiments.compare.run_process import run

    def run_here(cells: list[Any], *_: Any) -> Iterator[dict[str, Any]]:
        for cell in cells:
            yield run(cell)

    monkeypatch.setattr(comparison, "run_cells", run_here)  # processes are tested in test_compare, pages in test_report
    monkeypatch.setattr(report, "write_report", lambda folder: [folder / "index.html"])
    asked = ("compare", TINY, "-o", tmp_path, "--solvers", "greedy,flow", "--next-window", "--time-limit", 0.5)
    done = told(*asked, "--json").json
    check("compare", done)
    assert [run["status"] for run in done["runs"]] == ["ok", "ok"]
    assert all(run["held_out"]["z_total"] > 0 for run in done["runs"])
    check("report", told("report", tmp_path, "--json").json)


def test_what_reads_and_writes_files_of_engines(tmp_path: Path) -> None:
    recorded = write_routed_experts(make(), tmp_path, "npz", with_dense=True)
    recording, config, instance = tmp_path / "r.npz", tmp_path / "config.json", tmp_path / "i.yaml"
    check("import", told("import", recorded, "-o", recording, "--experts", 6, "--json").json)
    check("split", told("split", recording, "-o", tmp_path / "parts", "--json").json)
    config.write_text(json.dumps(SMALL))
    common = ("init", "--model", config, "--recording", recording, "-o", instance, "--json")
    check("init", told(*common, "--gpus", 4, "--gpus-per-node", 2, "--engine", "sglang").json)
    told("solve", instance, "-o", tmp_path, "--solver", "greedy", "--no-dag", "--workers", 1, "-q")
    placement, plan = tmp_path / "placement.json", tmp_path / "plan.json"
    hosts = tmp_path / "hosts"
    hosts.write_text("node[1-2]\n")
    exported = ("export", instance, placement, "--format", "sglang", "-o", plan, "--json")
    check("export", told(*exported, "--launcher", "slurm", "--hosts", hosts).json)
    checked = ("check-file", plan, "--format", "sglang", "--json", "--instance", instance)
    check("check-file", told(*checked, "-o", tmp_path / "back.json").json)
    check("check-file", told(*checked).json)
    plan.write_text("{}")
    refused = told(*checked, code=1).json
    check("check-file", refused)
    assert refused["mistakes"]


def test_logs_are_json_lines_on_request(solved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = ("--solver", "greedy", "--workers", 1)
    done = told("solve", TINY, "-o", tmp_path, "--no-dag", *greedy, "--log", "json", "--json")
    assert done.json["verified"] is True
    for line in done.lines:
        jsonschema.validate(line, result_schema("log"))
    assert [line["level"] for line in done.lines[:2]] == ["info", "info"]
    assert done.lines[1] == done.lines[1] | {"command": "solve", "instance": "tiny", "time_limit_s": 60.0}
    assert told("solve", TINY, "-o", tmp_path, "--no-dag", *greedy, "--log", "json", "--json", "-q").err == ""

    missing = told("verify", TINY, tmp_path / "no.json", "--log=json", code=1)
    (line,) = missing.lines
    jsonschema.validate(line, result_schema("log"))
    assert (line["level"], line["exit_code"], line["command"]) == ("error", 1, "verify")
    assert line["mistakes"][0]["file"] == str(tmp_path / "no.json")

    monkeypatch.setenv("MOE_PLACER_LOG", "json")
    assert told("nonsense", code=2).lines[0]["exit_code"] == 2
    assert told("solve", TINY, "--solver", "nope", code=2).lines[0]["text"].startswith("there is no solver 'nope'")
    assert not told("solve", TINY, "--solver", "nope", "--log", "text", code=2).err.startswith("{")
    monkeypatch.setenv("MOE_PLACER_LOG", "xml")
    assert "MOE_PLACER_LOG" in told("solvers", code=2).err


def test_nothing_else_writes_to_standard_error() -> None:
    for file in (REPO / "moe_placer" / "cli").glob("*.py"):
        assert file.name == "log.py" or not re.search(r"\berr=True", file.read_text()), file.name


def test_signals_are_told_as_json_lines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(interrupts, "_tell", lambda text: said.append(json.loads(text)))
    monkeypatch.setattr(interrupts.os, "_exit", said.append)
    for name, value in {"finished": False, "stop_request": None, "last": float("-inf")}.items():
        monkeypatch.setattr(interrupts._State, name, value)
    monkeypatch.setattr(log._State, "json", True)
    monkeypatch.setattr(log._State, "command", "solve")
    stop_request = interrupts.listen("stopping: keeping the best placement so far")
    interrupts._handle(2, None)
    assert stop_request()
    monkeypatch.setattr(interrupts._State, "last", float("-inf"))
    interrupts._handle(15, None)
    stopping, ended, code = said
    for line in (stopping, ended):
        jsonschema.validate(line, result_schema("log"))
    assert (stopping["level"], stopping["text"]) == ("warning", "stopping: keeping the best placement so far")
    assert (ended["level"], ended["exit_code"], code) == ("error", 143, 143)
