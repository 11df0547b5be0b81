"""Tables of tokens, Parquet and Arrow: read, imported and split as the same choices in an .npz are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
from builders import tiny_instance
from command_line import fails, run
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.decisions.units import pool, read_units
from moe_placer.engines.recordings import import_recording
from moe_placer.errors import InputError
from moe_placer.traffic import load_traffic, stored_choices, token_table
from moe_placer.traffic.split import split_recording
from moe_placer.traffic.stored_choices import is_mapped
from moe_placer.traffic.trace_reader import read_trace

Ids = npt.NDArray[np.integer]
Lists = dict[str, list[Any]]
INSTANCE = tiny_instance()  # 2 MoE layers, 4 experts, top-2
LISTS = {"list": pyarrow.list_, "large": pyarrow.large_list, "fixed": lambda kind: pyarrow.list_(kind, 2)}


def choices(tokens: int, seed: int = 0) -> Ids:
    return np.argsort(np.random.default_rng(seed).random((tokens, 2, 4)), axis=2)[:, :, :2]


def columns(
    topk: Ids, layers: Any = (0, 1), kind: str = "list", ids: str = "int32", **of_tokens: Any
) -> dict[str, Any]:
    """Give the columns of choices [tokens, layers, top_k]."""
    tokens, each = topk.shape[:2]
    rows = topk.reshape(-1, topk.shape[2]).tolist()
    experts = pyarrow.array(rows, LISTS[kind](getattr(pyarrow, ids)()))
    repeated = {name: pyarrow.array(np.repeat(values, each)) for name, values in of_tokens.items()}
    return {"layer": pyarrow.array(np.tile(layers, tokens)), **repeated, "experts": experts}


def write(file: Path, content: dict[str, Any], rows: int = 7) -> Path:
    """Write a table in parts of so many rows."""
    table = pyarrow.table(content)
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(table, file, row_group_size=rows)
    elif file.suffix == ".feather":
        pyarrow.feather.write_feather(table, file, chunksize=rows)  # packed
    else:
        with pyarrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return file


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 40),
    suffix=st.sampled_from([".parquet", ".arrow", ".feather"]),
    kind=st.sampled_from(list(LISTS)),
    ids=st.sampled_from(["uint8", "int16", "int64", "uint64"]),
    rows=st.integers(1, 30),
    block=st.sampled_from([1, 64, 200, 10**6]),
    large=st.booleans(),
    index=st.booleans(),
)
def test_a_table_is_the_trace_that_it_holds(
    tmp_path: Path, tokens: int, suffix: str, kind: str, ids: str, rows: int, block: int, large: bool, index: bool
) -> None:
    topk = choices(tokens, rows)
    layers = INSTANCE.moe_layers if index else (0, 1)
    more = {"token": np.arange(tokens), "seq": np.arange(tokens) // 3} if rows % 2 else {}
    file = write(tmp_path / f"recording{suffix}", columns(topk, layers, kind, ids, **more), rows)
    np.savez(tmp_path / "recording.npz", topk=topk)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_table, "_BLOCK_BYTES", block)
        patch.setattr(stored_choices, "_IN_MEMORY_BYTES", 0 if large else 10**6)
        patch.setattr(stored_choices, "_BLOCK_BYTES", block)
        read, same = (
            load_traffic(tiny_instance(traffic={"kind": "trace", "files": [str(one)]}))
            for one in (file, tmp_path / "recording.npz")
        )
        (recording,) = read.recordings
        assert recording.topk is not None
        assert is_mapped(recording.topk) == large
        assert np.array_equal(recording.topk, topk)
        assert np.array_equal(recording.load, same.recordings[0].load)
        assert read.sha256 == same.sha256
        units = read_units(file, INSTANCE)
        assert np.array_equal(pool([*units.plan, *units.score]).load, recording.load)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_table_is_imported(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts by source rank and window, and kept tokens with their sequence, over two files in order."""
    monkeypatch.setattr(token_table, "_BLOCK_BYTES", 300)
    topk, source, seq = choices(600), np.arange(600) % 5, np.arange(600) // 40
    files = []
    for number, part in enumerate((slice(0, 250), slice(250, 600))):
        content = columns(topk[part], (3, 5), source=source[part], seq=seq[part])
        files.append(write(tmp_path / f"part{number}{suffix}", content, 90))
    recorded = import_recording([tmp_path], tokens=100, experts=6)
    load = np.array([[(topk[:, layer] == e).sum() for e in range(6)] for layer in range(2)])
    assert recorded.load.tolist() == load.tolist()
    table = recorded.arrays["source_load"]
    for rank in range(5):
        mine = topk[source == rank]
        assert table[rank].tolist() == [[(mine[:, layer] == e).sum() for e in range(6)] for layer in range(2)]
    assert len(recorded.arrays["window_load"]) == 256
    step = np.arange(600) * 256 // 600
    for window in (0, 100, 255):
        assert recorded.arrays["window_load"][window].sum() == (step == window).sum() * 4
    kept = stored_choices.draw_tokens(600, 100)
    assert np.array_equal(recorded.arrays["topk"], topk[kept])
    assert np.array_equal(recorded.arrays["token_source"], source[kept])
    assert np.array_equal(recorded.arrays["seq"], seq[kept])
    assert (recorded.about.layers, recorded.about.sources, recorded.about.tokens) == ((3, 5), 5, 600)
    plain = import_recording([write(tmp_path / f"plain{suffix}", columns(topk))])
    assert plain.about.layers is None
    assert "source_load" not in plain.arrays
    assert plain.load.tolist() == load[:, :4].tolist()
    assert any("4 experts are known from the largest id" in note for note in plain.about.notes)


