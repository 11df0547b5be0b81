"""What TensorRT-LLM and vLLM record, and counts, are read as what was recorded."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_recordings import (
    Truth,
    as_base64,
    make,
    write_routed_experts,
    write_safetensors,
    write_trtllm,
    write_vllm_stats,
)
from hypothesis import given
from hypothesis import strategies as st
from recording_reading import EACH, KINDS, TRUTHS, fresh, mistake_of, read, write_counts

from moe_placer.engines.recordings.tally import MOST_WINDOWS

# --- TensorRT-LLM --------------------------------------------------------------------------------------------------


@EACH
@given(truth=TRUTHS, raw=st.booleans())
def test_trtllm_statistics(tmp_path: Path, truth: Truth, raw: bool) -> None:
    recorded = read(write_trtllm(truth, fresh(tmp_path) / "statistic", raw=raw))
    assert np.array_equal(recorded.load, truth.load)
    assert np.array_equal(recorded.arrays["source_load"], truth.source_load)
    assert np.array_equal(recorded.arrays["window_load"], truth.window_load)
    assert recorded.about.layers == tuple(truth.moe)
    assert recorded.about.top_k == truth.top_k
    if raw:
        assert np.array_equal(recorded.arrays["topk"], truth.tokens)


def test_trtllm_chunks_are_counted_in_full(tmp_path: Path) -> None:
    truth = make()
    recorded = read(write_trtllm(truth, tmp_path / "statistic", raw=True, chunked=True))
    assert np.array_equal(recorded.load, truth.load)
    assert any("chunks" in note for note in recorded.about.notes)


def test_wrong_statistics_folders(tmp_path: Path) -> None:
    truth = make(ranks=3)
    folder = write_trtllm(truth, tmp_path / "statistic", raw=True)
    good = (folder / "rank1.safetensors").read_bytes()
    raw = folder / "rank1_raw.safetensors"
    write_safetensors({"50_1": np.full((9, 2), 5, np.int32), "50_2": np.full((9, 2), 5, np.int32)}, raw)
    assert mistake_of(folder).found == "choices that were not counted"
    write_safetensors({"50_1": np.full((9, 2), 6, np.int32), "50_2": np.full((9, 2), 6, np.int32)}, raw)
    assert mistake_of(folder).found == "expert 6"
    raw.unlink()
    for content, says in (
        ({"50_1": np.zeros(5, np.int32)}, "shape [5]"),
        ({"50_1": np.full(6, -1, np.int32)}, "-1"),
        ({"5": np.zeros(6, np.int32)}, "the key '5'"),
    ):
        write_safetensors(content, folder / "rank1.safetensors")
        assert mistake_of(folder).found == says
    for length in (0, 7, 8, 40, len(good) - 1):
        (folder / "rank1.safetensors").write_bytes(good[:length])
        mistake_of(folder)
    (folder / "rank1.safetensors").unlink()
    assert mistake_of(folder).found == "no rank1.safetensors"
    (folder / "rank1.safetensors").write_bytes(good)
    for text in (
        "",
        "[]",
        "{}",
        '{"num_experts": 6}',
        '{"num_experts": 6.5, "num_experts_per_token": 2}',
        "[" * 10_000,
    ):
        (folder / "meta_info.json").write_text(text)
        mistake_of(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]},
        {"dtype": "I32", "shape": [7], "data_offsets": [0, 24]},
        {"dtype": "I32", "shape": [6], "data_offsets": [0, 2400]},
        {"dtype": "I32", "shape": [6], "data_offsets": [24, 0]},
        {"dtype": "I32", "shape": [-6], "data_offsets": [0, 24]},
        {"dtype": "I32", "shape": [2**62, 2**62], "data_offsets": [0, 24]},
        {"dtype": "I32", "shape": 6, "data_offsets": [0, 24]},
        {"dtype": "I32", "shape": [6]},
        {"dtype": ["I32"], "shape": [6], "data_offsets": [0, 24]},
        3,
    ],
)
def test_hostile_safetensors(tmp_path: Path, entry: Any) -> None:
    folder = write_trtllm(make(ranks=1), tmp_path / "statistic", raw=False)
    text = json.dumps({"50_1": entry}).encode()
    (folder / "rank0.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    mistake_of(folder)


# --- vLLM ----------------------------------------------------------------------------------------------------------


@EACH
@given(truth=TRUTHS, kind=st.sampled_from(["npy", "npz", "json", "jsonl"]), with_dense=st.booleans())
def test_routed_experts(tmp_path: Path, truth: Truth, kind: str, with_dense: bool) -> None:
    recorded = read(write_routed_experts(truth, fresh(tmp_path), kind, with_dense=with_dense))
    assert np.array_equal(recorded.load, truth.load)
    assert recorded.arrays["window_load"].sum(axis=0).tolist() == truth.load.tolist()
    assert sorted(recorded.arrays["topk"].tolist()) == sorted(truth.tokens.tolist())
    assert recorded.about.layers == (tuple(truth.moe) if with_dense and truth.dense else None)
    assert (recorded.about.experts, recorded.about.experts_known) == (truth.experts, False)
    arrays = sum(len(ids) > 0 for step in truth.topk for ids in step)
    if kind != "npy" and arrays > 1:
        assert recorded.about.steps == arrays


def test_one_long_array_is_cut_into_windows(tmp_path: Path) -> None:
    """Windows of equally many tokens, however many tokens are read at a time."""
    ids = np.random.default_rng(0).permuted(np.tile(np.arange(8), (1000, 2, 1)), axis=2)[:, :, :2]
    np.save(tmp_path / "routed.npy", ids)
    recorded = read(tmp_path / "routed.npy")
    assert recorded.about.windows == len(recorded.arrays["window_load"]) == MOST_WINDOWS
    sizes = recorded.arrays["window_load"].sum(axis=(1, 2)) // 4
    assert (sizes.min(), sizes.max(), sizes.sum()) == (3, 4, 1000)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    first = [[np.bincount(ids[start : start + size, layer].ravel(), minlength=8) for layer in (0, 1)]
             for start, size in zip(starts, sizes, strict=True)]  # fmt: skip
    assert np.array_equal(recorded.arrays["window_load"], first)
    assert np.array_equal(recorded.arrays["token_window"], np.repeat(np.arange(MOST_WINDOWS), sizes))


def test_experts_that_nobody_chose_are_there_where_they_are_counted(tmp_path: Path) -> None:
    file = write_routed_experts(make(), tmp_path, "npy", with_dense=False)
    assert read(file, experts=9).load.shape == (2, 9)
    assert read(file, experts=9).about.experts_known
    assert mistake_of(file, experts=5).found == "expert 5"


DAMAGED_NPY = b"\x93NUMPY\x01\x00\x0b\x00{'shape': ("  # a header that neither Python 3 nor 2 could have written


def test_wrong_routed_experts(tmp_path: Path) -> None:
    file = tmp_path / "routed.jsonl"
    good = as_base64(np.zeros((2, 2, 2), np.int32))
    wrong: list[tuple[Any, str]] = [
        (good[:-4], "disagree"),
        ("%%%", "what is no array"),
        (as_base64(np.zeros((2, 2), np.int32)), "int32 of shape [2, 2]"),
        (as_base64(np.zeros((2, 2, 2))), "float64 of shape"),
        (as_base64(np.array([None])), "pickled"),
        (base64.b64encode(DAMAGED_NPY).decode(), "its header is damaged"),
        ([[[1, 2], [3]]], "what is no array"),
        ([[[1, 2**70]]], "object of shape"),
        (5, "neither text nor a list"),
    ]
    for value, says in wrong:
        file.write_text(json.dumps({"choices": [{"routed_experts": value}]}))
        assert says in mistake_of(file).found, value
    file.write_text('{"routed_experts": null}\n{"routed_experts"')
    assert mistake_of(file).line == 2
    file.write_text('{"routed_experts": null}\n')
    assert mistake_of(file).found == "no routed_experts"
    np.save(tmp_path / "a.npy", np.zeros((0, 2, 2), np.int32))
    mistake_of(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.full((3, 2, 2), 9000))
    assert mistake_of(tmp_path / "a.npy").found == "expert 9000"
    np.savez(tmp_path / "a.npz", a=np.ones((3, 2, 2), int), b=np.ones((3, 2, 3), int))
    assert mistake_of(tmp_path / "a.npz").found == "shape [3, 2, 3]"


@EACH
@given(truth=TRUTHS, meta=st.booleans())
def test_vllm_load_stats(tmp_path: Path, truth: Truth, meta: bool) -> None:
    recorded = read(write_vllm_stats(truth, fresh(tmp_path) / "stats.jsonl", meta=meta))
    assert np.array_equal(recorded.load, truth.load)
    assert np.array_equal(recorded.arrays["window_load"], truth.window_load)
    assert recorded.about.layers is None
    assert any("other record types" in note for note in recorded.about.notes) == meta


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no eplb_load_stats"),
        ("{}", "no eplb_load_stats"),
        ("[]", "no JSON object"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"record_type": "eplb_load_stats"}', "object of shape []"),
        ('{"record_type": "eplb_load_stats", "expert_load": [[1], [1, 2]], "p2l_map": [[0]]}', "several lengths"),
        ('{"record_type": "eplb_load_stats", "expert_load": [[1, 2]], "p2l_map": [[0]]}', "shape [1, 1]"),
        ('{"record_type": "eplb_load_stats", "expert_load": [[1]], "p2l_map": [[-1]]}', "-1"),
        ('{"record_type": "eplb_load_stats", "expert_load": [[1]], "p2l_map": [[9000]]}', "9000"),
        ('{"record_type": "eplb_load_stats", "expert_load": [[1.5]], "p2l_map": [[0]]}', "float64 of shape [1, 1]"),
        ('{"record_type": "eplb_load_stats", "expert_load": [[NaN]], "p2l_map": [[0]]}', "float64 of shape [1, 1]"),
        ('{"record_type": "eplb_load_stats", "expert_load": [[1e300]], "p2l_map": [[0]]}', ""),
        ('{"record_type": "eplb_load_stats", "expert_load": [[0]], "p2l_map": [[0]]}', "no choice of any expert"),
    ],
)
def test_wrong_load_stats(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "stats.jsonl"
    file.write_text(text + "\n")
    assert says in mistake_of(file).found


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_counts(tmp_path: Path, kind: str) -> None:
    table = make(7).load
    recorded = read(write_counts(tmp_path, kind, table))
    assert np.array_equal(recorded.load, table)
    assert recorded.about.layers is None
    with_dense = np.concatenate([np.zeros_like(table[:1]), table])
    recorded = read(write_counts(tmp_path, kind, with_dense))
    assert np.array_equal(recorded.load, table)
    assert (recorded.about.layers, recorded.about.dense_layers) == ((1, 2), (0,))


@EACH
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_counts_come_back(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    layers, experts = data.draw(st.integers(2, 4)), data.draw(st.integers(2, 6))
    rows = st.lists(st.integers(0, 10**9), min_size=experts, max_size=experts).filter(any)
    table = np.array(data.draw(st.lists(rows, min_size=layers, max_size=layers)), np.int64)
    assert np.array_equal(read(write_counts(fresh(tmp_path), kind, table)).load, table)


@pytest.mark.parametrize("kind", ["npz", "json", "json-sglang"])
def test_counts_of_several_steps(tmp_path: Path, kind: str) -> None:
    truth = make(8)
    steps = np.concatenate([truth.window_load, np.zeros_like(truth.window_load[:1])])
    file = tmp_path / f"load.{kind.split('-')[0]}"
    if kind == "npz":
        np.savez(file, logical_count=steps)
    else:
        file.write_text(json.dumps(steps.tolist() if kind == "json" else {"logical_count": steps.tolist()}))
    recorded = read(file)
    assert np.array_equal(recorded.arrays["window_load"], truth.window_load)
    assert recorded.about.empty_steps == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "1,2\n3"),
        ("a.csv", "1,2\n3,x"),
        ("a.csv", ""),
        ("a.csv", "expert,load\n1,2"),
        ("a.csv", "layer,expert,count\n0,-1,2"),
        ("a.csv", "layer,expert,count\n0,1e9,2"),
        ("a.csv", "layer,expert,count\n"),
        ("a.csv", "1,nan"),
        ("a.csv", "1,-1"),
        ("a.csv", "1,0.5"),
        ("a.csv", "1,1e300"),
        ("a.json", "{}"),
        ("a.json", "[[1], [1, 2]]"),
        ("a.json", "[]"),
        ("a.json", '[["a"]]'),
        ("a.json", "[" * 100_000),
        ("a.json", '{"load_history": [3]}'),
        ("a.json", '{"logical_count": {"a": 1}}'),
        ("a.npy", "nothing"),
        ("a.npz", "nothing"),
        ("a.parquet", "nothing"),
        ("a.pt", "nothing"),
        ("a.txt", "1,2"),
        ("a", "1,2"),
    ],
)
def test_wrong_counts(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    mistake_of(file)
    mistake_of(tmp_path / f"no-{name}")
    (tmp_path / "folder").mkdir()
    mistake_of(tmp_path / "folder")
