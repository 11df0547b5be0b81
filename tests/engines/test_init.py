"""``moe-placer init``: from a config, a recording and a few options to an instance that is valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import fails, run
from drafted import CONFIGS, SMALL, draft, recorded, stat, write
from engine_recordings import make, write_sglang_detail
from topology_files import IBNET, NCCL, TREE
from torch_writer import save

from moe_placer.engines.recordings import Options, read_recording, write_recording
from moe_placer.errors import InputError
from moe_placer.instance import load_instance
from moe_placer.traffic import load_traffic

# --- instances -----------------------------------------------------------------------------------------------------


def test_what_nobody_said_is_assumed_and_said_to_be(tmp_path: Path) -> None:
    instance = draft(tmp_path, recorded(tmp_path), gpus=2, gpus_per_node=1)
    assert (instance.engine, instance.placement.slots_per_gpu, instance.replicas_per_layer) == ("sglang", 3, 6)
    assert instance.model.dense_layers == (0,)
    assert (instance.traffic.kind, instance.traffic.sources) == ("trace", "recorded")  # type: ignore[union-attr]
    text = (tmp_path / "instance.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 140
    for said in (
        "# - cluster.gpu: H100 (--gpu); mfu 0.6",
        "NVIDIA H100 data sheet (SXM)",
        "# as it wrote the recording (--engine)",
        "2 source ranks: each node has the traffic of its own",
        "all nodes on one switch that never blocks",
        "SGLang prefers near replicas (sglang-static plans for that)",
        "v_head_dim",
    ):
        assert said in text.replace("\n#   ", " "), said
    truth = make()
    assert np.array_equal(sum(r.load for r in load_traffic(instance).recordings), truth.load)


def test_what_is_said_is_taken(tmp_path: Path) -> None:
    wishes: dict[str, Any] = {
        "name": "mine", "engine": "vllm", "gpu": "B200", "gpus": 8, "gpus_per_node": 2, "redundant_slots": 2,
        "attention_tp": 2, "tokens_per_gpu": 7.5, "node_gb_per_s": 123.0, "nodes_per_leaf": 2, "spines": 3,
        "oversubscription": 1.5,
    }  # fmt: skip
    instance = draft(tmp_path, recorded(tmp_path), **wishes)
    assert instance.name == "mine"
    assert instance.engine == "vllm"
    assert instance.cluster.gpu.name == "B200"
    assert instance.cluster.gpu.peak_tflops == 2250
    assert instance.replicas_per_layer == 8
    assert (instance.parallelism.attention_tp, instance.traffic.tokens_per_gpu) == (2, 7.5)
    expected = {"kind": "fat-tree", "nodes_per_leaf": 2, "spines": 3, "node_gb_per_s": 123.0, "oversubscription": 1.5}
    assert instance.cluster.fabric.model_dump(exclude_none=True) == {
        **expected, "link_utilization": 0.9, "uplinks": "spray",
    }  # fmt: skip
    assert "oversubscription (" not in (tmp_path / "instance.yaml").read_text()


def test_source_ranks_that_do_not_fit_the_nodes_are_left_alone(tmp_path: Path) -> None:
    instance = draft(tmp_path, recorded(tmp_path), gpus=6, gpus_per_node=2)
    assert instance.traffic.sources == "mix"  # type: ignore[union-attr]
    assert "2 source ranks do not fit 3 nodes" in (tmp_path / "instance.yaml").read_text()


def test_counts_serve_where_some_tokens_are_left_out(tmp_path: Path) -> None:
    files = write_sglang_detail(make(), tmp_path / "dump", by_token=True)
    write_recording(tmp_path / "recording.npz", read_recording(files, Options(keep_tokens=5)))
    instance = draft(tmp_path, tmp_path / "recording.npz", gpus=2, gpus_per_node=1)
    assert instance.traffic.kind == "load"
    assert "trace: 5 of them" in (tmp_path / "instance.yaml").read_text()


def test_other_dispatch_needs_whole_tokens(tmp_path: Path) -> None:
    instance = draft(tmp_path, recorded(tmp_path), gpus=2, gpus_per_node=1, dispatch="per-node")
    assert (instance.placement.dispatch, instance.traffic.kind) == ("per-node", "trace")
    with pytest.raises(InputError, match="found counts only, expected whole tokens"):
        draft(tmp_path, stat(tmp_path), gpus=2, dispatch="per-node")


@pytest.mark.parametrize(
    ("wishes", "path", "says"),
    [
        ({}, "--gpus", "found nothing"),
        ({"gpus": 7, "gpus_per_node": 2}, "--gpus", "a multiple of 2"),
        ({"gpus": 4, "gpus_per_node": 1, "redundant_slots": 1}, "--redundant-slots", "7 slots on 4 GPUs, 1.75 each"),
        (
            {"gpus": 2, "gpus_per_node": 1, "slots_per_gpu": 2},
            "--slots-per-gpu",
            "4 slots for 6 experts, expected at least 3",
        ),
        ({"gpus": 2, "slots_per_gpu": 3, "redundant_slots": 0}, "--redundant-slots, --slots-per-gpu", "found both"),
        ({"gpus": 10**6}, "--gpus", ""),
        ({"gpus": 2, "gpus_per_node": 1, "name": "a/b"}, "--name", "a/b"),
        ({"gpus": 2, "gpus_per_node": 1, "oversubscription": 2.0}, "--oversubscription", "--nodes-per-leaf"),
        ({"gpus": 2, "gpus_per_node": 1, "spines": 2}, "--spines", "--nodes-per-leaf"),
        ({"gpus": 2, "gpus_per_node": 1, "nodes_per_leaf": 1, "oversubscription": 1e6}, "--oversubscription", "1000"),
    ],
)
def test_wishes_that_contradict(tmp_path: Path, wishes: dict[str, Any], path: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        draft(tmp_path, recorded(tmp_path), **wishes)
    mistake = caught.value.mistakes[0]
    assert mistake.path == path
    assert says in str(mistake)


def test_the_sizes_of_the_issue(tmp_path: Path) -> None:
    """128 experts on 64 GPUs: 32 redundant slots are no plan for an engine, 64 are."""
    np.savez(tmp_path / "load.npz", load=np.ones((94, 128), int))
    with pytest.raises(InputError, match=r"160 slots on 64 GPUs, 2.5 each, expected 0 .* or 64 "):
        draft(tmp_path, tmp_path / "load.npz", CONFIGS["qwen3_moe"], gpus=64, redundant_slots=32, engine="sglang")
    instance = draft(
        tmp_path, tmp_path / "load.npz", CONFIGS["qwen3_moe"], gpus=64, redundant_slots=64, engine="sglang"
    )
    assert instance.placement.slots_per_gpu == 3
    without = draft(tmp_path, tmp_path / "load.npz", CONFIGS["qwen3_moe"], gpus=64, redundant_slots=32)
    assert (without.engine, without.placement.slots_per_gpu) == (None, 3)


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_writes_an_instance_that_solve_takes(tmp_path: Path) -> None:
    config, recording = write(tmp_path, "config.json", SMALL), recorded(tmp_path)
    out = tmp_path / "folder" / "instance.yaml"
    arguments = ("init", "--model", config, "--recording", recording, "--gpus", 2, "--gpus-per-node", 1, "-o", out)
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("deepseek-v2-2xh100: 2 GPUs, 3 slots on each, 0 replicas beyond one of each expert\n")
    assert "cluster.fabric: all nodes on one switch" in done.stdout
    assert done.stderr == f"Written: {out}\n"
    assert yaml.safe_load(out.read_text())["traffic"]["files"] == ["../recording.npz"]
    assert run("inspect", out).returncode == 0
    solved = run("solve", out, "-o", tmp_path / "out", "--no-dag", "--workers", 1, "--time-limit", 10)
    assert solved.returncode == 0, solved.stderr
    fails(1, *arguments, says="found a file that is there, expected another --output, or --force to replace it")
    content = json.loads(run(*arguments, "--force", "--json").stdout)
    assert content["schema"] == "moe-placer/init/1"
    assert content["instance"]["engine"] == "sglang"
    assert len(content["assumed"]) > 4


def test_the_command_reads_topologies(tmp_path: Path) -> None:
    config, recording = write(tmp_path, "config.json", SMALL), stat(tmp_path)
    base = ("init", "--model", config, "--recording", recording, "--force", "-o", tmp_path / "i.yaml")
    tree, node = write(tmp_path, "topology.conf", TREE), write(tmp_path, "node.xml", NCCL)
    done = run(*base, "--topology", tree, "--topology", node, "--oversubscription", 2, "--engine", "trtllm")
    assert done.returncode == 0, done.stderr
    instance = load_instance(tmp_path / "i.yaml")
    assert (instance.cluster.nodes, instance.cluster.gpus_per_node) == (8, 2)
    assert instance.cluster.fabric.node_gb_per_s == 75.0
    assert (
        "# Nodes in order (Slurm's topology.conf, tree and NCCL's topology): srv[1101-1104,1201-1203,1300]"
        in (tmp_path / "i.yaml").read_text()
    )
    ib = write(tmp_path, "ib.out", IBNET)
    done = run(*base, "--topology", ib, "--gpus-per-node", 1, "--hosts", "n[0-1],n2")
    assert done.returncode == 0, done.stderr
    fabric = load_instance(tmp_path / "i.yaml").cluster.fabric.model_dump()
    assert (fabric["nodes_per_leaf"], fabric["oversubscription"], fabric["node_gb_per_s"]) == (2, 2.0, 100.0)
    fails(1, *base, "--topology", tree, "--gpus", 8, says="--gpus: found 8, expected 64: 8 nodes of 8 GPUs")
    fails(1, *base, "--topology", tree, "--hosts", "srv[", says="--hosts: found brackets that do not match")
    fails(1, *base, "--topology", tree, "--hosts", "srv1101,srv1101", says="a host twice")
    fails(2, *base, "--hosts", "a", says="they need --topology FILE")
    fails(1, *base, "--topology", tmp_path / "none.conf", says="no such file")


def test_wrong_calls_write_nothing(tmp_path: Path) -> None:
    config, recording = write(tmp_path, "config.json", SMALL), stat(tmp_path)
    before = set(tmp_path.iterdir())
    base = ("init", "--model", config, "--recording", recording)
    fails(2, *base, says="Missing option '-o'")
    fails(2, "init", "--model", config, "-o", tmp_path / "i.yaml", says="Missing option '--recording'")
    fails(2, *base, "--gpu", "h1000", "-o", tmp_path / "i.yaml", says="--gpu")
    fails(1, *base, "--gpus", 4, "--gpus-per-node", 1, "--redundant-slots", 1, "-o", tmp_path / "i.yaml",
          says="--redundant-slots: found 6 experts + 1 redundant slots = 7 slots on 4 GPUs")  # fmt: skip
    fails(
        1,
        "init",
        "--model",
        tmp_path / "no.json",
        "--recording",
        recording,
        "-o",
        tmp_path / "i.yaml",
        says="no such file",
    )
    fails(
        1,
        "init",
        "--model",
        config,
        "--recording",
        config,
        "--gpus",
        2,
        "-o",
        tmp_path / "i.yaml",
        says="cannot be read",
    )
    assert set(tmp_path.iterdir()) == before


# --- the tutorial of docs/engines.md -------------------------------------------------------------------------------


def tutorial(folder: Path, layers: int, experts: int, *limits: Any) -> dict[str, Any]:
    """Run its commands on a recording with so many layers and experts, and return SGLang's file."""
    rng = np.random.default_rng(5)
    share = rng.lognormal(0, 0.66, (layers, experts))
    counts = np.zeros((20, layers, experts), np.int32)
    counts[:16] = rng.multinomial(65_536, share / share.sum(axis=1, keepdims=True), (16, layers))
    dump = {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}
    save(dump, folder / "expert_distribution_recorder_1764000000.pt")
    write(folder, "config.json", {**CONFIGS["qwen3_moe"], "num_hidden_layers": layers, "num_experts": experts})
    gpus = experts // 2
    init = ("init", "--model", "config.json", "--recording", "recording.npz", "--gpus", gpus, "--dtype", "fp8")
    done = run("import", "expert_distribution_recorder_1764000000.pt", "-o", "recording.npz", folder=folder)
    assert done.returncode == 0, done.stderr
    refused = run(*init, "--redundant-slots", experts // 4, "-o", "instance.yaml", folder=folder)
    assert refused.returncode == 1
    assert f"{gpus} GPUs, 2.5 each" in refused.stderr
    for command in (
        (*init, "--redundant-slots", gpus, "-o", "instance.yaml"),
        ("solve", "instance.yaml", "-o", "out", "--no-dag", *limits),
        ("export", "instance.yaml", "out/placement.json", "--format", "sglang", "-o", "plan.json"),
        ("check-file", "--format", "sglang", "plan.json", "--instance", "instance.yaml"),
    ):
        done = run(*command, folder=folder)
        assert done.returncode == 0, (command, done.stderr)
    plan: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return plan


def test_the_tutorial(tmp_path: Path) -> None:
    plan = tutorial(tmp_path, 3, 32, "--time-limit", 10, "--workers", 1)
    rows = np.array(plan["physical_to_logical_map"])
    assert rows.shape == (3, 48)
    assert all(set(row) == set(range(32)) for row in rows.tolist())


@pytest.mark.slow
def test_the_tutorial_in_full(tmp_path: Path) -> None:
    """94 layers of 128 experts on 8 x 8 H100: four commands in under two minutes on two idle cores."""
    plan = tutorial(tmp_path, 94, 128, "--time-limit", 60)
    assert np.array(plan["physical_to_logical_map"]).shape == (94, 192)
