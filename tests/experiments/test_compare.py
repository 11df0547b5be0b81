"""Comparisons: rows that can be believed, whatever solvers do, and folders that survive whatever ends a run."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from forked import Forks
from plug_ins import environment_with_plug_ins

from moe_placer.cli import main
from moe_placer.errors import UsageError
from moe_placer.experiments import process
from moe_placer.experiments.compare import Settings, build_matrix, run
from moe_placer.experiments.compare.run_process import run as run_cell
from moe_placer.experiments.process import Ended
from moe_placer.experiments.report.report_files import draw_report
from moe_placer.instance import load_instance

REPO = Path(__file__).parents[2]
TINY = REPO / "instances" / "tiny.yaml"

RUN_KEYS = {
    *("schema", "kind", "key", "instance", "instance_sha256", "solver", "version", "parameters", "seed", "status"),
    *("reason", "seconds", "peak_bytes"),
}
OK_KEYS = RUN_KEYS | {
    *("z", "bound", "proof", "recheckable", "covers_copies", "gap_median", "gap_largest", "stop", "moves"),
    *("memory_bytes", "memory_bound", "traffic", "gpu", "trajectory", "speed"),
    *("largest_process_bytes", "cores_used_by_others"),
}
OF_THE_PROCESS = {
    "peak_bytes",
    "largest_process_bytes",
    "cores_used_by_others",
}  # what only the process of a run, or the one that started it, can know
SECONDS = ("first", "better", "bounded", "within_1_percent", "within_0_1_percent", "proved", "final", "total")
METRICS = {
    *("z_total", "z_largest", "z", "worst_link", "pair_total", "pair_largest", "inter_node_tokens", "token_hops"),
    *("gpu_balancedness", "node_balancedness", "busiest_gpu_tokens", "busiest_node_tokens", "communication_us"),
    *("step_us", "link_cost", "gpu_load", "nic_total", "other_links_total"),
}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Compare = Callable[..., Done]


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Run the command in this process, without a page; its runs have processes of their own."""
    monkeypatch.setattr("moe_placer.experiments.report.write_report", lambda folder: [folder / "page"])

    def run_it(*arguments: Any) -> Done:
        with pytest.raises(SystemExit) as ended:
            main(["compare", *map(str, arguments)])
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return run_it


_ONE_AT_A_TIME = Lock()


