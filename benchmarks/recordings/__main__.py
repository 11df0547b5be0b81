"""``python -m benchmarks.recordings [--tokens 10000000] [--keep FOLDER]``: raw rows, one JSON object a line.

Writes a recording of so many tokens, 60 MoE layers and top-8 of 256 experts (480 bytes a token), and runs `inspect` and
`solve --solver greedy --no-dag` on it, each as a process of its own. Tokens repeat after 20,000: what reading takes
does not depend on that.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.checkouts import this_checkout
from benchmarks.kept_runs import print_row

LAYERS, EXPERTS, TOP_K, DIFFERENT = 60, 256, 8, 20_000
SPREAD = 0.7  # standard deviation of ln popularity, as real routing has it
INSTANCE: dict[str, Any] = {
    "name": "recorded-60x256",
    "model": {
        "layers": LAYERS + 1, "dense_layers": [0], "hidden_size": 7168, "attention_heads": 128, "head_dim": 128,
        "experts": EXPERTS, "top_k": TOP_K, "expert_hidden_size": 2048, "expert_matrices": 3, "dtype": "fp8",
    },
    "cluster": {
        "nodes": 16, "gpus_per_node": 8, "gpu": "h100-sxm",
        "fabric": {"kind": "fat-tree", "nodes_per_leaf": 4, "spines": 4, "oversubscription": 2.0},
    },
    "parallelism": {"dp": 1, "attention_tp": 1},
    "placement": {"slots_per_gpu": 2, "replicas": {"redundant_slots": 0}, "replica_routing": "even"},
    "objective": {"metric": "time"},
}  # fmt: skip


def main() -> None:
    """Print a row for each command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recordings")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="of the recording [10,000,000]")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the recording goes, and stays")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (asked.keep or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "recording.npz", asked.tokens)
        traffic = {"kind": "trace", "files": ["recording.npz"]}
        (folder / "instance.json").write_text(json.dumps({**INSTANCE, "traffic": traffic}))
        size = (folder / "recording.npz").stat().st_size
        for words in (["inspect"], ["solve", "--solver", "greedy", "--no-dag", "-q", "-o", f"{scratch}/out"]):
            row = {"command": words[0], "tokens": asked.tokens, "gb": size / 1e9, "load": os.getloadavg()[0]}
            print_row(**row, **_measured([*words, str(folder / "instance.json")], Path(scratch)))


def _write(file: Path, tokens: int) -> None:
    """Write what `numpy.savez` would, a block at a time."""
    block, written = _block(np.random.default_rng(0)), 0
    with zipfile.ZipFile(file, "w") as archive, archive.open("topk.npy", "w", force_zip64=True) as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (tokens, LAYERS, TOP_K)}
        np.lib.format.write_array_header_1_0(stream, header)
        while written < tokens:
            part = np.roll(block, written // DIFFERENT, axis=0)[: tokens - written]
            stream.write(part.tobytes())
            written += len(part)


def _block(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw tokens' experts by popularity, without replacement (Gumbel)."""
    block = np.empty((DIFFERENT, LAYERS, TOP_K), np.uint8)
    for layer in range(LAYERS):
        keys = rng.normal(0, SPREAD, EXPERTS) + rng.gumbel(size=(DIFFERENT, EXPERTS))
        block[:, layer] = np.argpartition(-keys, TOP_K, axis=1)[:, :TOP_K]
    return block


def _measured(words: list[str], folder: Path) -> dict[str, float]:
    """Run a command; return its CPU and wall seconds and the most memory it had."""
    ran = this_checkout().run(words, folder)
    if ran.code:
        raise SystemExit(f"{words[0]} ended with exit code {ran.code}")
    return {"wall_s": ran.seconds, "cpu_s": ran.cpu_s, "peak_gb": ran.peak_bytes / 1e9}


if __name__ == "__main__":
    main()
