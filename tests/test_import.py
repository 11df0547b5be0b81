"""Every recording that an engine writes is read as what was recorded."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_instance
from engine_recordings import (
    Truth,
    as_base64,
    make,
    write_bundle_trace,
    write_routed_experts,
    write_safetensors,
    write_sglang_detail,
    write_sglang_stat,
    write_trtllm,
    write_vllm_stats,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_writer import save

from moe_placer.engines.recordings import Options, Recorded, read_recording, tally, write_recording
from moe_placer.engines.recordings.tally import count_choices, draw_tokens
from moe_placer.errors import InputError, Mistake
from moe_placer.traffic.readers import read_load, read_trace

EACH = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
TRUTHS = st.builds(
    make,
    st.integers(0, 2**32),
    dense=st.sampled_from([(), (0,), (0, 1)]),
    layers=st.integers(3, 4),
    ranks=st.integers(2, 4),
    steps=st.integers(1, 4),
    top_k=st.integers(2, 3),
    redundant=st.integers(0, 3),
)


def read(*paths: Path, **options: Any) -> Recorded:
    return read_recording(paths, Options(**options))


def mistake_of(*paths: Path, **options: Any) -> Mistake:
    with pytest.raises(InputError) as caught:
        read(*paths, **options)
    (mistake,) = caught.value.mistakes
    assert "\n" not in str(mistake)
    return mistake


def fresh(folder: Path) -> Path:
    """Make a new folder in one that hypothesis uses again and again."""
    made = folder / f"{len(list(folder.iterdir()))}"
    made.mkdir()
    return made


def same_sets(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether rows of tokens [tokens, layers, top_k] choose the same experts, in any order."""
    return np.array_equal(np.sort(first, axis=2), np.sort(second, axis=2))


# --- SGLang --------------------------------------------------------------------------------------------------------


@EACH
@given(truth=TRUTHS, empty=st.integers(0, 3))
def test_sglang_stat(tmp_path: Path, truth: Truth, empty: int) -> None:
    recorded = read(write_sglang_stat(truth, fresh(tmp_path) / "stat.pt", empty))
    assert np.array_equal(recorded.load, truth.load)
    assert np.array_equal(recorded.arrays["window_load"], truth.window_load)
    about = recorded.about
    assert (about.layers, about.dense_layers) == (tuple(truth.moe), truth.dense)
    assert (about.decoder_layers, about.experts, about.sources) == (truth.layers, truth.experts, 0)
    assert about.steps == len(truth.window_load)
    assert about.empty_steps == len(truth.topk) - about.steps + empty
    assert about.top_k is None


def test_several_dumps_follow_one_another(tmp_path: Path) -> None:
    truth = make()
    files = [write_sglang_stat(truth, tmp_path / f"{name}.pt") for name in "ab"]
    recorded = read(*files)
    assert np.array_equal(recorded.load, 2 * truth.load)
    assert recorded.about.files == ("a.pt", "b.pt")
    write_sglang_stat(make(experts=7), tmp_path / "b.pt")
    assert mistake_of(*files).expected == "[3, 6] as in a.pt"


@EACH
@given(truth=TRUTHS, by_token=st.booleans())
def test_sglang_detail(tmp_path: Path, truth: Truth, by_token: bool) -> None:
    files = write_sglang_detail(truth, fresh(tmp_path), by_token=by_token)
    recorded = read(*reversed(files))
    assert np.array_equal(recorded.load, truth.load)
    assert np.array_equal(recorded.arrays["window_load"], truth.window_load)
    assert np.array_equal(recorded.arrays["source_load"], truth.source_load)
    assert recorded.about.layers == tuple(truth.moe)
    assert recorded.about.sources == truth.ranks
    assert any("rebalance" in note for note in recorded.about.notes)
    assert np.array_equal(read(files[0].parent).load, truth.load)
    if by_token:
        assert recorded.about.top_k == truth.top_k
        assert np.array_equal(recorded.arrays["topk"], truth.tokens)
        sources = np.concatenate([np.full(len(ids), rank) for step in truth.topk for rank, ids in enumerate(step)])
        assert np.array_equal(recorded.arrays["token_source"], sources)
        windows = recorded.arrays["token_window"]
        assert (np.diff(windows) >= 0).all()
        assert windows.max() == recorded.about.windows - 1
    else:
        assert recorded.about.top_k is None
        assert "topk" not in recorded.arrays