def test_tables_of_counts_are_still_counts(tmp_path: Path) -> None:
    counts = {"layer": [0, 0, 1, 1], "expert": [0, 1, 0, 1], "count": [5, 6, 7, 8]}
    pyarrow.parquet.write_table(pyarrow.table(counts), tmp_path / "counts.parquet")
    assert import_recording([tmp_path / "counts.parquet"]).load.tolist() == [[5, 6], [7, 8]]


def test_the_commands_take_tables(tmp_path: Path) -> None:
    topk = choices(12)
    file = write(tmp_path / "day.parquet", columns(topk, seq=np.arange(12) // 3))
    done = run("import", file, "-o", tmp_path / "day.npz", "--experts", 4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "table of tokens"
    assert run("split", file, "-o", tmp_path / "parts").returncode == 0
    with np.load(tmp_path / "parts" / "day_odd.npz") as stored:
        assert np.array_equal(stored["topk"], topk[np.arange(12) // 3 % 2 == 1])
    write(tmp_path / "no.parquet", columns(topk))
    fails(1, "split", tmp_path / "no.parquet", "-o", tmp_path, says="no column seq")
    other = write(tmp_path / "other.parquet", columns(topk[:, :1], (0,)))
    fails(1, "import", file, other, "-o", tmp_path / "x.npz", says="1 layers, top-2")
    ranks = write(tmp_path / "ranks.parquet", columns(topk, source=np.full(12, -1)))
    fails(1, "import", ranks, "-o", tmp_path / "x.npz", says="rank -1")
    ids = write(tmp_path / "ids.parquet", columns(topk + 9000, seq=np.arange(12)))
    fails(1, "import", ids, "-o", tmp_path / "x.npz", says="expert 9003")
    fails(1, "split", ids, "-o", tmp_path, says="ids from 9000 to 9003")


def put(name: str, row: int, *values: Any) -> Callable[[Lists], Lists]:
    """Return what puts values into a column from some row on."""
    return lambda t: {**t, name: [*t[name][:row], *values, *t[name][row + len(values) :]]}


WRONG: dict[str, tuple[Callable[[Lists], Lists], str, str]] = {
    "no layer": (lambda t: {"token": t["token"], "experts": t["experts"]}, "", "no column layer"),
    "nothing": (lambda t: {name: [] for name in t}, "", "0 rows, expected some tokens"),
    "a row less": (lambda t: {name: t[name][:-1] for name in t}, "", "17 rows, expected a multiple of 2"),
    "an empty cell": (put("layer", 4, None), "layer", "empty cells"),
    "an empty id": (put("experts", 4, [None, 1]), "experts", "empty cells"),
    "a longer list": (put("experts", 5, [0, 1, 2]), "experts, row 5", "3 ids"),
    "other layers": (put("layer", 6, 1, 0), "layer, row 6", "found 1, expected 0: every token has the same layers"),
    "descending layers": (put("layer", 0, *[1, 0] * 9), "layer", "a first token with layers [1, 0]"),
    "layers of another model": (put("layer", 0, *[7, 8] * 9), "layer", "layers 7, 8"),
    "a token torn apart": (put("token", 7, 99), "token, row 7", "found 99, expected 3"),
    "an unknown expert": (put("experts", 11, [0, 4]), "experts, row 11", "expert id 4"),
    "an expert twice": (put("experts", 11, [3, 3]), "experts, row 11", "one expert twice: [3, 3]"),
    "fractions": (put("layer", 0, *[0.0, 1.0] * 9), "layer", "values of type double"),
    "another top_k": (put("experts", 0, *[[0, 1, 2]] * 18), "topk", "3 experts a token"),
}


@pytest.mark.parametrize("change", WRONG)
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_tables_that_are_wrong(tmp_path: Path, change: str, suffix: str) -> None:
    alter, path, says = WRONG[change]
    good = {name: column.to_pylist() for name, column in columns(choices(9), token=np.arange(9)).items()}
    kinds = {"layer": None, "token": pyarrow.int64(), "experts": pyarrow.list_(pyarrow.int32())}
    content = {name: pyarrow.array(values, kinds[name]) for name, values in alter(good).items()}
    file = write(tmp_path / f"wrong{suffix}", content, 4)
    with pytest.raises(InputError) as caught:
        read_trace(file, INSTANCE)
    (mistake,) = caught.value.mistakes
    assert (mistake.path, mistake.file) == (path, file)
    assert says in str(mistake)


@settings(max_examples=30, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=4),
    suffix=st.sampled_from([".parquet", ".arrow", ".feather"]),
)
def test_good_tables_with_some_bytes_changed(tmp_path: Path, changes: list[tuple[int, int]], suffix: str) -> None:
    file = write(tmp_path / f"changed{suffix}", columns(choices(9)), 5)
    raw = bytearray(file.read_bytes())
    for position, value in changes:
        raw[position % len(raw)] = value
    file.write_bytes(raw)
    try:
        recording = read_trace(file, INSTANCE)
    except InputError:
        return
    assert recording.load.shape == (2, 4)


def test_parts_that_do_not_fit_memory_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_table, "available_memory", lambda: 100.0)
    monkeypatch.setattr(token_table, "_batches", lambda *_: pytest.fail("read"))
    for suffix, says in ((".parquet", "row groups"), (".arrow", "record batches")):
        with pytest.raises(InputError, match=f"{says} of .* half of the memory"):
            read_trace(write(tmp_path / f"a{suffix}", columns(choices(9)), 18), INSTANCE)


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.parquet", columns(choices(3)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"moe-placer\[parquet\]"):
        read_trace(file, INSTANCE)
    monkeypatch.undo()
    (tmp_path / "text.arrow").write_text("hello")
    for bad, says in (("none.parquet", "no such file"), ("text.arrow", "cannot be read")):
        with pytest.raises(InputError, match=says):
            read_trace(tmp_path / bad, INSTANCE)


@settings(max_examples=8, deadline=None)
@given(tokens=st.integers(8, 60), parts=st.integers(2, 4), order=st.sampled_from(["C", "F"]), block=st.integers(1, 300))
def test_parts_are_what_numpy_writes(tmp_path: Path, tokens: int, parts: int, order: Any, block: int) -> None:
    """Byte for byte, for any blocks and however many parts are open at a time."""
    from moe_placer.traffic import readers, split

    topk = np.asarray(choices(tokens).astype(np.uint16), order=order)
    seq = np.concatenate([np.arange(parts), np.random.default_rng(block).integers(0, 9, tokens - parts)])
    np.savez(tmp_path / "day.npz", topk=topk, seq=seq)
    table = write(tmp_path / "table.parquet", columns(topk, seq=seq))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_BLOCK_BYTES", block)
        patch.setattr(token_table, "_BLOCK_BYTES", block)
        patch.setattr(split, "_MOST_OPEN", 2)
        of_arrays = split_recording(tmp_path / "day.npz", tmp_path / "a", parts)
        of_table = split_recording(table, tmp_path / "b", parts)
    for index, (one, other) in enumerate(zip(of_arrays, of_table, strict=True)):
        mine = seq % parts == index
        np.savez_compressed(tmp_path / "whole.npz", topk=np.ascontiguousarray(topk)[mine], seq=seq[mine])
        assert one.read_bytes() == other.read_bytes() == (tmp_path / "whole.npz").read_bytes()
