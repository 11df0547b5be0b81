"""Recorded files that are missing, damaged or hostile: one clear error each, and nothing else."""

from __future__ import annotations

import io
import os
import pickle
import re
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from builders import tiny_instance
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.errors import InputError, Mistake
from moe_placer.traffic import Recording, stored_choices, trace_reader
from moe_placer.traffic import readers as files
from moe_placer.traffic.readers import read_load
from moe_placer.traffic.trace_reader import read_trace

INSTANCE = tiny_instance()  # 2 MoE layers, 4 experts, top-2
TOPK = np.array([[[0, 1], [2, 3]], [[3, 0], [1, 2]], [[1, 0], [2, 0]]])
LOAD = np.array([[4.0, 2.0, 0.0, 1.5], [1.0, 1.0, 1.0, 0.25]])


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), **options)
    return stream.getvalue()


def header(shape: str, dtype: str = "'<i8'", version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text


def npz(file: Path, content: bytes, key: str = "topk", compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{key}.npy", content)
    return file


def trace(folder: Path, topk: Any) -> Path:
    return npz(folder / "trace.npz", npy(topk))


def only_mistake(read: Callable[..., Recording], file: Path) -> Mistake:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as caught:
            read(file, INSTANCE)
    (mistake,) = caught.value.mistakes
    assert mistake.file == file
    assert "\n" not in str(mistake)
    assert len(str(mistake)) < 400 + len(str(file))
    return mistake


# --- what is right -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", "<i4", ">i8", "<u8", ">u8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_ids_of_any_integer_type_and_order(tmp_path: Path, dtype: str, order: Any) -> None:
    recording = read_trace(trace(tmp_path, np.asarray(TOPK.astype(dtype), order=order)), INSTANCE)
    assert recording.topk is not None
    assert recording.topk.tolist() == TOPK.tolist()
    assert recording.load.tolist() == [[3.0, 2.0, 0.0, 1.0], [1.0, 1.0, 3.0, 1.0]]
    assert recording.tokens.tolist() == [3.0, 3.0]
    assert recording.name == "trace.npz"


def test_blocks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    topk = np.argsort(rng.random((100, 2, 4)), axis=2)[:, :, :2]
    whole = read_trace(trace(tmp_path, topk), INSTANCE)
    monkeypatch.setattr(files, "_BLOCK_BYTES", 7 * topk[0].nbytes)
    parts = read_trace(trace(tmp_path, topk), INSTANCE)
    assert whole.topk is not None
    assert parts.topk is not None
    assert np.array_equal(whole.topk, topk)
    assert np.array_equal(parts.topk, topk)
    assert np.array_equal(whole.load, parts.load)
    topk[61, 1] = [2, 2]
    assert only_mistake(read_trace, trace(tmp_path, topk)).path == "topk[61, 1]"


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">f4", "<f2", "<f8"])
@pytest.mark.parametrize("kind", ["npz", "npy", "NPY"])
def test_loads_of_any_number_type(tmp_path: Path, dtype: str, kind: str) -> None:
    load = np.asfortranarray(LOAD.astype(dtype))
    file = tmp_path / f"load.{kind}"
    if kind == "npz":
        npz(file, npy(load), "load")
    else:
        file.write_bytes(npy(load))
    recording = read_load(file, INSTANCE)
    assert recording.topk is None
    assert np.array_equal(recording.load, LOAD.astype(dtype))
    assert recording.tokens == pytest.approx(load.astype(float).sum(axis=1) / 2)


@pytest.mark.parametrize("text", ["4,2,0,1.5\n1,1,1,0.25", "\ufeff# counts\n 4, 2,0,1.5\r\n1,1,1,2.5e-1\r\n\r\n"])
def test_loads_from_csv(tmp_path: Path, text: str) -> None:
    file = tmp_path / "load.csv"
    file.write_bytes(text.encode())
    assert np.array_equal(read_load(file, INSTANCE).load, LOAD)


def test_other_arrays_in_the_archive_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "trace.npz"
    np.savez(file, topk=TOPK, seq_name=np.array(["a", None], dtype=object))
    assert read_trace(file, INSTANCE).load.sum() == 12


# --- what is wrong -------------------------------------------------------------------------------------------------


def bomb(shape: str) -> bytes:
    return header(shape) + bytes(1000)


class Explosive:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.abort, ())