def run_here(command: Sequence[str], text: str, answer: Path) -> Ended:
    """Do in this process what a run's process does."""
    with _ONE_AT_A_TIME, patch("sys.argv", [command[-1], str(answer)]), patch("sys.stdin", io.StringIO(text)):
        import_module(command[-1]).main()
    return Ended(answer.read_text(), None, hung=False, all_processes_bytes=None, seconds=1.0)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs happen in this process, for tests of what is made of them: a process of its own is mostly its start."""

    def run_child(command: Sequence[str], text: str, *_limits: Any) -> Ended:
        return run_here(command, text, tmp_path_factory.mktemp("answer") / "row.json")

    monkeypatch.setattr("moe_placer.experiments.compare.run.run_child", run_child)


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Solvers that fail or lie, here and in child processes."""
    env = environment_with_plug_ins(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", env["PYTHONPATH"])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "plugs", raising=False)
    return env


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def runs_of(folder: Path) -> list[dict[str, Any]]:
    return [row for row in rows_of(folder) if row["kind"] == "run"]


# What plug-ins do, the status that it gets, and what the reason says.
FAULTS = {
    "invalid": ("invalid", "breaks slots"),
    "crowded": ("invalid", "names a GPU that does not exist"),
    "wrong-z": ("invalid", "is above z"),
    "false-bound": ("false bound", "[bound]"),
    "above-z": ("false bound", "is above z"),
    "infeasible": ("false bound", "but slots, pins and distances leave one"),
    "nothing": ("nothing found", "found no placement of layer 1"),
    "raises": ("crashed", "RuntimeError: the engine in place.so is broken"),
    "memory": ("crashed", "out of memory"),
    "short": ("invalid", "has not one node that exists for every replica"),
    "nowhere": ("invalid", "has not one node that exists for every replica"),
    "no-number": ("false bound", "a bound is no number"),
    "garbles": ("crashed", "RuntimeError: no \N{REPLACEMENT CHARACTER} text \N{REPLACEMENT CHARACTER}[31m"),
    "refuses": ("unserved", "it is not in the mood"),
    "lacking": ("unserved", "a package is missing"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_lie_or_a_failure_is_named(name: str, plug_ins: dict[str, str]) -> None:
    (cell,) = build_matrix([TINY], [name], [0], Settings(time_limit_s=5)).cells
    row = run_cell(cell)
    status, says = FAULTS[name]
    assert (row["status"], says in row["reason"]) == (status, True), row["reason"]
    assert row.keys() == RUN_KEYS - OF_THE_PROCESS
    assert set(row["seconds"]) == set(SECONDS)
    assert row["version"].endswith(", plugs 2.5")


def test_a_solver_that_tells_nothing_on_its_way_has_its_end(plug_ins: dict[str, str]) -> None:
    (cell,) = build_matrix([TINY], ["silent"], [0], Settings(time_limit_s=5)).cells
    row = run_cell(cell)
    assert row.keys() == OK_KEYS - OF_THE_PROCESS
    assert row["trajectory"][-1][1] == pytest.approx(row["traffic"]["solved_for"]["z_total"])


def test_optimal_by_a_solver_s_word_is_served_with_a_bound_that_can_be_checked(plug_ins: dict[str, str]) -> None:
    (cell,) = build_matrix([TINY], ["word"], [0], Settings(time_limit_s=5)).cells
    row = run_cell(cell)
    assert (row["status"], row["proof"], row["recheckable"]) == ("ok", ["dual", "dual"], [True, True])


def test_a_process_that_dies_or_hangs_is_a_row_and_the_rest_goes_on(
    tmp_path: Path, compare: Compare, plug_ins: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_child(command: Sequence[str], text: str, *limits: Any) -> Ended:
        if command == run.STEP and "detaches" in text:  # one run's step has a process of its own: that of greedy
            return run_here(command, text, tmp_path / "step.json")
        return process.run_child(command, text, *limits)

    monkeypatch.setattr(run, "run_child", run_child)
    given = ["--solvers", "killed,leaves,eats,detaches,greedy", "--time-limit", 2, "--patience", 240, "--jobs", 2]
    given += ["--memory", 0.3]
    done = compare(TINY, *given, "-o", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    rows = {row["solver"]: row for row in runs_of(tmp_path / "report")}
    eats = rows.pop("eats")
    assert (eats["status"], eats["reason"].endswith("of 0.3 GB allowed")) == ("crashed", True), eats["reason"]
    assert {name: (row["status"], row["reason"]) for name, row in rows.items()} == {
        "killed": ("crashed", "killed by SIGSEGV"),
        "leaves": ("crashed", "ended without an answer"),
        "detaches": ("ok", None),
        "greedy": ("ok", None),
    }
    assert all(rows[name].keys() == RUN_KEYS for name in ("killed", "leaves"))
    assert rows["greedy"].keys() == OK_KEYS
    assert rows["greedy"]["peak_bytes"] >= rows["greedy"]["largest_process_bytes"] > 10e6
    assert rows["greedy"]["cores_used_by_others"] is None or rows["greedy"]["cores_used_by_others"] >= 0
    assert done.stdout.split() == [str(tmp_path / "report" / name) for name in ("results.jsonl", "page")]
    text = "".join(file.read_text() for file in (tmp_path / "report").iterdir())
    assert str(tmp_path) not in text
    assert str(REPO) not in text
    assert not _processes_with(str(tmp_path / "site")) - {os.getpid()}
    pytest.importorskip("vl_convert")
    page = draw_report(tmp_path / "report")["index.html"]
    assert all(row["reason"] in page for row in rows.values() if row["reason"])


def test_a_run_that_hangs_is_ended_and_is_a_row(tmp_path: Path, compare: Compare, plug_ins: dict[str, str]) -> None:
    done = compare(TINY, "--solvers", "hang", "--time-limit", 1, "--patience", 5, "-o", tmp_path / "report")
    assert done.returncode == 4
    (row,) = runs_of(tmp_path / "report")
    assert (row["status"], row["reason"]) == ("hung", "ended after 6 s without an answer")
    assert row.keys() == RUN_KEYS
    assert not _processes_with(str(tmp_path / "site")) - {os.getpid()}


def _processes_with(text: str) -> set[int]:
    """Processes whose environment mentions a folder: here, those of our runs."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text.encode() in file.read_bytes():
                found.add(int(file.parent.name))
        except OSError:
            continue
    return found


def test_rows_hold_what_pages_need(tmp_path: Path, compare: Compare, here: None) -> None:
    done = compare(TINY, "--solvers", "contiguous,greedy", "--seeds", "0,1", "--question", "Why?", "-o", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert config == {
        "schema": "moe-placer/comparison/1",
        "name": "r",
        "question": "Why?",
        "instances": ["tiny"],
        "solvers": ["contiguous", "greedy"],
        "seeds": [0, 1],
        "parameters": {"time_limit_s": 60.0, "gap": 0.001, "workers": 1},
        "traces": [],
        "held_out": [],
        "next_window": False,
        "current": [],
    }
    head, *runs = rows_of(tmp_path / "r")
    assert (head["kind"], head["name"], head["layer_index"], head["gpu_node"]) == (
        "instance",
        "tiny",
        [1, 2],
        [0, 1, 2, 3],
    )
    assert {link["name"] for link in head["links"]} >= {"node0->leaf0", "spine1->leaf1"}
    assert sorted((row["solver"], row["seed"]) for row in runs) == [
        (name, seed) for name in ("contiguous", "greedy") for seed in (0, 1)
    ]
    assert len({row["key"] for row in runs}) == 4
    for row in runs:
        found = row["traffic"]["solved_for"]
        assert found.keys() == METRICS
        assert found["step_us"] > 0
        assert row["traffic"]["held_out"] is None
        assert found["z"] == pytest.approx(row["z"])
        assert found["z_total"] == pytest.approx(sum(row["z"]))
        assert np.max(found["link_cost"], axis=1) == pytest.approx(row["z"], rel=1e-4)
        assert all(bound <= z * (1 + 1e-9) for bound, z in zip(row["bound"], row["z"], strict=True))
        assert row["trajectory"][-1][1] == pytest.approx(found["z_total"])
        assert 0 < row["seconds"]["first"] <= row["seconds"]["final"] <= row["seconds"]["total"]
        assert row["seconds"].keys() == set(SECONDS)
        assert 0 < row["speed"]["primal_integral"] <= 60
        assert (row["moves"] == 0) == (row["solver"] == "contiguous")
    for line in (tmp_path / "r" / "results.jsonl").read_text().splitlines():
        content = json.loads(line)
        assert line == json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def test_held_out_traffic_is_measured_beside(tmp_path: Path, compare: Compare, here: None) -> None:
    instance = load_instance(TINY)
    file = tmp_path / "traced.yaml"
    head, _, _ = TINY.read_text().partition("traffic:")
    file.write_text(f"{head}traffic:\n  kind: trace\n  tokens_per_gpu: 100\n".replace("name: tiny", "name: traced", 1))
    rng = np.random.default_rng(0)
    for name in ("now", "later"):
        shape = (500, len(instance.moe_layers), instance.model.experts)
        topk = np.argsort(rng.random(shape) * [1, 2, 3, 4], axis=2)[:, :, :2].astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", topk=topk)
    given = [file, "--trace", tmp_path / "now.npz", "--solvers", "greedy"]
    done = compare(*given, "--held-out", tmp_path / "later.npz", "-o", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    head_row, run = rows_of(tmp_path / "r")
    assert (head_row["recordings"], head_row["held_out"]) == (["now.npz"], ["later.npz"])
    now, later = run["traffic"]["solved_for"], run["traffic"]["held_out"]
    assert later.keys() == METRICS
    assert later["step_us"] > 0
    assert later["link_cost"] != now["link_cost"]
    # The verifier recomputes the same for a placement on other traffic.
    from moe_placer.placement import Placement
    from moe_placer.traffic import load_traffic
    from moe_placer.verifier import verify

    traced = load_instance(file).with_traces([tmp_path / "later.npz"])
    records = [{"layer": layer, "z": 0, "bound": 0, "proof": "solver"} for layer in traced.moe_layers]
    content = {
        "schema": "moe-placer/placement/1",
        "instance": {"name": "traced", "sha256": "", "traffic_sha256": ""},
        "solver": {"name": "greedy", "version": "", "seed": 0},
        "gpu": run["gpu"],
        "layers": records,
    }
    checked = verify(traced, Placement.model_validate(content), load_traffic(traced))
    assert later["z"] == pytest.approx([check.z for check in checked.layers])
    assert later["worst_link"] == [check.worst_link for check in checked.layers]
    same = compare(*given, "--held-out", tmp_path / "now.npz", "-o", tmp_path / "s")
    assert (same.returncode, (tmp_path / "s").exists()) == (2, False)
    assert "held-out traffic is the traffic solved for" in same.stderr


def test_the_next_window_is_other_tokens_of_the_same_domains(tmp_path: Path, compare: Compare, here: None) -> None:
    done = compare(TINY, "--solvers", "contiguous,greedy", "--next-window", "-o", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    head, *runs = rows_of(tmp_path / "r")
    assert head["held_out"] == [f"synthetic-{domain}, window 1" for domain in range(4)]
    for row in runs:
        now, later = row["traffic"]["solved_for"], row["traffic"]["held_out"]
        assert now["gpu_load"] != later["gpu_load"]
        assert later["z_total"] == pytest.approx(now["z_total"], rel=0.1)  # the domains and their mix are the same


@pytest.mark.parametrize(
    ("wrong", "code", "says"),
    [
        (["--solvers", "greedy,nope"], 2, "there is no solver 'nope'"),
        (["--solvers", "eplb,flashlb"], 2, "`moe-placer follow INSTANCE CURRENT --windows N` compares these"),
        (["--solvers", "greedy,greedy"], 2, "the solver greedy is given twice"),
        (["--solvers", ","], 2, "no solver is given"),
        (["--seeds", "0,x"], 2, "seeds are '0,x'"),
        (["--seeds", "-1"], 2, "seed is -1"),
        (["--time-limit", "-1"], 2, "time limit is -1 s"),
        (["--workers", "0"], 2, "0 workers"),
        (["--jobs", "0"], 2, "--jobs"),
        (["--patience", "nan"], 2, "patience is nan, expected a number above 0"),
        (["--memory", "0"], 2, "memory is 0, expected a number above 0"),
        (["--current", "missing.json"], 1, "no such file"),
        (["--held-out", "x.npz"], 2, "apply to instances with traffic.kind: trace"),
        ([TINY], 2, "the instance tiny is given twice"),
        (["missing.yaml"], 1, "no such file"),
        (["--config", "x.json"], 2, "instances and --config are given"),
        ([REPO / "instances" / "dsv2-lite-128.yaml"], 1, "traffic.files"),
        (["--solvers", "broken"], 2, "no licence"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_run(
    tmp_path: Path, compare: Compare, plug_ins: dict[str, str], wrong: list[Any], code: int, says: str
) -> None:
    done = compare(TINY, "--solvers", "greedy", *wrong, "-o", tmp_path / "report")
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "report").exists()


def test_all_runs_failing_is_exit_code_4(
    tmp_path: Path, compare: Compare, here: None, plug_ins: dict[str, str]
) -> None:
    assert compare(TINY, "--solvers", "raises", "-o", tmp_path / "r").returncode == 4


def test_a_killed_run_continues_and_another_configuration_is_refused(
    tmp_path: Path, compare: Compare, here: None
) -> None:
    given = [TINY, "--solvers", "contiguous,greedy", "-o", tmp_path]
    assert compare(*given).returncode == 0
    file = tmp_path / "results.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + lines[2][:100])  # killed while it wrote the last row
    again = compare(*given)
    assert again.returncode == 0, again.stderr
    assert "continuing: 1 of 2 runs are there" in again.stderr
    assert file.read_bytes().splitlines(keepends=True)[:2] == lines[:2]
    assert sorted(row["solver"] for row in runs_of(tmp_path)) == ["contiguous", "greedy"]
    whole = file.read_bytes()
    assert compare(*given).returncode == 0
    assert file.read_bytes() == whole
    for change, word in (
        (["--seeds", "1"], "seeds"),
        (["--gap", "0.5"], "parameters"),
        (["--question", "?"], "question"),
    ):
        other = compare(*given, *change)
        assert other.returncode == 2
        assert f"with other settings ({word} differ)" in other.stderr
    assert file.read_bytes() == whole


def test_ctrl_c_keeps_the_rows_and_leaves_no_run_behind(forks: Forks, tmp_path: Path) -> None:
    env = environment_with_plug_ins(tmp_path / "site")
    given = [str(TINY), "--solvers", "greedy,hang,contiguous", "--jobs", "1", "-o", str(tmp_path / "r")]
    with (tmp_path / "err").open("w") as err:
        parent = forks.start("compare", *given, err=err, env=env)
    file, give_up = tmp_path / "r" / "results.jsonl", time.monotonic() + 240
    while time.monotonic() < give_up and not (file.exists() and file.read_bytes().count(b"\n") == 2):
        time.sleep(0.05)
    time.sleep(1)  # the hanging run is on its way
    parent.send_signal(signal.SIGINT)
    assert parent.wait() == 130
    errors = (tmp_path / "err").read_text()
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    assert [row["solver"] for row in runs_of(tmp_path / "r")] == ["greedy"]
    assert not _processes_with(str(tmp_path / "site"))


def test_kill_leaves_no_run_behind_and_the_same_command_continues(
    forks: Forks, tmp_path: Path, compare: Compare, here: None, plug_ins: dict[str, str]
) -> None:
    given = [str(TINY), "--solvers", "greedy,once,contiguous", "--jobs", "1", "-o", str(tmp_path / "r")]
    parent = forks.start("compare", *given, env=plug_ins)
    file, give_up = tmp_path / "r" / "results.jsonl", time.monotonic() + 240
    while time.monotonic() < give_up and not (tmp_path / "site" / "hung-once").exists():
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while time.monotonic() < give_up and _processes_with(str(tmp_path / "site")) - {os.getpid()}:
        time.sleep(0.05)
    assert not _processes_with(str(tmp_path / "site")) - {os.getpid()}
    before = file.read_bytes()
    again = compare(*given)  # whose runs need no processes of their own
    assert again.returncode == 0, again.stderr
    assert "continuing: 1 of 3 runs are there" in again.stderr
    assert file.read_bytes().startswith(before)
    assert [(row["solver"], row["status"]) for row in runs_of(tmp_path / "r")] == [
        ("greedy", "ok"),
        ("once", "ok"),
        ("contiguous", "ok"),
    ]


def test_a_page_that_cannot_be_made_does_not_fail_the_comparison(
    tmp_path: Path, compare: Compare, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(_folder: Path) -> list[Path]:
        raise UsageError("reports need jinja2")

    monkeypatch.setattr("moe_placer.experiments.report.write_report", lacking)
    done = compare(TINY, "--solvers", "greedy", "-o", tmp_path)
    assert done.returncode == 0
    assert f"no page was made: reports need jinja2; then: moe-placer report {tmp_path}" in done.stderr


def test_a_config_runs_again(tmp_path: Path, compare: Compare, here: None) -> None:
    assert compare(TINY, "--solvers", "contiguous", "--gap", "0.02", "-o", tmp_path / "a").returncode == 0
    config = tmp_path / "a" / "config.json"
    again = compare("--config", config, "--find", TINY.parent, "-o", tmp_path / "b")
    assert again.returncode == 0, again.stderr
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("a", "b"))
    assert {**first, "name": "b"} == second
    assert [row["key"] for row in runs_of(tmp_path / "a")] == [row["key"] for row in runs_of(tmp_path / "b")]


def test_a_config_names_what_is_missing(tmp_path: Path, compare: Compare) -> None:
    committed = REPO / "reports" / "2026-11-27-real-traces" / "config.json"
    done = compare("--config", committed, "--find", TINY.parent, "-o", tmp_path / "b")
    assert done.returncode == 1
    assert "esft_deepseek-v2-lite_intent_odd.npz, which is not in" in done.stderr
    assert "`moe-placer split` cuts recordings" in done.stderr
    assert not (tmp_path / "b").exists()


def test_what_beats_the_best_known_is_entered(tmp_path: Path, compare: Compare, here: None) -> None:
    best = tmp_path / "best.yaml"
    done = compare(TINY, "--solvers", "greedy", "-o", tmp_path / "r", "--update-best-known", best)
    assert done.returncode == 0, done.stderr
    assert best.read_text().count("instance: ") == 1


def test_missing_libraries_are_named_before_the_runs(
    tmp_path: Path, compare: Compare, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_placer.experiments.report.report_files._NEEDED", ("no_such_library",))
    done = compare(TINY, "--solvers", "greedy", "-o", tmp_path)
    assert done.returncode == 0
    before, _, _ = done.stderr.partition("1/1")
    assert "no page: reports need no_such_library: pip install 'moe-placer[report]'" in before
