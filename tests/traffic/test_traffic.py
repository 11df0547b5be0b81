"""Recorded traffic: what it counts to, and real traces where they are at hand; test_readers.py has damaged files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_instance
from routing_measures import layer_information, pair_excess, pair_lift

from moe_placer.errors import InputError
from moe_placer.instance import load_instance
from moe_placer.traffic import load_traffic, make_traffic
from moe_placer.traffic.statistics import skew
from moe_placer.traffic.trace_reader import read_trace

REPO = Path(__file__).parents[2]
TRACES = Path(os.environ.get("MOE_PLACER_TRACES", REPO.parent / "shared" / "traces"))
REAL = [TRACES / f"esft_deepseek-v2-lite_{text}.npz" for text in ("intent", "summary")]
needs_traces = pytest.mark.skipif(
    not all(file.exists() for file in REAL), reason="no real traces at ../shared/traces; set MOE_PLACER_TRACES"
)
TINY = tiny_instance()  # 2 MoE layers, 4 experts, top-2


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "trace.npz", **arrays)
    return folder / "trace.npz"


def test_a_trace_is_counted(tmp_path: Path) -> None:
    topk = np.array([[[0, 1], [2, 3]], [[0, 2], [3, 2]], [[0, 3], [1, 2]]])
    recording = read_trace(saved(tmp_path, topk=topk), TINY)
    assert recording.load.tolist() == [[3, 1, 1, 1], [0, 1, 3, 2]]
    assert recording.tokens.tolist() == [3, 3]


def test_mix_and_files_must_agree(tmp_path: Path) -> None:
    mixed = tiny_instance(traffic={"kind": "trace", "mix": [[0.5, 0.5]] * 4})
    file = saved(tmp_path, topk=np.tile([[0, 1], [2, 3]], (5, 1, 1)))
    assert load_traffic(mixed.with_traces([file, file])).mix.shape == (4, 2)
    with pytest.raises(InputError, match="rows of 2 shares, expected one share per trace file"):
        load_traffic(mixed.with_traces([file]))
    with pytest.raises(InputError, match="give --trace FILE"):
        load_traffic(mixed)


@needs_traces
def test_real_traces_fit_and_are_as_skewed_as_their_notes_say() -> None:
    instance = load_instance(REPO / "instances" / "dsv2-lite-128.yaml").with_traces(REAL)
    traffic = load_traffic(instance)
    for recording in traffic.recordings:
        assert recording.topk is not None
        ratio = skew(recording.load)
        assert 1.9 < ratio.min() < ratio.max() < 6.6
        assert 0.35 < np.mean([pair_excess(recording.topk[:, layer], 64) for layer in range(26)]) < 0.47
        assert 5 < np.mean([pair_lift(recording.topk[:, layer], 64) for layer in range(26)]) < 9
        assert 0.5 < layer_information(recording.topk[:, 3], recording.topk[:, 4], 64) < 1.2  # few tokens bias it up


def test_traffic_is_made_from_arrays() -> None:
    instance = tiny_instance()
    topk = np.array([[[0, 1], [2, 3]], [[1, 2], [0, 3]], [[1, 3], [0, 2]]])
    traffic = make_traffic(instance, topk=[topk], mix=np.ones((4, 1)))
    (recording,) = traffic.recordings
    assert recording.load.tolist() == [[1, 3, 1, 1], [2, 0, 2, 2]]
    assert recording.tokens.tolist() == [3, 3]
    loads = make_traffic(instance, load=[recording.load])
    assert loads.recordings[0].tokens.tolist() == [3, 3]
    assert loads.mix.tolist() == [[1.0]] * 4


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "arrays in either topk or load"),
        ({"topk": [np.zeros((3, 2, 2), int)]}, "chooses an expert twice"),
        ({"topk": [np.full((3, 2, 2), 9)]}, "ids from 0 to 3"),
        ({"topk": [np.zeros((3, 2), int)]}, "2 MoE layers, top_k 2"),
        ({"load": [np.zeros((2, 4))]}, "some of them above 0"),
        ({"load": [np.ones((3, 4))]}, r"\[MoE layers, experts\] = \(2, 4\)"),
        ({"load": [np.ones((2, 4))], "mix": [[0.5]] * 4}, "rows that sum to 1"),
    ],
)
def test_arrays_that_do_not_fit_are_named(arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_traffic(tiny_instance(), **arrays)
