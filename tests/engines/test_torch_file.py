"""``.pt`` files: what torch.save writes is read, and nothing else does anything."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_writer
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch_writer import Bfloat16, View, save, torch_name, torch_pickle, write_archive

from moe_placer.engines import pickle_reader
from moe_placer.engines.pickle_reader import load_pickle
from moe_placer.engines.stored_tensors import Integers, NotPlainTensorsError, StoredTensor
from moe_placer.engines.torch_file import TorchFile, read_torch_file
from moe_placer.errors import InputError

EACH = settings(max_examples=60, deadline=None)
DTYPES = st.sampled_from(["<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "i1", "u1", "?"])
TENSORS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


def plain(file: TorchFile, content: Any) -> Any:
    """Put arrays where tensors are stored, and lists where integers are packed."""
    if isinstance(content, StoredTensor):
        return file.array(content)
    if isinstance(content, Integers):
        return content.to_list()
    if isinstance(content, dict):
        return {key: plain(file, value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(plain(file, value) for value in content)
    return content


def same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def everything(file: Path) -> Any:
    opened = read_torch_file(file)
    return plain(opened, opened.content)


def only_message(file: Path) -> str:
    """Read all of a file and return the one message that it is refused with."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as caught:
            everything(file)
    (mistake,) = caught.value.mistakes
    assert mistake.file == file
    assert "\n" not in str(mistake)
    assert len(str(mistake)) < 400 + len(str(file))
    return mistake.found


# --- what is right -------------------------------------------------------------------------------------------------


@EACH
@given(content=PLAIN)
def test_what_torch_saves_is_read(tmp_path: Path, content: Any) -> None:
    opened = read_torch_file(save(content, tmp_path / "saved.pt"))
    assert same(content, plain(opened, opened.content))


@st.composite
def long_lists(draw: st.DrawFn) -> list[int]:
    """Draw some integers, and a long list of these in any order: to draw thousands one by one takes a second."""
    some = draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=100))
    count, seed = draw(st.integers(400, 600) | st.integers(600, 5000)), draw(st.integers(0, 2**32 - 1))
    return [some[at] for at in np.random.default_rng(seed).integers(len(some), size=count).tolist()]


@EACH
@given(numbers=long_lists() | st.integers(400, 2500).map(lambda count: list(range(count))))
def test_long_lists_of_integers_are_packed(tmp_path: Path, numbers: list[int]) -> None:
    content = {"ids": numbers, "again": numbers, "after": [numbers[0]]}
    opened = read_torch_file(save(content, tmp_path / "saved.pt"))
    assert same(content, plain(opened, opened.content))
    assert opened.content["ids"] is opened.content["again"]
    assert isinstance(opened.content["ids"], Integers) == (len(numbers) >= 500)
    assert len(opened.content["ids"]) == len(numbers)


def test_views_share_a_storage(tmp_path: Path) -> None:
    base = np.arange(24, dtype=np.int32)
    content = {
        "all": View(base, 0, (24,), (1,)),
        "turned": View(base, 2, (4, 5), (1, 4)),
        "empty": View(base, 9, (0,), (1,)),
    }
    opened = read_torch_file(save(content, tmp_path / "saved.pt"))
    read = plain(opened, opened.content)
    assert read["all"].tolist() == list(range(24))
    assert read["turned"].tolist() == base[2:22].reshape(5, 4).T.tolist()
    assert read["empty"].tolist() == []


def test_bfloat16_is_widened_and_big_endian_is_turned(tmp_path: Path) -> None:
    values = np.array([[0.5, -3.0], [2.0**100, 0.0]], dtype=np.float32)
    opened = read_torch_file(save([Bfloat16(values)], tmp_path / "saved.pt"))
    assert plain(opened, opened.content)[0].tolist() == values.tolist()
    data, storages = torch_pickle([np.arange(3, dtype=np.int32)])
    file = write_archive(tmp_path / "big.pt", data, [storages[0].astype(">i4").tobytes()], order=b"big")
    opened = read_torch_file(file)
    assert plain(opened, opened.content)[0].tolist() == [0, 1, 2]


def test_a_shared_list_stays_one(tmp_path: Path) -> None:
    shared: list[Any] = [{"layer_id": 3}]
    opened = read_torch_file(save([shared, shared], tmp_path / "saved.pt"))
    assert opened.content[0] is opened.content[1]


