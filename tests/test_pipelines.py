"""The examples for batch jobs and CI, as far as they run without Slurm, Kubernetes, GitHub or a container engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from drafted import SMALL
from engine_recordings import make, write_routed_experts
from told import told

import moe_placer
from moe_placer.cli.commands import cli
from moe_placer.workers import find_engine

REPO = Path(__file__).parent.parent
EXAMPLES = REPO / "examples" / "pipelines"
REPLAN = EXAMPLES / "replan.sh"
SCRIPTS = [REPLAN, EXAMPLES / "replan.sbatch"]

# In place of the program: writes down its arguments, and ends with the code that is asked for.
STAND_IN = """#!/usr/bin/env bash
printf '%s\\0' "$@" >> "$CALLS"; printf '\\n' >> "$CALLS"
case $1 in
  gate) echo '{}'; exit "${GATE:-0}";;
  solve) mkdir -p "$4"; touch "$4/placement.json";;
  import) touch "$4";;
  init) touch "${@: -1}";;
esac
"""


def runs(script: Path, folder: Path, **given: str) -> tuple[int, list[list[str]]]:
    """Run a script with a stand-in for the program; return its exit code, and what it would have run."""
    bin_, calls = folder / "bin", folder / "calls"
    bin_.mkdir(exist_ok=True)
    for name, text in {"moe-placer": STAND_IN, "srun": '#!/usr/bin/env bash\nexec "$@"\n'}.items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    calls.write_text("")
    environment = {"PATH": f"{bin_}:/usr/bin:/bin", "CALLS": str(calls), "PLANS": str(folder / "plans"), **given}
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, timeout=240)
    return done.returncode, [line.split("\0")[:-1] for line in calls.read_text().splitlines()]


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    """The variables of replan.sh, with a small model and recording."""
    config, recording = tmp_path / "config.json", write_routed_experts(make(), tmp_path, "npz", with_dense=True)
    config.write_text(json.dumps(SMALL))
    options = "--gpus-per-node 2 --engine sglang"
    return {"MODEL": str(config), "RECORDING": str(recording), "GPUS": "4", "TIME_LIMIT": "1", "INIT": options}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr == ""


def test_every_command_of_the_script_runs(tmp_path: Path, given: dict[str, str]) -> None:
    code, calls = runs(REPLAN, tmp_path, **given, WORKERS="1")
    assert (code, [call[0] for call in calls]) == (0, ["import", "init", "solve", "gate", "export", "check-file"])
    new, plans = Path(calls[0][calls[0].index("-o") + 1]).parent, tmp_path / "plans"
    assert {file.name for file in plans.iterdir()} == {"recording.npz", "instance.yaml", "gate.json", "placement.json"}
    assert not new.exists()
    new.mkdir()
    (new / "config.json").write_text(Path(given["MODEL"]).read_text())
    for call in calls:
        told(*(["5000%" if word == "5%" else word for word in call]))  # six experts balance badly
    assert "physical_to_logical_map" in json.loads((plans / "plan.json").read_text())
    assert str(plans / "plan.json") in (plans / "plan.json.start.txt").read_text()


def test_the_plan_that_is_served_stays_unless_a_better_one_is_found(tmp_path: Path, given: dict[str, str]) -> None:
    plans = tmp_path / "plans"
    plans.mkdir()
    (plans / "placement.json").write_text("present")
    code, calls = runs(REPLAN, tmp_path, **given, GATE="6")
    assert (code, [call[0] for call in calls]) == (0, ["import", "init", "solve", "gate"])
    assert calls[-1][3:] == [
        "--max-gap",
        "5%",
        "--current",
        str(plans / "placement.json"),
        "--min-gain",
        "2%",
        "--json",
    ]
    assert {file.name: file.read_text() for file in plans.iterdir()} == {
        "placement.json": "present",
        "rejected.json": "{}\n",
    }
    assert runs(REPLAN, tmp_path, **given, GATE="5")[0] == 5
    del given["MODEL"]
    assert runs(REPLAN, tmp_path, **given)[0] != 0


def test_the_slurm_job_runs_the_script(tmp_path: Path, given: dict[str, str]) -> None:
    job = EXAMPLES / "replan.sbatch"
    code, calls = runs(job, tmp_path, **given, SLURM_SUBMIT_DIR=str(EXAMPLES), SLURM_CPUS_PER_TASK="3")
    assert (code, len(calls)) == (0, 6)
    assert calls[2][-2:] == ["--workers", "3"]
    options = re.findall(r"^#SBATCH (--[a-z-]+)=\S+$", job.read_text(), re.MULTILINE)
    assert {"--nodes", "--ntasks", "--cpus-per-task", "--time"} <= set(options)
    assert len(options) == job.read_text().count("#SBATCH")


def test_the_cron_job_gives_the_script_what_it_reads() -> None:
    job = yaml.safe_load((EXAMPLES / "cronjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert len(job["spec"]["schedule"].split()) == 5
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    known = set(re.findall(r"^#   ([A-Z_]+) ", REPLAN.read_text(), re.MULTILINE))
    names = {variable["name"] for variable in container["env"]}
    assert {"MODEL", "RECORDING", "GPUS", "PLANS"} <= names <= known
    assert all(isinstance(variable["value"], str) for variable in container["env"]), "numbers need quotes"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["command"][1] in [target for _, *_, target in instructions("COPY")]


def test_the_slurm_array_runs_one_shard_for_each_of_its_tasks(tmp_path: Path) -> None:
    job = EXAMPLES / "shards.sbatch"
    options = dict(re.findall(r"^#SBATCH (--[a-z-]+)=(\S+)$", job.read_text(), re.MULTILINE))
    assert len(options) == job.read_text().count("#SBATCH")
    first, last = map(int, options["--array"].split("-"))
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_COUNT": str(last)}
    words = [
        subprocess.run(["bash", job], env={**path, "SLURM_ARRAY_TASK_ID": str(task)}, capture_output=True, text=True)
        for task in (first, last)
    ]
    shards = [(lines := done.stdout.split())[lines.index("--executor") + 1] for done in words]
    assert shards == ["shard:1/64", "shard:64/64"]
    assert [find_engine(shard).shard for shard in shards] == [(1, 64), (64, 64)]
    assert words[0].stdout.split()[:2] == ["moe-placer", "compare"]


def test_the_indexed_job_runs_one_shard_for_each_index() -> None:
    job = yaml.safe_load((EXAMPLES / "indexed-job.yaml").read_text())
    assert (job["apiVersion"], job["kind"], job["spec"]["completionMode"]) == ("batch/v1", "Job", "Indexed")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    assert int(given["SHARDS"]) == job["spec"]["completions"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (text,) = container["args"]
    last = {**given, "JOB_COMPLETION_INDEX": str(job["spec"]["completions"] - 1), "PATH": os.environ["PATH"]}
    shown = text.replace("exec moe-placer", "echo")
    done = subprocess.run([*container["command"], shown], env=last, capture_output=True, text=True)
    words = done.stdout.split()
    assert words[words.index("--executor") + 1] == "shard:64/64"
    assert words[-2:] == ["-o", given["REPORT"]]


def test_the_variables_that_the_script_documents_are_those_that_it_reads() -> None:
    text = REPLAN.read_text()
    documented = set(re.findall(r"^#   ([A-Z_]+) ", text, re.MULTILINE))
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert documented == set(re.findall(r"\$\{?([A-Z_]+)\b", body))


def test_the_workflow_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workflow = yaml.safe_load((EXAMPLES / "github-workflow.yaml").read_text())
    (job,) = workflow["jobs"].values()
    commands = [shlex.split(step["run"].partition(">")[0]) for step in job["steps"] if "run" in step]
    assert commands[0] == ["pip", "install", "moe-placer"]
    (tmp_path / "instance.yaml").write_text((REPO / "instances" / "tiny.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    for program, *words in commands[1:]:
        assert program == "moe-placer"
        told(*("1" if word == "300" else word for word in words), *(["--workers", 1] if words[0] == "solve" else []))
    (uploaded,) = [step["with"]["path"] for step in job["steps"] if "upload" in step.get("uses", "")]
    assert uploaded.split() == ["out", "solve.json"]


def instructions(*kinds: str) -> list[list[str]]:
    """Return the words of a Containerfile's instructions of some kinds."""
    lines = [line for line in (REPO / "Containerfile").read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line.split() and line.split()[0] in kinds]


