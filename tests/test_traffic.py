"""Recorded traffic: what is read, and what is refused; real traces where they are at hand."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from builders import tiny_instance
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.errors import InputError
from moe_placer.instance import load_instance
from moe_placer.traffic import load_traffic
from moe_placer.traffic.files import read_load, read_trace
from moe_placer.traffic.statistics import layer_information, pair_excess, pair_lift, skew

REPO = Path(__file__).parent.parent
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


@pytest.mark.parametrize("kind", ["npz", "npy", "csv"])
def test_loads_are_read_from_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    load = np.array([[10.0, 20, 30, 40], [1, 1, 1, 1]])
    file = tmp_path / f"load.{kind}"
    if kind == "npz":
        np.savez(file, load=load)
    elif kind == "npy":
        np.save(file, load)
    else:
        np.savetxt(file, load, delimiter=",")
    recording = read_load(file, TINY)
    assert (recording.load == load).all()
    assert recording.tokens.tolist() == [50, 2]  # every token makes two choices


@pytest.mark.parametrize(
    ("topk", "says"),
    [
        (np.zeros((3, 2)), "shape"),
        (np.zeros((3, 2, 2)), "float64"),
        (np.zeros((0, 2, 2), int), "no tokens"),
        (np.zeros((3, 1, 2), int), "1 layers, expected 2"),
        (np.zeros((3, 2, 3), int), "3 experts a token"),
        (np.full((3, 2, 2), [0, 4]), "expert id 4"),
        (np.full((3, 2, 2), [0, -1]), "expert id -1"),
        (np.zeros((3, 2, 2), int), "one expert twice"),
    ],
)
def test_traces_that_do_not_fit_are_refused(tmp_path: Path, topk: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_trace(saved(tmp_path, topk=topk), TINY)


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (np.ones((2, 3)), "shape"),
        (np.full((2, 4), np.nan), "not finite"),
        (np.full((2, 4), -1.0), "negative"),
        (np.array([[1.0, 1, 1, 1], [0, 0, 0, 0]]), "without any load"),
        (np.full((2, 4), "a"), "numbers"),
    ],
)
def test_loads_that_do_not_fit_are_refused(tmp_path: Path, load: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_load(saved(tmp_path, load=load), TINY)


def test_a_header_that_promises_too_much_takes_no_memory(tmp_path: Path) -> None:
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000, 1000, 8), }"
    header += b" " * (64 - (len(header) + 11) % 64) + b"\n"
    raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    file = tmp_path / "bomb.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("topk.npy", raw)
    with pytest.raises(InputError, match="more than 8 GB"):
        read_trace(file, TINY)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="never loaded"):
        read_trace(saved(tmp_path, topk=np.array([{}], dtype=object)), TINY)


@pytest.mark.parametrize("suffix", ["npz", "npy", "csv"])
@given(content=st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_bytes_give_an_input_error(tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes) -> None:
    file = tmp_path_factory.mktemp("any") / f"file.{suffix}"
    file.write_bytes(content)
    with pytest.raises(InputError):
        read_load(file, TINY)


@given(cut=st.integers(0, 700), flip=st.integers(0, 700))
@settings(max_examples=60, deadline=None)
def test_damaged_traces_give_an_input_error_or_the_same(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int
) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, topk=np.tile([[0, 1], [2, 3]], (20, 1, 1)))
    raw = bytearray(buffer.getvalue())
    raw[flip % len(raw)] ^= 0x55
    file = tmp_path_factory.mktemp("damaged") / "trace.npz"
    file.write_bytes(bytes(raw[: max(1, len(raw) - cut)]))
    try:
        recording = read_trace(file, TINY)
    except InputError:
        return
    assert recording.load.sum() == 2 * 2 * 20


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