# --- hostile pickles -----------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def hostile() -> dict[str, bytes]:
    """Pickles that do something where `pickle` loads them, or would take all memory."""
    touch = "touch ran"
    return {
        "system": pickle.dumps(Bomb(os.system, (touch,)), 2),
        "system, protocol 4": pickle.dumps(Bomb(os.system, (touch,)), 4),
        "eval": pickle.dumps({"logical_count": Bomb(eval, ("open('ran', 'w')",))}, 2),
        "import": b"\x80\x02cos\nsystem\nX\x09\x00\x00\x00touch ran\x85R.",
        "instance": b"(X\x09\x00\x00\x00touch ranios\nsystem\n.",
        "object": b"(cos\nsystem\nX\x09\x00\x00\x00touch rano.",
        "newobj": b"\x80\x02cbuiltins\nobject\n)\x81.",
        "build": b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aK\x01sb.",
        "torch's own call": b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00a\x85R.",
        "a known name, called with what it is never": b"\x80\x02ccollections\nOrderedDict\n]\x85R.",
        "storage class as a call": b"\x80\x02ctorch\nIntStorage\nJ\xff\xff\xff\x7f\x85R.",
        "extension": b"\x80\x02\x82\x01.",
        "huge text": b"\x80\x02X\xff\xff\xff\xffabc.",
        "huge long": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "a dictionary in a dictionary's key": b"\x80\x02}}K\x01s.",
        "no stop": b"\x80\x02K\x01",
        "two values": b"\x80\x02K\x01K\x02.",
        "values after the end": b"\x80\x02K\x01.K\x02",
        "nothing": b"",
        "pop of nothing": b"\x80\x02a.",
        "mark of nothing": b"\x80\x02t.",
        "a mark as the value": b"\x80\x02(.",
        "appended to a number": b"\x80\x02K\x01K\x02a.",
        "protocol 0": b"I1\n.",
        "protocol 9": b"\x80\x09K\x01.",
        "an endless name": b"\x80\x02c" + b"a" * 1000,
        "a name in Unicode": "\x80\x02cö\nü\n.".encode("latin-1"),
        "an unknown memo": b"\x80\x02h\x05.",
        "many integers for a number": b"\x80\x02K\x01(" + b"K\x01" * 600 + b"e.",
    }


@pytest.mark.parametrize("name", hostile())
def test_hostile_pickles_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    found = only_message(write_archive(tmp_path / "bad.pt", hostile()[name], [bytes(40)]))
    assert found
    assert not (tmp_path / "ran").exists()
    assert "defect" not in found


def test_many_lists_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_reader, "_MOST_STEPS", 1000)
    with pytest.raises(NotPlainTensorsError, match="more than 1,000 instructions"):
        load_pickle(b"\x80\x02" + b"]" * 1001 + b".")


def test_a_huge_memo_takes_no_memory() -> None:
    assert load_pickle(b"\x80\x02]r\xff\xff\xff\xff.") == []


def test_a_call_is_named_and_said_not_to_have_run(tmp_path: Path) -> None:
    found = only_message(write_archive(tmp_path / "bad.pt", hostile()["system"], []))
    assert found == "the name posix.system, which no tensor needs; nothing of the file was run"


def tensor(kind: str, key: Any, values: Any, offset: Any, shape: Any, strides: Any) -> bytes:
    """Return the pickle of a tensor that states what it likes."""

    class Stated(torch_writer.TorchPickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch_name("torch", kind), key, "cpu", values) if obj is storage else None

        def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
            if obj is here:
                call = torch_name("torch._utils", "_rebuild_tensor_v2")
                return self.save_reduce(call, (storage, offset, shape, strides, False, OrderedDict()), obj=obj)
            return super().save(obj, save_persistent_id)

    storage, here = object(), object()
    stream = io.BytesIO()
    Stated(stream).dump({"logical_count": here})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        (("IntStorage", "0", 10, 0, (10,), (1,)), ""),
        (("IntStorage", "0", 10, 0, (2**40, 2**40), (1, 1)), "but 10 values"),
        (("IntStorage", "0", 10, 0, (1000,), (0,)), "but 10 values"),
        (("IntStorage", "0", 10, 1, (10,), (1,)), "reaches beyond its 10 values"),
        (("IntStorage", "0", 10, 0, (2,), (10,)), "reaches beyond its 10 values"),
        (("IntStorage", "0", 10, -1, (2,), (1,)), "no shape"),
        (("IntStorage", "0", 10, 0, (2,), (-1,)), "no shape"),
        (("IntStorage", "0", 10, 0, (-2,), (1,)), "no shape"),
        (("IntStorage", "0", 10, 0, (True,), (1,)), "no shape"),
        (("IntStorage", "0", 10, 0, (2, 5), (1,)), "no shape"),
        (("IntStorage", "0", 10, 0, (1,) * 40, (1,) * 40), "no shape"),
        (("IntStorage", "0", 10, 0, [10], [1]), "no shape"),
        (("IntStorage", "0", 11, 0, (11,), (1,)), "40 bytes where 11 values of 4 bytes should be"),
        (("LongStorage", "0", 10, 0, (10,), (1,)), "40 bytes where 10 values of 8 bytes should be"),
        (("IntStorage", "7", 10, 0, (10,), (1,)), "no values for a tensor (data/7)"),
        (("IntStorage", "../data.pkl", 10, 0, (10,), (1,)), "no values for a tensor"),
        (("IntStorage", 0, 10, 0, (10,), (1,)), "of no known type"),
        (("IntStorage", "0", 10.0, 0, (10,), (1,)), "of no known type"),
        (("IntStorage", "0", 2**70, 0, (10,), (1,)), "of no known type"),
        (("UntypedStorage", "0", 10, 0, (10,), (1,)), "the name torch.UntypedStorage"),
    ],
)
def test_tensors_that_state_too_much(tmp_path: Path, stated: tuple[Any, ...], says: str) -> None:
    file = write_archive(tmp_path / "bad.pt", tensor(*stated), [np.arange(10, dtype=np.int32).tobytes()])
    if not says:
        opened = read_torch_file(file)
        assert plain(opened, opened.content)["logical_count"].tolist() == list(range(10))
        return
    assert says in only_message(file)