def test_prompts_are_told_apart(tmp_path: Path) -> None:
    truth = make(3, steps=1)
    recorded = read(*write_sglang_detail(truth, tmp_path, by_token=True))
    tokens = [len(ids) for ids in truth.topk[0]]
    lengths = [part for count in tokens for part in (count // 2, count - count // 2)]
    assert recorded.arrays["seq"].tolist() == np.repeat(np.arange(4), lengths).tolist()


def test_ranks_that_record_the_same_tokens_are_read_once(tmp_path: Path) -> None:
    truth = make()
    recorded = read(*write_sglang_detail(truth, tmp_path, by_token=True, alike=True))
    assert np.array_equal(recorded.load, truth.source_load[0])
    assert recorded.about.sources == 0
    assert any("all 2 ranks recorded the same tokens" in note for note in recorded.about.notes)


def test_ranks_that_count_what_arrives_are_no_sources(tmp_path: Path) -> None:
    truth = make(ranks=2)  # 8 slots: 4 on each
    recorded = read(*write_sglang_detail(truth, tmp_path, by_token=False, arriving=True))
    assert np.array_equal(recorded.load, truth.load)
    assert recorded.about.sources == 0
    assert any("DeepEP low latency" in note for note in recorded.about.notes)


def test_what_deepep_measured_is_kept_and_said_to_be_the_last_pass(tmp_path: Path) -> None:
    truth = make(steps=3)
    recorded = read(*write_sglang_detail(truth, tmp_path, by_token=True, misc=True))
    measured = recorded.arrays["rank_tokens"]
    assert measured.shape == (2, len(truth.moe), 2)
    assert measured[1, 0].tolist() == [100 + 10 * truth.moe[0] + 2 + other for other in range(2)]
    assert np.array_equal(recorded.arrays["rdma_tokens"][:, :, 0], measured.sum(axis=2))
    assert any("last pass" in note for note in recorded.about.notes)


def test_one_rank_has_no_sources_and_missing_ranks_are_named(tmp_path: Path) -> None:
    truth = make(ranks=4)
    files = write_sglang_detail(truth, tmp_path, by_token=False)
    assert read(files[1]).about.sources == 0
    recorded = read(files[0], files[3])
    assert recorded.about.sources == 4
    assert any("no file of rank 1 and 1 more" in note for note in recorded.about.notes)


def test_detail_that_contradicts_itself(tmp_path: Path) -> None:
    truth = make()
    files = write_sglang_detail(truth, tmp_path, by_token=True)
    assert "a second time" in mistake_of(files[0], files[0]).found
    other = write_sglang_detail(make(5), tmp_path / "other", by_token=True)
    assert mistake_of(files[0], other[1]).found == "another map"
    stat = write_sglang_stat(truth, tmp_path / "stat.pt")
    assert mistake_of(stat, files[0]).found == "another recording"
    changed: list[tuple[dict[str, Any], str]] = [
        ({"global_physical_count": np.ones((3, 8), np.int32)}, "other counts"),
        ({"global_physical_count": np.full((3, 8), -1, np.int32)}, "a negative count"),
        ({"topk_ids_of_layer": np.full((3, 1, 8), 8, np.int32)}, "physical expert 8"),
        ({"topk_ids_of_layer": np.full((3, 1, 8), -2, np.int32)}, "physical expert -2"),
        ({"topk_ids_of_layer": np.zeros((2, 1, 8), np.int32)}, "records[0] with topk_ids_of_layer"),
        ({"global_physical_count": np.zeros((3, 7), np.int32)}, "records[0] without global_physical_count"),
        ({"rank": -1}, "records[0] without the numbers"),
        ({"forward_pass_id": "a"}, "records[0] without the numbers"),
    ]
    good = {"forward_pass_id": 1, "rank": 0, "topk_ids_of_layer": np.zeros((3, 0, 8), np.int32)}
    good["global_physical_count"] = np.zeros((3, 8), np.int32)
    for change, says in changed:
        file = save({"records": [{**good, **change}], "last_physical_to_logical_map": truth.p2l}, tmp_path / "bad.pt")
        assert says in mistake_of(file).found
    for records, says in (([], "no records"), (3, "records that are no list"), ([3], "no dictionary")):
        file = save({"records": records, "last_physical_to_logical_map": truth.p2l}, tmp_path / "bad.pt")
        assert says in mistake_of(file).found


def test_tokens_without_a_choice_in_some_layer_are_counted_but_not_kept(tmp_path: Path) -> None:
    truth = make(dense=(), layers=2, ranks=1, steps=1)
    truth.topk[0][0][0, 1, 1] = -1
    whole = truth.tokens[1:]
    recorded = read(*write_sglang_detail(truth, tmp_path, by_token=True))
    assert np.array_equal(recorded.load, truth.load)
    assert np.array_equal(recorded.arrays["topk"], whole)
    assert any("lack choices in a layer" in note for note in recorded.about.notes)


@EACH
@given(truth=TRUTHS, named=st.booleans())
def test_bundle_trace(tmp_path: Path, truth: Truth, named: bool) -> None:
    gate = "model.layers.{}.mlp.gate" if named else "gate-{}"
    recorded = read(write_bundle_trace(truth, fresh(tmp_path) / "trace.pt", gate))
    assert np.array_equal(recorded.load, truth.load)
    assert np.array_equal(recorded.arrays["source_load"], truth.source_load)
    assert recorded.about.layers == (tuple(truth.moe) if named else None)
    topk, source = recorded.arrays["topk"], recorded.arrays["token_source"]
    for rank in range(truth.ranks):
        assert np.array_equal(count_choices(topk[source == rank], truth.experts), truth.source_load[rank])
    assert any("not linked" in note for note in recorded.about.notes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_ranks": 0}, "without num_ranks"),
        ({"top_k": 3}, "bundles and counts are not as many"),
        ({"layers": []}, "without num_ranks, top_k or layers"),
        ({"layers": [{"gate": "g"}]}, "layers[0] without source_rank"),
        ({"source_rank": np.array([2])}, "a source rank outside 0 to 1"),
        ({"topk_experts": np.array([[1, 1]])}, "different ids in ascending order"),
        ({"topk_experts": np.array([[2, 1]])}, "different ids in ascending order"),
        ({"topk_experts": np.array([[-1, 1]])}, "different ids in ascending order"),
        ({"count": np.array([0])}, "a count outside"),
        ({"count": np.array([2**50])}, "a count outside"),
        ({"count": np.array([1, 1])}, "bundles and counts are not as many"),
        ({"count": np.array([1.0])}, "layers[0] without source_rank"),
    ],
)
def test_wrong_bundle_traces(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    layer = {"gate": "g", "source_rank": np.array([1]), "topk_experts": np.array([[0, 3]]), "count": np.array([2])}
    whole: dict[str, Any] = {"format": "sglang.moe_bundle_trace.v1", "num_ranks": 2, "top_k": 2, "layers": [layer]}
    layer.update({key: value for key, value in change.items() if key in layer})
    whole.update({key: value for key, value in change.items() if key in whole})
    assert says in mistake_of(save(whole, tmp_path / "bad.pt")).found


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


def test_experts_that_nobody_chose_are_there_where_they_are_counted(tmp_path: Path) -> None:
    file = write_routed_experts(make(), tmp_path, "npy", with_dense=False)
    assert read(file, experts=9).load.shape == (2, 9)
    assert read(file, experts=9).about.experts_known
    assert mistake_of(file, experts=5).found == "expert 5"


def test_wrong_routed_experts(tmp_path: Path) -> None:
    file = tmp_path / "routed.jsonl"
    good = as_base64(np.zeros((2, 2, 2), np.int32))
    wrong: list[tuple[Any, str]] = [
        (good[:-4], "disagree"),
        ("%%%", "what is no array"),
        (as_base64(np.zeros((2, 2), np.int32)), "int32 of shape [2, 2]"),
        (as_base64(np.zeros((2, 2, 2))), "float64 of shape"),
        (as_base64(np.array([None])), "pickled"),
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


# --- counts --------------------------------------------------------------------------------------------------------


def write_counts(folder: Path, kind: str, table: np.ndarray) -> Path:
    file = folder / f"load.{kind.split('-')[0]}"
    long = [(layer, expert, count) for layer, row in enumerate(table) for expert, count in enumerate(row)]
    names = ["layer", *(f"e{i}" for i in range(table.shape[1]))]
    rows = [[layer, *row] for layer, row in enumerate(table.tolist())]
    if kind == "npy":
        np.save(file, table)
    elif kind == "npz":
        np.savez(file, load=table)
    elif kind == "csv":
        np.savetxt(file, table, "%d", ",")
    elif kind == "csv-names":
        file.write_text("\n".join(",".join(map(str, row)) for row in [names, *rows]))
    elif kind == "csv-long":
        file.write_text("layer,expert,count\n" + "".join(f"{a},{b},{c}\n" for a, b, c in reversed(long)))
    elif kind == "json":
        file.write_text(json.dumps(table.tolist()))
    elif kind == "json-sglang":
        file.write_text(json.dumps({"logical_count": table.tolist()}))
    elif kind == "json-adrs":
        file.write_text(json.dumps({"load_history": [{"logical_expert_load": table.tolist()}]}))
    else:
        import pyarrow.parquet

        columns = dict(zip(("layer", "expert", "count"), zip(*long, strict=True), strict=True))
        if kind == "parquet":
            columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        pyarrow.parquet.write_table(pyarrow.table({name: list(column) for name, column in columns.items()}), file)
    return file


KINDS = ("npy", "npz", "csv", "csv-names", "csv-long", "json", "json-sglang", "json-adrs", "parquet", "parquet-long")


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
