"""The command line as its users meet it: output, exit codes, signals, bad input."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import REPO, SEED_PLAN, TINY, fails, run
from forked import Forks

from moe_placer.cli import main
from moe_placer.dag import VIEWS
from moe_placer.result import FalseBoundError
from moe_placer.verifier import RULES


def write(folder: Path, old: str, new: str, base: Path = TINY) -> Path:
    text = base.read_text()
    assert old in text
    file = folder / "changed.yaml"
    file.write_text(text.replace(old, new))
    return file


@pytest.fixture(scope="module")
def solved(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("solved")
    done = run("solve", TINY, "-o", folder, "--time-limit", 10, "--workers", 1, apart=forks)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("command", ["", "solve", "verify", "inspect", "schema", "solvers", "dag"])
def test_every_command_has_help(command: str) -> None:
    done = run(*([command] if command else []), "--help", apart=True)
    assert done.returncode == 0
    assert "Usage: moe-placer" in done.stdout


def test_help_lists_commands_under_the_headings_of_the_readme() -> None:
    table = re.findall(r"^\| ([^|]+) \| (`[^|]+`) \|$", (REPO / "README.md").read_text(), re.MULTILINE)
    listed = run("--help").stdout.split("Exit codes")[0].split("\n\n")[-6:-1]
    assert [section.splitlines()[0].strip() for section in listed] == [
        f"{name[0].upper()}{name[1:]}:" for name, _ in table
    ]
    for section, (_, commands) in zip(listed, table, strict=True):
        assert [line.split()[0] for line in section.splitlines()[1:]] == re.findall(r"`([a-z-]+)`", commands)


def test_help_loads_nothing_heavy_and_answers_at_once() -> None:
    heavy = "{'numpy', 'scipy', 'networkx', 'pydantic', 'rich', 'ortools', 'yaml', 'cloudpickle'}"
    check = f"import sys, moe_placer.cli.commands; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.strip() == "[]"
    spent = []
    for _ in range(3):
        before = os.times()
        run("--help", apart=True)
        after = os.times()
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(spent) < 0.7  # of processor time, whatever else the machine does; 0.1 s on a quiet one


def test_solve_writes_the_placement_and_its_dags(solved: Path) -> None:
    views = ("simplified_moe_dag", "detailed_expert_dag")
    expected = {"placement.json", *(f"{view}.{kind}" for view in views for kind in ("dot", "svg", "json"))}
    expected.add("detailed_expert_dag.html")  # the large one also as a page
    assert {path.name for path in solved.iterdir()} == expected


def test_solve_names_the_command_for_the_other_dags(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    said = run("solve", TINY, "-o", folder, "--solver", "greedy", "-q").stdout.splitlines()[-1]
    head, _, command = said.partition("comprehensive and complete: ")
    assert head == "The DAGs of all layers, "
    program, *words = shlex.split(command)
    assert program == "moe-placer"
    assert run(*words).returncode == 0
    assert {path.stem for path in folder.glob("*.svg")} == set(VIEWS)
    assert "moe-placer dag" not in run("solve", TINY, "-o", folder, "--solver", "greedy", "-q", "--no-dag").stdout


def test_verify_agrees_and_finds_tampering(solved: Path, tmp_path: Path) -> None:
    good = run("verify", TINY, solved / "placement.json")
    assert good.returncode == 0
    assert f"{len(RULES)} rules hold in all 2 layers" in good.stdout
    assert "re-derived          2 of 2 layers\n" in good.stdout
    assert "not checked: solver, versions, traffic.recordings.name" in good.stdout
    content = json.loads((solved / "placement.json").read_text())
    content["gpu"][1][2] = content["gpu"][1][3]
    bad = tmp_path / "placement.json"
    bad.write_text(json.dumps(content))
    done = run("verify", TINY, bad)
    assert done.returncode == 5
    assert "layer 2" in done.stdout
    assert f"GPU {content['gpu'][1][3][0]}" in done.stdout
    as_json = run("verify", TINY, bad, "--json")
    assert as_json.returncode == 5
    assert json.loads(as_json.stdout)["ok"] is False


def test_json_is_one_object_and_nothing_else(tmp_path: Path) -> None:
    done = run("solve", TINY, "-o", tmp_path, "--json", "--no-dag", "--time-limit", 10, "--workers", 1)
    assert done.returncode == 0
    content = json.loads(done.stdout)
    assert content["verified"] is True
    assert content["total_bound"] <= content["total_z"]
    assert content["gap"]["proof"] == "re-checkable"
    for command in (("inspect", TINY), ("solvers",)):
        assert json.loads(run(*command, "--json").stdout)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    given = ("--seed", 3, "--workers", 1, "--time-limit", 240, "--work", 5)
    for folder, apart in (("a", False), ("b", True)):  # hashes of texts differ from process to process
        assert run("solve", TINY, "-o", tmp_path / folder, *given, apart=apart).returncode == 0
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_inspect_tells_of_traces_that_are_missing() -> None:
    done = run("inspect", REPO / "instances" / "dsv2-lite-128.yaml")
    assert done.returncode == 0
    assert "unknown until traces are given" in done.stdout


def test_wrong_usage_is_2() -> None:
    fails(2, "solve", TINY, "--solver", "nope", says="there is no solver 'nope'")
    fails(2, "solve", TINY, "--time-limit", "-1", says="time limit is -1 s")
    fails(2, "solve", TINY, "--gap", "nan", says="gap is nan")
    fails(2, "solve", TINY, "--gap", "one", says="'one' is not a share, expected one such as 1% or 0.01")
    fails(2, "solve", TINY, "--gap", "1", says="'1' may mean 1% or 100%, expected which: 1% or 0.01")
    fails(2, "solve", TINY, "--workers", "0", says="0 workers")
    fails(2, "solve", TINY, "--nonsense", says="--nonsense", apart=True)
    fails(2, "solve", says="INSTANCE")


def test_wrong_instances_are_1(forks: Forks, tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(os.urandom(1000))
    bomb = tmp_path / "bomb.yaml"
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    bomb.write_text("\n".join(rows))
    huge = tmp_path / "huge.yaml"
    huge.write_text("# " + "x" * 3_000_000)
    fails(1, "solve", tmp_path / "missing.yaml", says="no such file", apart=forks)
    fails(1, "solve", tmp_path, says="a folder")
    fails(1, "solve", binary, says="binary.yaml")
    fails(1, "solve", bomb, says="YAML bomb")
    fails(1, "solve", huge, says="more than 2 MB")
    fails(
        1,
        "solve",
        write(tmp_path, "nodes: 4", "nodes: -4"),
        says="changed.yaml:16: cluster.nodes: found -4, expected at least 1",
    )
    routing = write(tmp_path, "traffic:\n", "placement: {replica_routing: optimal}\ntraffic:\n")
    fails(1, "solve", routing, says="or sglang-dynamic (optimal is no rule of an engine, but the best split")


def test_what_cannot_be_is_3_and_writes_nothing(forks: Forks, tmp_path: Path) -> None:
    fails(3, "solve", write(tmp_path, "experts: 4", "experts: 5"), "-o", tmp_path / "out", says="only 4", apart=forks)
    fails(
        3,
        "solve",
        write(tmp_path, "memory_gb: 1}", "memory_gb: 0.0001}"),
        "-o",
        tmp_path / "out",
        says="Use more memory",
    )
    assert not (tmp_path / "out").exists()


def test_wrong_traces_are_1(tmp_path: Path) -> None:
    def trace(**arrays: Any) -> Path:
        np.savez(tmp_path / "trace.npz", **arrays)
        return tmp_path / "trace.npz"

    def refused(file: Path, says: str) -> None:
        fails(1, "solve", TINY, "--trace", file, "-o", tmp_path / "out", says=says)

    refused(tmp_path / "missing.npz", "no such file")
    refused(trace(topk=np.zeros((5, 3, 2), int)), "found 3 layers, expected 2")
    refused(trace(topk=np.tile([0, 9], (5, 2, 1))), "found expert id 9, expected ids from 0 to 3")
    refused(trace(topk=np.zeros((5, 2, 2), int)), "one expert twice")
    refused(trace(other=np.zeros(3)), "no array `topk`")
    refused(trace(topk=np.array([{"a": 1}], dtype=object)), "never loaded")
    good = trace(topk=np.tile([0, 1], (500, 2, 1))).read_bytes()
    (tmp_path / "cut.npz").write_bytes(good[: len(good) // 2])
    refused(tmp_path / "cut.npz", "cannot be read")
    assert not (tmp_path / "out").exists()


def test_wrong_placements_are_1(tmp_path: Path, solved: Path) -> None:
    whole = (solved / "placement.json").read_text()
    for name, text, says in (
        ("cut", whole[:500], "not JSON"),
        ("deep", "[" * 100_000, "JSON"),
        ("other", "{}", "schema"),
        ("version", whole.replace("placement/1", "placement/9"), "schema"),
        ("nan", whole.replace('"seed": 0', '"seed": NaN'), "seed"),
    ):
        file = tmp_path / f"{name}.json"
        file.write_text(text)
        fails(1, "verify", TINY, file, says=says)
    fails(1, "verify", TINY, tmp_path / "missing.json", says="no such file")
    placement = solved / "placement.json"
    fails(1, "verify", placement, TINY, says="schema: found a file of moe-placer/placement/1, expected an instance (it")
    fails(1, "verify", TINY, TINY, says="expected a placement file (.json; it comes after the instance)")


def test_a_folder_that_cannot_be_written_is_1(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fails(1, "solve", TINY, "-q", "-o", tmp_path / "file", "--time-limit", "5", says="cannot be written")


def test_no_time_still_gives_a_placement(tmp_path: Path) -> None:
    done = run("solve", SEED_PLAN, "--time-limit", 0, "--no-dag", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert run("verify", SEED_PLAN, tmp_path / "placement.json").returncode == 0


def test_verify_checks_the_dags_beside_a_placement(tmp_path: Path) -> None:
    tiny = Path(__file__).parents[2] / "instances" / "tiny.yaml"
    assert run("solve", tiny, "--solver", "greedy", "-q", "-o", tmp_path).returncode == 0
    placement = tmp_path / "placement.json"
    good = run("verify", tiny, placement)
    assert good.returncode == 0
    assert "simplified_moe_dag: good." in good.stdout
    path = tmp_path / "simplified_moe_dag.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"flops":', '"flops":1', 1), encoding="utf-8")
    bad = run("verify", tiny, placement)
    assert bad.returncode == 5
    assert "[dag-arithmetic] simplified_moe_dag" in bad.stdout
    assert "[dag-twin] simplified_moe_dag" in bad.stdout
    told = json.loads(run("verify", tiny, placement, "--json").stdout)
    assert not told["ok"]
    assert told["violations"] == []
    assert {v["rule"] for dag in told["dags"] for v in dag["violations"]} == {"dag-arithmetic", "dag-twin"}
    assert run("verify", tiny, placement, "--no-dag").returncode == 0


def test_a_folder_named_without_dags_is_bad_input(tmp_path: Path) -> None:
    tiny = Path(__file__).parents[2] / "instances" / "tiny.yaml"
    assert run("solve", tiny, "--solver", "greedy", "-q", "--no-dag", "-o", tmp_path).returncode == 0
    none = run("verify", tiny, tmp_path / "placement.json", "--dags", tmp_path)
    assert none.returncode == 1


@pytest.mark.parametrize("command", ["solve", "compare", "split", "report"])
def test_help_shows_examples_line_by_line(command: str) -> None:
    said = run(command, "--help").stdout
    assert "\\b" not in said
    first, *others = [line.strip() for line in said.partition("Example")[2].splitlines()[1:] if line.strip()]
    assert first.startswith("moe-placer ")
    assert not any(" moe-placer " in line for line in [first, *others])


@pytest.mark.parametrize("error", [RuntimeError("what nobody thought of"), FalseBoundError("a bound too high")])
def test_a_defect_is_70_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, error: Exception
) -> None:
    def fail(*_arguments: Any) -> None:
        raise error

    monkeypatch.setattr("moe_placer.solvers.greedy.Greedy.place", fail)
    with pytest.raises(SystemExit) as ended:
        main(["solve", str(TINY), "-o", str(tmp_path / "out"), "-q", "--solver", "greedy"])
    assert ended.value.code == 70
    assert str(error) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
