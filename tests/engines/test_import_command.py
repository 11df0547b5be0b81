"""``moe-placer import`` as its users meet it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import fails, run
from engine_recordings import make, write_routed_experts, write_sglang_detail, write_sglang_stat
from test_torch_file import hostile
from torch_writer import write_archive


def test_it_says_what_it_found(tmp_path: Path) -> None:
    truth = make()
    files = write_sglang_detail(truth, tmp_path / "dump", by_token=True, misc=True)
    done = run("import", tmp_path / "dump", "-o", tmp_path / "recording.npz", "--tokens", 7)
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[1]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert done.stdout.splitlines()[0] == "SGLang expert distribution, mode per_token"
    assert f"2: {files[0].name}, {files[1].name}" in lines["files"]
    assert lines["layers"].endswith("2 MoE layers: 1-2; 0 dense")
    assert lines["experts"].endswith(" 6")
    assert lines["tokens"].endswith(f"{len(truth.tokens)}, of which the file keeps 7")
    assert lines["sources"].endswith("2 ranks told apart")
    assert "rank_tokens [2, 2, 2], rdma_tokens [2, 2, 1]" in lines["measured"]
    assert done.stderr == f"Written: {tmp_path / 'recording.npz'}\n"
    with np.load(tmp_path / "recording.npz") as stored:
        assert np.array_equal(stored["load"], truth.load)


def test_json_is_one_object(tmp_path: Path) -> None:
    truth = make()
    file = write_routed_experts(truth, tmp_path, "npy", with_dense=True)
    done = run("import", file, "-o", tmp_path / "recording.npz", "--experts", 9, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == "moe-placer/import/1"
    assert (found["layers"], found["dense_layers"], found["experts"]) == ([1, 2], [0], 9)
    assert found["arrays"]["topk"] == [len(truth.tokens), 2, 2]
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["system", "import", "instance"])
def test_hostile_files_run_nothing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_archive(tmp_path / "bad.pt", hostile()[name], [])
    fails(1, "import", file, "-o", tmp_path / "recording.npz", says="expected a .pt file of tensors")
    assert {path.name for path in tmp_path.iterdir()} == {"bad.pt"}


def test_wrong_calls(tmp_path: Path) -> None:
    file = write_sglang_stat(make(), tmp_path / "stat.pt")
    fails(2, "import", "-o", tmp_path / "recording.npz", says="Missing argument")
    fails(2, "import", file, says="Missing option")
    fails(2, "import", file, "-o", tmp_path / "recording.csv", says="ends in .npz")
    fails(2, "import", file, "-o", tmp_path / "recording.npz", "--tokens", -1, says="--tokens")
    fails(1, "import", tmp_path / "none.pt", "-o", tmp_path / "recording.npz", says="found no such file")
    fails(1, "import", file, "-o", file / "recording.npz", says="found a place that cannot be written to")
    assert {path.name for path in tmp_path.iterdir()} == {"stat.pt"}