BAD_NPY: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "cannot be read"),
    "no magic": (b"hello, world", "cannot be read"),
    "only magic": (b"\x93NUMPY", "cannot be read"),
    "unknown version": (header("(3, 2, 2)", version=b"\x09\x00") + bytes(96), "cannot be read"),
    "cut header": (npy(TOPK)[:40], "cannot be read"),
    "cut data": (npy(TOPK)[:-1], "its header and its size disagree"),
    "more data": (npy(TOPK) + b"x", "its header and its size disagree"),
    "huge shape": (bomb("(10**9, 2, 2)"), "cannot be read"),
    "huge shape in digits": (bomb("(1000000000000, 2, 2)"), r"more than (8|1000) GB"),
    "shape beyond 64 bits": (bomb(f"({2**70}, 2, 2)"), r"more than (8|1000) GB"),
    "shape that overflows to nothing": (bomb(f"({2**64}, {2**64}, 2)"), r"more than (8|1000) GB"),
    "negative shape": (bomb("(-1, 2, 2)"), "negative"),
    "two negatives": (bomb("(-25, -5, 1)"), "negative"),
    "shape of text": (bomb("('a', 2, 2)"), "cannot be read"),
    "shape of nothing": (bomb("None"), "cannot be read"),
    "a call in the header": (bomb("__import__('os').abort()"), "cannot be read"),
    "brackets": (bomb("(" * 5000), "cannot be read"),
    "a very long header": (header("(3, 2, 2)" + " " * 20_000) + bytes(96), "cannot be read"),
    "unclosed text": (bomb("'"), "cannot be read"),
    "strange type": (bomb("(3, 2, 2)").replace(b"'<i8'", b"'<q9'"), "cannot be read"),
    "type of text": (npy(TOPK.astype("U1")), "found values of type <U1"),
    "type of times": (npy(TOPK.astype("m8[s]")), "found values of type timedelta64"),
    "type of fields": (npy(np.zeros((3, 2, 2), dtype=[("a", "i4"), ("b", "i4")])), "found values of type"),
    "type of lists": (header("(3, 2)", "('<i8', (2,))") + bytes(96), "cannot be read|found values of type"),
    "type of no size": (header("(3, 2, 2)", "'|V0'"), "cannot be read|found values of type"),
    "complex": (npy(TOPK.astype(complex)), "found values of type complex128"),
    "truths": (npy(TOPK.astype(bool)), "found values of type bool"),
    "pickled": (npy(np.array([[[Explosive()]]], dtype=object), allow_pickle=True), "pickled Python objects"),
    "a pickle": (pickle.dumps([1, 2]), "cannot be read"),
}
BAD_TOPK: dict[str, tuple[Any, str]] = {
    "floats": (TOPK.astype(float), "found values of type float64, expected whole numbers"),
    "one axis": (TOPK.ravel(), r"found shape \(12,\), expected \[tokens, 2 MoE layers, top_k 2\]"),
    "a scalar": (np.array(3), r"found shape \(\)"),
    "no tokens": (TOPK[:0], "found no tokens"),
    "too many layers": (TOPK[:, [0, 1, 1]], r"found 3 layers, expected 2 \(the instance's MoE layers\)"),
    "too few a token": (TOPK[:, :, :1], r"found 1 experts a token, expected model.top_k \(2\)"),
    "too large an id": (np.where(TOPK == 3, 4, TOPK), r"topk\[0, 1, 1\]: found expert id 4, expected ids from 0 to 3"),
    "a negative id": (np.where(TOPK == 3, -1, TOPK), r"topk\[0, 1, 1\]: found expert id -1"),
    "an id beyond 63 bits": (np.where(TOPK == 3, 2**63, TOPK.astype("u8")), "found expert id 9223372036854775808"),
    "an expert twice": (np.where(TOPK == 3, 0, TOPK), r"topk\[1, 0\]: found one expert twice: \[0, 0\]"),
}
BAD_LOAD: dict[str, tuple[Any, str]] = {
    "nan": (np.where(LOAD == 0, np.nan, LOAD), r"load\[0, 2\]: found nan, expected a count from 0"),
    "inf": (np.where(LOAD == 0, np.inf, LOAD), r"load\[0, 2\]: found inf"),
    "negative": (LOAD - 0.5, r"load\[0, 2\]: found -0.5"),
    "counts whose sum overflows": (LOAD * 1e307, r"load\[0, 0\]: found 4e\+307"),
    "a layer without load": (LOAD * [[1], [0]], r"load\[1\]: found a layer without any load"),
    "a layer with almost no load": (LOAD * [[1], [5e-324]], r"load\[1\]: found a layer without any load"),
    "transposed": (LOAD.T, r"found shape \(4, 2\), expected \(2, 4\) \[MoE layers, experts\]"),
    "flat": (LOAD.ravel(), r"found shape \(8,\)"),
    "text": (LOAD.astype("U3"), "found values of type <U3, expected numbers"),
    "times": (LOAD.astype("m8[s]"), "found values of type timedelta64"),
}
BAD_CSV: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it is empty"),
    "blanks": (b" \n\n", "it is empty"),
    "only a comment": (b"# nothing\n", "found shape"),
    "a header line": (b"e0,e1,e2,e3\n1,2,3,4\n1,2,3,4\n", "could not convert string 'e0'"),
    "ragged": (b"1,2,3,4\n1,2,3\n", "number of columns changed"),
    "one row": (b"1,2,3,4\n", r"found shape \(1, 4\), expected \(2, 4\)"),
    "one column": (b"1\n2\n", r"found shape \(2, 1\)"),
    "semicolons": (b"1;2;3;4\n1;2;3;4\n", "could not convert"),
    "a missing count": (b"1,,3,4\n1,2,3,4\n", "could not convert"),
    "nan": (b"1,nan,3,4\n1,2,3,4\n", r"load\[0, 1\]: found nan"),
    "beyond floats": (b"1,1e999,3,4\n1,2,3,4\n", r"load\[0, 1\]: found inf"),
    "not text": (b"1,2,3,4\n1,2,3,\xff\n", r"bytes that are not text \(at byte 14\)"),
    "nul": (b"1,2,3,4\n1,2,3,\x00\n", "could not convert"),
    "complex": (b"1,2,3,4\n1,2,3,4j\n", "could not convert"),
}