# --- damaged archives ----------------------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path: Path) -> Path:
    content = {"logical_count": np.arange(60, dtype=np.int32).reshape(3, 4, 5), "rank": 0, "ids": list(range(600))}
    return save(content, tmp_path / "good.pt")


def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    data, _ = torch_pickle([1])
    file = write_archive(tmp_path / "bomb.pt", data, [bytes(50_000_000)], zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 100_000
    assert "compressed part" in only_message(file)


def test_members_that_overlap_are_refused(good: Path) -> None:
    raw = bytearray(good.read_bytes())
    size = len(raw)
    at = raw.find(b"PK\x01\x02")
    while at >= 0:
        raw[at + 20 : at + 28] = struct.pack("<II", size, size)
        at = raw.find(b"PK\x01\x02", at + 4)
    good.write_bytes(raw)
    assert "larger than the file" in only_message(good)


def test_a_flipped_bit_of_a_tensor_is_found(good: Path) -> None:
    raw = bytearray(good.read_bytes())
    raw[raw.find(np.arange(5, 25, dtype=np.int32).tobytes())] ^= 1
    good.write_bytes(raw)
    assert "checksum is wrong" in only_message(good)


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "zip without a pickle", "two pickles", "pipe"])
def test_what_is_no_such_file(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "bad.pt"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind != "missing":
        file.write_bytes(b"" if kind == "empty" else b"some text")
    if kind in {"zip without a pickle", "two pickles"}:
        with zipfile.ZipFile(file, "w") as archive:
            for name in ("a/data.pkl", "b/data.pkl") if kind == "two pickles" else ("a/version",):
                archive.writestr(name, b"\x80\x02N.")
    only_message(file)


def test_every_truncation_is_found(good: Path, tmp_path: Path) -> None:
    raw = good.read_bytes()
    for end in [*range(0, len(raw) - 1, 97), len(raw) - 1]:
        file = tmp_path / "cut.pt"
        file.write_bytes(raw[:end])
        only_message(file)


@EACH
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 8))
def test_swapped_bytes_give_one_message_or_the_same_content(
    good: Path, tmp_path: Path, seed: int, changes: int
) -> None:
    chance = random.Random(seed)
    raw = bytearray(good.read_bytes())
    for _ in range(changes):
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    file = tmp_path / "swapped.pt"
    file.write_bytes(raw)
    try:
        opened = read_torch_file(file)
        plain(opened, opened.content)
    except InputError as error:
        (mistake,) = error.mistakes
        assert "\n" not in str(mistake)


@EACH
@given(data=st.binary(max_size=60), seed=st.integers(0, 2**32))
def test_any_bytes_are_no_defect(data: bytes, seed: int) -> None:
    chance = random.Random(seed)
    good = bytearray(torch_pickle({"a": np.arange(6, dtype=np.int32), "b": [1, (2, "c")]})[0])
    for _ in range(chance.randrange(1, 6)):
        good[chance.randrange(2, len(good))] = chance.randrange(256)
    for tried in (b"\x80\x02" + data, bytes(good)):
        try:
            load_pickle(tried)
        except NotPlainTensorsError as found:
            message = str(found)
            assert len(message) < 300
