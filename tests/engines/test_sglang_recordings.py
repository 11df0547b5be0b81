"""What SGLang records is read as what was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_recordings import (
    Truth,
    make,
    write_bundle_trace,
    write_sglang_detail,
    write_sglang_stat,
)
from hypothesis import given
from hypothesis import strategies as st
from recording_reading import EACH, TRUTHS, fresh, mistake_of, read
from torch_writer import save

from moe_placer.traffic.stored_choices import count_choices

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
