"""All recordings alike: damaged, hostile and huge ones, and what they become."""

from __future__ import annotations

import base64
import dataclasses
import json
import random
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_instance
from engine_recordings import (
    Truth,
    make,
    write_bundle_trace,
    write_routed_experts,
    write_sglang_detail,
    write_sglang_stat,
    write_trtllm,
    write_vllm_stats,
)
from recording_reading import KINDS, mistake_of, read, write_counts

from moe_placer.engines import torch_file
from moe_placer.engines.recordings import Options, read_recording, tally, write_recording
from moe_placer.errors import InputError
from moe_placer.traffic import readers
from moe_placer.traffic.readers import read_load
from moe_placer.traffic.stored_choices import draw_tokens
from moe_placer.traffic.trace_reader import read_trace

# --- all formats ---------------------------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[Truth, Path], Path]] = {
    "stat": lambda truth, folder: write_sglang_stat(truth, folder / "stat.pt"),
    "per_token": lambda truth, folder: write_sglang_detail(truth, folder, by_token=True, misc=True)[0],
    "bundles": lambda truth, folder: write_bundle_trace(truth, folder / "trace.pt"),
    "trtllm": lambda truth, folder: write_trtllm(truth, folder / "statistic", raw=True) / "rank0.safetensors",
    "trtllm-raw": lambda truth, folder: write_trtllm(truth, folder / "statistic", raw=True) / "rank1_raw.safetensors",
    "npy": lambda truth, folder: write_routed_experts(truth, folder, "npy", with_dense=True),
    "npz": lambda truth, folder: write_routed_experts(truth, folder, "npz", with_dense=True),
    "responses": lambda truth, folder: write_routed_experts(truth, folder, "jsonl", with_dense=True),
    "stats": lambda truth, folder: write_vllm_stats(truth, folder / "stats.jsonl"),
    **{f"counts-{kind}": (lambda truth, folder, kind=kind: write_counts(folder, kind, truth.load)) for kind in KINDS},
}


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_recordings_give_one_message(tmp_path: Path, name: str) -> None:
    file = WRITERS[name](make(), tmp_path)
    path = file.parent if name.startswith("trtllm") else file
    raw, chance = file.read_bytes(), random.Random(name)
    read(path)
    refused = 0
    for trial in range(60):
        changed = bytearray(raw)
        if trial % 3 == 0:
            del changed[chance.randrange(len(raw)) :]
        elif trial % 3 == 1:
            for _ in range(chance.randrange(1, 6)):
                changed[chance.randrange(len(raw))] = chance.randrange(256)
        else:  # parts swapped
            a, b = sorted(chance.randrange(len(raw)) for _ in range(2))
            changed = changed[b:] + changed[a:b] + changed[:a]
        file.write_bytes(changed)
        try:
            read(path)
        except InputError as found:
            (mistake,) = found.mistakes
            refused += "\n" not in str(mistake)
    assert refused > 15


@pytest.mark.parametrize("name", WRITERS)
def test_a_recording_becomes_traffic(tmp_path: Path, name: str) -> None:
    truth = make(4, dense=(), layers=2, experts=4, redundant=0)
    file = WRITERS[name](truth, tmp_path)
    recorded = read(file.parent if name.startswith("trtllm") or name == "per_token" else file)
    write_recording(tmp_path / "recording.npz", recorded)
    instance = tiny_instance()  # 2 MoE layers, 4 experts, top-2
    load = read_load(tmp_path / "recording.npz", instance)
    assert np.array_equal(load.load, truth.load)
    with np.load(tmp_path / "recording.npz") as stored:
        about = json.loads(bytes(stored["about"]))
        assert about == {
            "schema": "moe-placer/recording/1",
            **json.loads(json.dumps(dataclasses.asdict(recorded.about))),
        }
        assert {key: stored[key].shape for key in recorded.arrays} == {k: v.shape for k, v in recorded.arrays.items()}
    if "topk" in recorded.arrays:
        trace = read_trace(tmp_path / "recording.npz", instance)
        assert np.array_equal(trace.load, truth.load)