@pytest.mark.parametrize("name", BAD_NPY)
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_damaged_arrays(tmp_path: Path, name: str, kind: str) -> None:
    content, message = BAD_NPY[name]
    file = tmp_path / f"bad.{kind}"
    if kind == "npz":
        npz(file, content)
    else:
        file.write_bytes(content)
    assert re.search(message, str(only_mistake(read_trace, file)))


@pytest.mark.parametrize("name", BAD_TOPK)
def test_choices_that_do_not_fit(tmp_path: Path, name: str) -> None:
    topk, message = BAD_TOPK[name]
    assert re.search(message, str(only_mistake(read_trace, trace(tmp_path, topk))))


@pytest.mark.parametrize("name", BAD_LOAD)
@pytest.mark.filterwarnings("ignore:overflow")
def test_loads_that_do_not_fit(tmp_path: Path, name: str) -> None:
    load, message = BAD_LOAD[name]
    file = npz(tmp_path / "load.npz", npy(load), "load")
    assert re.search(message, str(only_mistake(read_load, file)))


@pytest.mark.parametrize("name", BAD_CSV)
def test_damaged_csv(tmp_path: Path, name: str) -> None:
    content, message = BAD_CSV[name]
    file = tmp_path / "load.csv"
    file.write_bytes(content)
    assert re.search(message, str(only_mistake(read_load, file)))


def test_a_shape_beyond_64_bits_of_no_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{2**70} layers"):
        read_trace(npz(tmp_path / "trace.npz", header(f"(0, {2**70}, 2)")), INSTANCE)


def test_layers_and_choices_are_both_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_trace(trace(tmp_path, np.zeros((0, 3, 1), dtype=int)), INSTANCE)
    assert [mistake.found for mistake in caught.value.mistakes] == ["no tokens", "3 layers", "1 experts a token"]


@pytest.mark.parametrize("suffix", ["npz", "npy", "csv", "NPZ", ""])
def test_files_that_are_no_files(tmp_path: Path, suffix: str) -> None:
    read = read_trace if suffix.lower() == "npz" else read_load
    assert only_mistake(read, tmp_path / f"absent.{suffix}").found == "no such file"
    folder = tmp_path / f"folder.{suffix}"
    folder.mkdir()
    assert only_mistake(read, folder).found == "a folder"
    assert only_mistake(read, folder / f"x\0.{suffix}").found.startswith(("no such file", "a file that cannot be read"))
    long = tmp_path / f"{'x' * 5000}.{suffix}"
    assert only_mistake(read, long).found.startswith(("no such file", "a file that cannot be read"))
    if hasattr(os, "mkfifo"):
        pipe = tmp_path / f"pipe.{suffix}"
        os.mkfifo(pipe)
        assert only_mistake(read, pipe).found == "no ordinary file"  # rather than wait for ever


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    file = trace(tmp_path, TOPK)
    file.chmod(0)
    assert "Permission denied" in only_mistake(read_trace, file).found


