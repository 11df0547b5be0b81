"""``moe-placer export`` and ``moe-placer check-file`` as their users meet them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import REPO, fails, run

EPLB = REPO / "instances" / "eplb-288.yaml"
SMALL = """
name: small
model: {layers: 4, dense_layers: [0], hidden_size: 64, attention_heads: 4, head_dim: 16, experts: 12, top_k: 2,
  expert_hidden_size: 32, vocab_size: 1000}
cluster: {nodes: 4, gpus_per_node: 2, gpu: {memory_gb: 1.0}, fabric: {kind: full-mesh}}
placement: {slots_per_gpu: 2, replicas: {redundant_slots: 4}, replica_routing: even}
traffic: {kind: synthetic, tokens_per_gpu: 64}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("small")
    instance = folder / "small.yaml"
    instance.write_text(SMALL)
    done = run("solve", instance, "-o", folder, "--time-limit", 10, "--workers", 1, "--no-dag")
    assert done.returncode == 0, done.stderr
    return instance, folder / "placement.json"


def test_a_plan_is_written_with_how_to_start_the_engine(small: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    done = run("export", *small, "--format", "sglang", "-o", file)
    assert done.returncode == 0, done.stderr
    assert f"--init-expert-location {file}" in done.stdout
    assert "--ep-num-redundant-experts 4" in done.stdout
    assert "SGLang 0.5.23" in done.stdout
    assert (tmp_path / "plan.json.start.txt").read_text() == done.stdout
    rows = json.loads(file.read_text())["physical_to_logical_map"]
    assert [len(row) for row in rows] == [16] * 4


def test_what_the_engine_runs_can_be_read_back_verified_and_simulated(small: tuple[Path, Path], tmp_path: Path) -> None:
    instance, placement = small
    file, back = tmp_path / "plan.json", tmp_path / "back.json"
    assert run("export", *small, "--format", "vllm-plan", "-o", file).returncode == 0
    done = run("check-file", file, "--format", "vllm-plan", "--instance", instance, "-o", back, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["ok"] is True
    verified = json.loads(run("verify", instance, placement, "--no-dag", "--json").stdout)
    assert figures["total_z"] == pytest.approx(verified["total_z"])
    assert run("verify", instance, back, "--no-dag").returncode == 0
    assert run("schedule", instance, back, "--json").returncode == 0
    assert json.loads(back.read_text())["gpu"] == [
        [sorted(replicas) for replicas in layer] for layer in json.loads(placement.read_text())["gpu"]
    ]


def test_json_says_the_same(small: tuple[Path, Path], tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("n[1-4]\n")
    file = tmp_path / "plan.yaml"
    launch = ("--launcher", "slurm", "--hosts", hosts)
    done = run("export", *small, "--format", "trtllm", "-o", file, *launch, "--json")
    content: dict[str, Any] = json.loads(done.stdout)
    assert content["ranks"] == 8
    assert content["redundant_slots"] == 4
    assert f"load_balancer: {file}" in content["config"]
    assert Path(content["launcher_file"]).read_text() == "n1\nn1\nn2\nn2\nn3\nn3\nn4\nn4\n"
    assert content["launcher_file"] in content["launch"][0]


def test_a_wrong_file_is_told_once_and_nothing_is_written(small: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text('{"physical_to_logical_map": [[0, 1], [1, 0]], "made_by": "x"}')
    check = ("check-file", file, "--format", "sglang", "--instance", small[0])
    fails(1, *check, "-o", tmp_path / "back.json", says="SGLang 0.5.23 stops with a TypeError")
    assert not (tmp_path / "back.json").exists()
    done = run(*check, "--json")
    content = json.loads(done.stdout)
    assert (done.returncode, content["ok"], len(content["mistakes"])) == (1, False, 1)
    fails(1, "check-file", tmp_path / "none.json", "--format", "omni", says="no such file")


def test_calls_that_make_no_sense_exit_2(small: tuple[Path, Path], tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    fails(2, "export", small[0], "--format", "sglang", "-o", plan, says="needs a PLACEMENT")
    fails(2, "export", *small, "--format", "sglang", "-o", tmp_path / "plan.pt", says="end in .json")
    fails(2, "export", *small, "--format", "sglang", "-o", plan, "--launcher", "slurm", says="go together")
    fails(2, "check-file", plan, "--format", "sglang", "-o", plan, says="need --instance")
    assert list(tmp_path.iterdir()) == []


def test_160_slots_on_64_gpus_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    """What a new user found only when SGLang stopped: the counts that fit are in the message."""
    text = SMALL.replace("experts: 12", "experts: 128").replace("redundant_slots: 4", "redundant_slots: 32")
    text = text.replace("nodes: 4, gpus_per_node: 2", "nodes: 8, gpus_per_node: 8").replace("per_gpu: 2", "per_gpu: 3")
    instance = tmp_path / "odd.yaml"
    instance.write_text(text)
    solve = ("solve", instance, "-o", tmp_path, "--solver", "greedy", "--workers", 1, "--no-dag")
    assert run(*solve).returncode == 0
    export = ("export", instance, tmp_path / "placement.json", "--format", "sglang", "-o", tmp_path / "plan.json")
    fails(1, *export, says="160 slots on 64 GPUs, 2.5 each, expected 0 (2 slots on each GPU) or 64")
    assert not (tmp_path / "plan.json").exists()


def test_costs_between_ranks_need_no_placement(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    done = run("export", EPLB, "--format", "rank-cost-matrix", "-o", file)
    assert done.returncode == 0, done.stderr
    assert "#37923 is open" in done.stdout
    done = run("check-file", file, "--format", "rank-cost-matrix", "--instance", EPLB)
    assert "costs between 32 ranks" in done.stdout