def test_drawn_tokens_are_spread_evenly_and_the_same_each_time(tmp_path: Path) -> None:
    drawn = draw_tokens(10_000, 1000)
    assert len(set(drawn.tolist())) == 1000
    assert np.array_equal(drawn, draw_tokens(10_000, 1000))
    assert (np.diff(drawn) > 0).all()
    thirds = np.bincount(drawn * 3 // 10_000)
    assert thirds.min() > 270
    assert draw_tokens(5, 9).tolist() == [0, 1, 2, 3, 4]
    truth = make(2)
    file = write_routed_experts(truth, tmp_path, "npy", with_dense=False)
    recorded = read(file, keep_tokens=3)
    assert np.array_equal(recorded.load, truth.load)
    assert np.array_equal(recorded.arrays["topk"], truth.tokens[draw_tokens(len(truth.tokens), 3)])
    assert recorded.about.kept_tokens == 3
    assert "topk" not in read(file, keep_tokens=0).arrays


def test_steps_are_merged_into_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MOST_WINDOWS", 2)
    truth = make(9, steps=5)
    recorded = read(write_sglang_stat(truth, tmp_path / "stat.pt", 0))
    steps = np.array([sum(truth.counts(s, r) for r in range(2))[truth.moe] for s in range(5)])
    assert np.array_equal(recorded.arrays["window_load"], [steps[:3].sum(axis=0), steps[3:].sum(axis=0)])


def test_progress_is_told_and_reaches_its_end(tmp_path: Path) -> None:
    for name, writer in WRITERS.items():
        folder = tmp_path / name
        folder.mkdir()
        file = writer(make(), folder)
        told: list[tuple[int, int, str]] = []
        note = partial(_note, told)
        read_recording([file.parent if "trtllm" in name else file], Options(report=note))
        assert told[-1][0] == told[-1][1]
        assert [news[0] for news in told] == sorted(news[0] for news in told)


def _note(told: list[tuple[int, int, str]], *news: Any) -> None:
    told.append(news)


def test_a_damaged_file_among_several_is_named(tmp_path: Path) -> None:
    files = write_sglang_detail(make(ranks=3), tmp_path, by_token=True)
    raw = bytearray(files[0].read_bytes())
    at = raw.find(b"PK\x03\x04", raw.find(b"data/0"))
    raw[at - 8] ^= 1  # in the first tensor's values
    files[0].write_bytes(raw)
    assert mistake_of(*files).file == files[0]


def test_arrays_on_the_disk_may_be_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_BYTES", 100)
    truth = make()
    file = write_routed_experts(truth, tmp_path, "npy", with_dense=True)
    assert file.stat().st_size > 300
    assert np.array_equal(read(file).load, truth.load)


def test_large_tensors_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "_MAPPED_BYTES", 10)
    truth = make()
    assert np.array_equal(read(write_sglang_stat(truth, tmp_path / "stat.pt")).load, truth.load)


def test_more_source_ranks_than_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_MOST_SOURCE_COUNTS", 20)
    files = write_sglang_detail(make(), tmp_path, by_token=False)
    assert mistake_of(*files).found == "2 source ranks x 3 layers x 6 experts"


def test_a_parquet_bomb_is_not_unpacked(tmp_path: Path) -> None:
    import pyarrow.parquet

    zeros = pyarrow.array(np.zeros(20_000_000, np.int8))  # packs to a few kB
    pyarrow.parquet.write_table(pyarrow.table({"layer": zeros}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
    assert "20,000,000 rows" in mistake_of(tmp_path / "bomb.parquet").found


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.jsonl"])
def test_huge_declared_shapes_take_no_memory(tmp_path: Path, name: str) -> None:
    text = b"{'descr': '<i4', 'fortran_order': False, 'shape': (1099511627776, 60, 8), }"
    head = b"\x93NUMPY\x01\x00" + (len(text) + 54).to_bytes(2, "little") + text + b" " * 53 + b"\n"
    file = tmp_path / name
    if name == "a.npy":
        file.write_bytes(head + bytes(1000))
    elif name == "a.npz":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("topk.npy", head + bytes(1000))
    else:
        file.write_text(json.dumps({"routed_experts": base64.b64encode(head + bytes(1000)).decode()}))
    found = mistake_of(file).found
    assert "GB once unpacked" in found or "disagree" in found


def test_a_zip_bomb_of_tokens_is_not_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", topk=np.zeros((2_000_000, 6, 2), np.int8))
    assert "a zip bomb?" in mistake_of(tmp_path / "a.npz").expected