def test_archives_that_are_damaged(tmp_path: Path) -> None:
    good = trace(tmp_path, TOPK).read_bytes()
    file = tmp_path / "bad.npz"
    for content in (b"", b"PK", b"no zip at all", good[:-1], good[: len(good) // 2], good[30:]):
        file.write_bytes(content)
        assert "cannot be read" in only_mistake(read_trace, file).found


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_changed_byte_is_noticed(tmp_path: Path, compression: int) -> None:
    """Whatever flips in the data, the archive's checksum tells, also where the ids stay valid."""
    content = npy(TOPK.astype(np.uint8))
    good = npz(tmp_path / "good.npz", content, compression=compression).read_bytes()
    start = 30 + len("topk.npy")  # of the member's data
    end = good.index(b"PK\x01\x02")
    file = tmp_path / "bad.npz"
    for position in range(start, end):
        file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        try:
            topk = read_trace(file, INSTANCE).topk
        except InputError:
            continue
        # The last bits of a deflated member mean nothing.
        assert compression == zipfile.ZIP_DEFLATED
        assert np.array_equal(topk, TOPK)


def test_an_archive_without_the_array(tmp_path: Path) -> None:
    file = npz(tmp_path / "x.npz", npy(TOPK), "other")
    assert only_mistake(read_trace, file).found == "no array `topk`"
    assert only_mistake(read_load, file).found == "no array `load`"


def test_an_encrypted_archive(tmp_path: Path) -> None:
    file = trace(tmp_path, TOPK)
    raw = bytearray(file.read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(raw)
    assert "encrypted" in only_mistake(read_trace, file).found


def test_what_repeats_one_token_is_refused_at_its_first_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive of a few kilobytes that unpacks to many times the block: read no further than the first wrong id."""
    monkeypatch.setattr(files, "_BLOCK_BYTES", 1000)
    taken: list[int] = []
    real = trace_reader._check_different

    def spy(choices: Any, ids: npt.NDArray[Any], first: int) -> None:
        taken.append(ids.nbytes)
        real(choices, ids, first)

    monkeypatch.setattr(trace_reader, "_check_different", spy)
    file = npz(tmp_path / "bomb.npz", header("(1000000, 2, 2)", "'|u1'") + bytes(4_000_000))
    assert file.stat().st_size < 20_000
    assert only_mistake(read_trace, file).path == "topk[0, 0]"
    assert sum(taken) <= 1000


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_zip_bomb_is_refused_before_a_byte_of_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Any
) -> None:
    """In Fortran order no token is whole before the last block, so nothing in the data could stop it early."""
    monkeypatch.setattr(files, "_read_header", lambda *_: pytest.fail("unpacked"))
    content = header("(5000000, 2, 2)", "'|i1'").replace(b"False", b"True " if order == "F" else b"False")
    file = npz(tmp_path / "bomb.npz", content + bytes(20_000_000))
    mistake = only_mistake(read_trace, file)
    assert re.fullmatch(r"\d\d,\d{3} bytes that unpack to 20,000,128", mistake.found)
    assert "store it with numpy.savez" in mistake.expected
    with pytest.raises(pytest.fail.Exception):  # not packed, the same content is read
        read_trace(npz(tmp_path / "real.npz", content + bytes(20_000_000), compression=zipfile.ZIP_STORED), INSTANCE)


def test_what_does_not_fit_the_memory_left_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_reader, "available_memory", lambda: 1e8)
    monkeypatch.setattr(trace_reader, "read_blocks", lambda *_: iter(lambda: pytest.fail("read"), None))
    file = tmp_path / "large.npy"
    with file.open("wb") as stream:
        stream.write(header("(50000000, 2, 2)", "'|u1'"))
        stream.truncate(128 + 200_000_000)
    assert str(only_mistake(read_trace, file)) == (
        f"{file}: topk: found choices of 50,000,000 tokens: 0.2 GB, "
        "expected at most the 0.1 GB of memory that are left here"
    )


@pytest.mark.parametrize("order", ["C", "F"])
def test_only_the_choices_and_one_block_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Any
) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", 50_000)
    monkeypatch.setattr(stored_choices, "_BLOCK_BYTES", 50_000)
    monkeypatch.setattr(stored_choices, "_COUNTED_IDS", 10_000)
    topk = np.asarray(np.tile(TOPK, (50_000, 1, 1)), dtype=np.int64, order=order)  # 600 kB as bytes, 4.8 MB as they are
    file = tmp_path / "trace.npy"
    file.write_bytes(npy(topk))
    read_trace(file, INSTANCE)  # what is imported late is not counted
    tracemalloc.start()
    try:
        recording = read_trace(file, INSTANCE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert recording.topk is not None
    assert np.array_equal(recording.topk, topk)
    assert 600_000 < peak < 600_000 + 12 * 50_000


@pytest.mark.parametrize("order", ["C", "F"])
def test_what_is_wrong_is_placed_alike_in_either_order(tmp_path: Path, order: Any) -> None:
    for change, place in (((1, 0, 1), "topk[1, 0, 1]"), ((2, 1, 0), "topk[2, 1, 0]")):
        topk = TOPK.copy()
        topk[change] = 4
        assert only_mistake(read_trace, trace(tmp_path, np.asarray(topk, order=order))).path == place
    topk[2, 1] = [3, 3]
    assert only_mistake(read_trace, trace(tmp_path, np.asarray(topk, order=order))).path == "topk[2, 1]"


def test_more_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", TOPK.nbytes - 1)
    assert "GB once unpacked" in only_mistake(read_trace, trace(tmp_path, TOPK)).found
    monkeypatch.setattr(files, "MAX_CSV_BYTES", 10)
    csv = tmp_path / "load.csv"
    csv.write_text("1,2,3,4\n" * 2)
    assert "more than" in only_mistake(read_load, csv).found


# --- what is random ------------------------------------------------------------------------------------------------

FUZZ = settings(max_examples=60, deadline=None)
CHANGES = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4)


def read_quietly(read: Callable[..., Recording], file: Path) -> None:
    """Read: a good recording or an `InputError`, never anything else, nor a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            recording = read(file, INSTANCE)
        except InputError:
            return
    assert recording.load.shape == (2, 4)
    assert np.isfinite(recording.load).all()
    assert (recording.tokens > 0).all()


@FUZZ
@given(content=st.binary(max_size=300), suffix=st.sampled_from(["npz", "npy", "csv"]))
def test_random_bytes(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"random.{suffix}"
    file.write_bytes(content)
    read_quietly(read_trace if suffix == "npz" else read_load, file)


@FUZZ
@given(content=st.one_of(st.text("0123456789.,-+eEnaif \n\r#\"'", max_size=80), st.text(max_size=40)))
def test_random_csv(tmp_path: Path, content: str) -> None:
    file = tmp_path / "random.csv"
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    read_quietly(read_load, file)


@FUZZ
@given(changes=CHANGES, kind=st.sampled_from(["stored", "deflated", "npy"]))
def test_good_files_with_some_bytes_changed(tmp_path: Path, changes: list[tuple[int, int]], kind: str) -> None:
    if kind == "npy":
        file, read = tmp_path / "load.npy", read_load
        content = npy(LOAD)
    else:
        file, read = tmp_path / "trace.npz", read_trace
        method = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
        content = npz(file, npy(TOPK), compression=method).read_bytes()
    raw = bytearray(content)
    for position, value in changes:
        raw[position % len(raw)] = value
    file.write_bytes(raw)
    read_quietly(read, file)


@FUZZ
@given(
    shape=st.one_of(st.text("()0123456789,-L ", max_size=30), st.text(max_size=10)),
    dtype=st.one_of(st.sampled_from(["'<i8'", "'|O'", "'<f2'", "'|S0'", "('<i8', (2,))", "[('a', '<i8')]"]), st.text()),
    data=st.integers(0, 200),
)
def test_random_headers(tmp_path: Path, shape: str, dtype: str, data: int) -> None:
    try:
        content = header(shape, dtype) + bytes(data)
    except OverflowError:
        return
    file = tmp_path / "x.npy"
    file.write_bytes(content)
    read_quietly(read_load, file)