def test_the_container_file_is_well_formed() -> None:
    known = ("FROM", "COPY", "RUN", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD")
    lines = [line for line in (REPO / "Containerfile").read_text().splitlines() if line and line[0] not in "# "]
    assert all(line.split()[0] in known for line in lines)
    stages = [words[-1] for words in instructions("FROM") if "AS" in words]
    sources = [word for words in instructions("COPY") if "--from" not in words[1] for word in words[1:-1]]
    assert all((REPO / source).exists() for source in sources)
    assert all(words[1].removeprefix("--from=") in stages for words in instructions("COPY") if "--from" in words[1])
    let_in = {line[1:] for line in (REPO / ".containerignore").read_text().splitlines() if line.startswith("!")}
    assert set(sources) == let_in
    (entry,) = instructions("ENTRYPOINT")
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    assert json.loads(" ".join(entry[1:])) == list(scripts)
    assert instructions("USER")[-1] == ["USER", "10001"], "not root"
    for package in tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values():
        assert package in sources


PIPELINES = (REPO / "docs" / "pipelines.md").read_text()


def table() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) \|", PIPELINES.partition("## In Python")[2], re.MULTILINE)
    return {command: re.findall(r"`moe_placer\.(\w+)", functions) for command, functions in rows}


def test_every_command_is_a_documented_function() -> None:
    assert table().keys() == cli.commands.keys()
    for command, names in table().items():
        assert names, command
        for name in names:
            function: Any = getattr(moe_placer, name)
            assert name in moe_placer.__all__
            assert function.__doc__
            code = getattr(function, "__code__", None)
            if code is not None and code.co_argcount + code.co_kwonlyargcount >= 4:
                assert "Parameters\n" in function.__doc__, name


def test_the_python_example_runs(tmp_path: Path, given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PIPELINES, re.DOTALL)
    shown = {"gpus=64": "gpus=4, gpus_per_node=2", "time_s=600": "time_s=1, workers=1", "max_gap=0.05": "max_gap=50"}
    for written, small in shown.items():
        assert written in code
        code = code.replace(written, small)
    monkeypatch.chdir(tmp_path)
    Path(given["RECORDING"]).rename(tmp_path / "recorded.npz")
    exec(compile(code, "docs/pipelines.md", "exec"), {})
    assert "physical_to_logical_map" in (tmp_path / "plan.json").read_text()
