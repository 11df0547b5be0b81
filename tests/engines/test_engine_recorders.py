"""Recordings as SGLang's own code counts, converts, saves and reads them, against what import makes of them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_recordings import Truth, make
from engine_sources import functions_of, source_of, versions_of
from recording_reading import read

pytestmark = pytest.mark.engines


def recorder(version: str) -> dict[str, Any]:
    """Return the functions of SGLang's recorder, and of the reader that belongs to it."""
    import torch

    eplb = source_of("sglang", version) / "sglang" / "srt" / "eplb"
    counting = {"_convert_per_token_to_global_physical_count", "_convert_global_physical_count_to_logical_count"}
    found = functions_of(eplb / "expert_distribution.py", counting, torch=torch)
    reader = functions_of(
        eplb / "eplb_simulator" / "reader.py",
        {"read_mode_per_pass"},
        torch=torch, tqdm=list, defaultdict=defaultdict, Path=Path,
    )  # fmt: skip
    return found | reader


def saved(truth: Truth, folder: Path, functions: dict[str, Any]) -> Path:
    """Record every pass of every rank with SGLang's functions, and save it with torch."""
    import torch

    for rank in range(truth.ranks):
        records = []
        for step in range(len(truth.topk)):
            ids = torch.from_numpy(truth.physical(step, rank))
            counts = functions["_convert_per_token_to_global_physical_count"](
                ids.shape[1], num_layers=truth.layers, num_physical_experts=truth.p2l.shape[1], _topk_ids_of_layer=ids
            )
            tokens = ids.shape[1]
            record = {"forward_pass_id": step, "rank": rank, "gatherer_key": "primary", "misc_objects": []}
            record |= {"input_ids": list(range(tokens)), "extend_seq_lens": [tokens], "forward_mode": 1}
            records.append({**record, "topk_ids_of_layer": ids, "global_physical_count": counts})
        content = {"records": records, "last_physical_to_logical_map": torch.from_numpy(truth.p2l)}
        torch.save(content, folder / f"expert_distribution_recorder_1764000000.5_{rank}.pt")
    return folder


@pytest.mark.parametrize("version", versions_of("sglang"))
@pytest.mark.parametrize("seed", range(3))
def test_passes_are_what_sglangs_own_reader_makes_of_them(tmp_path: Path, version: str, seed: int) -> None:
    functions = recorder(version)
    truth = make(seed, dense=(0, 1), layers=5, ranks=4, steps=4, top_k=3, experts=16, redundant=8)
    folder = saved(truth, tmp_path, functions)
    official = functions["read_mode_per_pass"](folder)
    logical = functions["_convert_global_physical_count_to_logical_count"](
        official["global_physical_count_of_forward_pass"],
        num_layers=truth.layers,
        num_logical_experts=truth.experts,
        physical_to_logical_map=official["last_physical_to_logical_map"],
    ).numpy()
    recorded = read(folder)
    filled = logical[logical.any(axis=(1, 2))]
    assert np.array_equal(recorded.arrays["window_load"], filled[:, truth.moe])
    assert np.array_equal(recorded.arrays["source_load"], truth.source_load)
    assert np.array_equal(recorded.arrays["topk"], truth.tokens)


@pytest.mark.parametrize("version", versions_of("sglang"))
def test_a_stat_dump_of_torchs(tmp_path: Path, version: str) -> None:
    import torch

    convert = recorder(version)["_convert_global_physical_count_to_logical_count"]
    truth = make(4, dense=(0,), layers=4, ranks=3, steps=3, experts=12, redundant=4)
    counts = np.zeros((len(truth.topk), *truth.p2l.shape), np.int32)
    for step in range(len(truth.topk)):
        for rank in range(truth.ranks):
            for layer, ids in enumerate(truth.physical(step, rank)):
                counts[step, layer] += np.bincount(ids[ids >= 0], minlength=truth.p2l.shape[1])
    logical = convert(
        torch.from_numpy(counts),
        num_layers=4,
        num_logical_experts=12,
        physical_to_logical_map=torch.from_numpy(truth.p2l),
    )
    file = tmp_path / "expert_distribution_recorder_1764000000.5.pt"
    torch.save({"rank": 0, "logical_count": logical, "average_utilization_rate_over_window": 0.7}, file)
    assert np.array_equal(read(file).load, truth.load)
