"""Recordings larger than memory: whatever is read in blocks, and from files, is what reading it whole gives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from builders import tiny_instance
from command_line import run
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.decisions.units import pool, read_units, read_units_by_node
from moe_placer.errors import InputError
from moe_placer.instance import Instance
from moe_placer.traffic import Recording, Traffic, cut_in_windows, load_traffic, readers, stored_choices
from moe_placer.traffic import token_sets as sets_module
from moe_placer.traffic.stored_choices import by_group, count_all, find_repeated, in_blocks, is_mapped, joined
from moe_placer.traffic.token_sets import token_sets, token_sets_of_layers
from moe_placer.traffic.trace_reader import read_trace
from moe_placer.verifier import choice_counts
from moe_placer.verifier.choice_counts import count_recording

Ids = npt.NDArray[np.integer]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let everything be large, and blocks small."""
    monkeypatch.setattr(stored_choices, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(stored_choices, "_BLOCK_BYTES", 40)
    monkeypatch.setattr(readers, "_BLOCK_BYTES", 56)
    monkeypatch.setattr(stored_choices, "_COMPARED_ROWS", 5)
    monkeypatch.setattr(stored_choices, "_COUNTED_IDS", 12)
    monkeypatch.setattr(sets_module, "_PENDING", 3)
    return


def choices(rng: np.random.Generator, tokens: int, layers: int = 2, experts: int = 4, top_k: int = 2) -> Ids:
    """Draw sets of experts [tokens, layers, top_k]."""
    return np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :top_k]


def defined_load(topk: Ids, experts: int) -> npt.NDArray[np.float64]:
    """Count by the definition."""
    return np.array([[(topk[:, layer] == e).sum() for e in range(experts)] for layer in range(topk.shape[1])], float)


def defined_hash(traffic: Traffic, topk: list[Ids]) -> str:
    """Hash as placements of all versions name recordings: everything whole, one after the other."""
    digest = hashlib.sha256()
    arrays: list[Any] = [traffic.mix]
    for recording, ids in zip(traffic.recordings, topk, strict=True):
        arrays += [recording.load, recording.tokens, ids.astype(np.uint16)]
    for array in arrays:
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def saved(folder: Path, kind: str, **arrays: npt.NDArray[Any]) -> Path:
    """Write arrays as ``kind`` says; ``npy`` has the choices alone."""
    file = folder / f"recording.{'npy' if kind == 'npy' else 'npz'}"
    if kind == "npy":
        np.save(file, arrays["topk"])
    else:
        (np.savez_compressed if kind == "packed" else np.savez)(file, **arrays)
    return file


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(4, 60),
    kind=st.sampled_from(["npz", "packed", "npy"]),
    dtype=st.sampled_from(["u1", "<u2", ">u2", "i1", "<i8"]),
    order=st.sampled_from(["C", "F"]),
    block=st.integers(1, 400),
    large=st.booleans(),
)
def test_reading_in_blocks_gives_what_reading_whole_gives(
    tmp_path: Path, seed: int, tokens: int, kind: str, dtype: str, order: Any, block: int, large: bool
) -> None:
    rng = np.random.default_rng(seed)
    topk = choices(rng, tokens).astype(dtype)
    node = rng.permutation(np.concatenate([np.arange(4), rng.integers(0, 4, tokens - 4)]))
    table = np.stack([defined_load(topk[node == one], 4) for one in range(4)])
    file = saved(
        tmp_path,
        kind,
        topk=np.asarray(topk, order=order),
        load=table.sum(axis=0),
        source_load=table,
        token_source=node,
        seq=rng.integers(0, 9, tokens),
    )
    instance = tiny_instance(traffic={"kind": "trace", "files": [str(file)]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_choices, "_IN_MEMORY_BYTES", 0 if large else 10**6)
        patch.setattr(stored_choices, "_BLOCK_BYTES", block)
        patch.setattr(readers, "_BLOCK_BYTES", block)
        patch.setattr(sets_module, "_PENDING", block % 7 + 1)
        traffic = load_traffic(instance)
        (recording,) = traffic.recordings
        assert recording.topk is not None
        assert is_mapped(recording.topk) == large
        assert np.array_equal(recording.topk, topk)
        assert np.array_equal(recording.load, defined_load(topk, 4))
        assert traffic.sha256 == defined_hash(traffic, [topk])
        check_sets(traffic, [topk])
        parts = cut_in_windows(traffic, 3)
        for part, rows in zip(parts, np.array_split(topk, 3), strict=True):
            assert np.array_equal(part.recordings[0].load, defined_load(rows, 4))
            assert part.sha256 == defined_hash(part, [rows])
        if kind != "npy":
            check_sources(instance, [topk[node == one] for one in range(4)])
            units = read_units(file, instance)
            pooled = pool([*units.plan, *units.score])
            assert pooled.topk is not None
            assert len(pooled.topk) == tokens
            assert np.array_equal(pooled.load, recording.load)


def check_sources(instance: Instance, of_nodes: list[Ids]) -> None:
    """Read the traffic of each node's own tokens, and these in units."""
    sourced = tiny_instance(traffic={"kind": "trace", "files": [str(instance.trace_files[0])], "sources": "recorded"})
    traffic = load_traffic(sourced)
    for recording, topk in zip(traffic.recordings, of_nodes, strict=True):
        assert recording.topk is not None
        assert np.array_equal(recording.topk, topk)
        assert np.array_equal(recording.load, defined_load(topk, 4))
    assert traffic.sha256 == defined_hash(traffic, of_nodes)
    check_sets(traffic, of_nodes)
    for units, topk in zip(read_units_by_node(sourced.trace_files[0], sourced), of_nodes, strict=True):
        assert np.array_equal(pool([*units.plan, *units.score]).load, defined_load(topk, 4))


def check_sets(traffic: Traffic, topk: list[Ids]) -> None:
    """Compare the token sets of every layer, in one pass and one by one, with their definition."""
    together = token_sets_of_layers(traffic, range(2), 4)
    for layer, sets in enumerate(together):
        distinct = [np.unique(np.sort(ids[:, layer], axis=1), axis=0, return_counts=True) for ids in topk]
        for found in (sets, token_sets(traffic, layer, 4)):
            assert found.choice.tolist() == [row for rows, _ in distinct for row in rows.tolist()]
            assert found.count.tolist() == [count for _, counts in distinct for count in counts.tolist()]
            assert found.file.tolist() == [file for file, (rows, _) in enumerate(distinct) for _ in rows]
            assert found.tokens.tolist() == [len(ids) for ids in topk]
            assert found.choice.dtype.kind == "u"


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (5, 5), (60, 4), (256, 8), (257, 8), (8192, 3), (40, 20)])
def test_sets_of_any_width(experts: int, top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets that fit one number, several, and more ids than columns are exchanged for."""
    monkeypatch.setattr(sets_module, "_PENDING", 16)
    monkeypatch.setattr(stored_choices, "_BLOCK_BYTES", 200)
    rng = np.random.default_rng(experts)
    kinds = choices(rng, 9, 1, experts, top_k)
    topk = rng.permuted(kinds[rng.integers(0, 9, 80)], axis=2).astype(np.uint16)
    topk[0, 0, 0] = experts - 1 if experts - 1 not in topk[0, 0] else topk[0, 0, 0]
    sets = token_sets(Traffic((Recording("a", np.ones((1, experts)), np.ones(1), topk),), np.ones((1, 1))), 0, experts)
    rows, counts = np.unique(np.sort(topk[:, 0], axis=1), axis=0, return_counts=True)
    assert np.array_equal(sets.choice, rows)
    assert np.array_equal(sets.count, counts)


@pytest.mark.parametrize("top_k", [1, 2, 5, 16, 17, 30])
def test_the_first_repeated_expert_is_found(top_k: int, small_blocks: None) -> None:
    rng = np.random.default_rng(top_k)
    topk = choices(rng, 20, 3, 40, top_k).astype(np.uint8)
    assert find_repeated(topk) is None
    if top_k > 1:
        for token, layer in ((13, 2), (13, 0), (0, 1)):
            topk[token, layer, top_k - 1] = topk[token, layer, 0]
            assert find_repeated(topk) == (token, layer)


def test_what_is_wrong_is_placed_in_large_files_too(tmp_path: Path, small_blocks: None) -> None:
    for order in ("C", "F"):
        for change, place in (((11, 1), "topk[11, 1]"), ((3, 0, 1), "topk[3, 0, 1]")):
            topk = np.asarray(choices(np.random.default_rng(1), 17).astype(np.uint8), order=order)  # type: ignore[call-overload]
            topk[change] = 7 if len(change) == 3 else [2, 2]
            with pytest.raises(InputError) as caught:
                read_trace(saved(tmp_path, "npz", topk=topk), tiny_instance())
            assert caught.value.mistakes[0].path == place


def test_choices_stay_where_they_are_stored(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second file is made of ids that can be mapped; a file that takes the recording's name changes nothing."""
    topk = choices(np.random.default_rng(2), 30).astype(np.uint8)
    file = saved(tmp_path, "npz", other=np.ones(3), topk=topk)
    monkeypatch.setattr(stored_choices.tempfile, "TemporaryFile", lambda: pytest.fail("another file"))
    recording = read_trace(file, tiny_instance())
    np.savez(tmp_path / "later.npz", topk=topk[::-1])
    (tmp_path / "later.npz").replace(file)
    assert np.array_equal(recording.choices_in(1), topk[:, 1])
    with pytest.raises(pytest.fail.Exception):
        read_trace(saved(tmp_path, "packed", topk=topk), tiny_instance())


def test_what_a_full_disk_does_not_take_is_refused_before_it_is_read(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path, "packed", topk=choices(np.random.default_rng(2), 30).astype(np.uint8))
    usage = type("Usage", (), {"free": 119})
    monkeypatch.setattr(stored_choices.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(
        InputError, match=r"choices of 30 tokens: 0\.0 GB, expected at most the 0\.0 GB that are left in"
    ):
        read_trace(file, tiny_instance())
    usage.free = 120  # type: ignore[attr-defined]
    assert read_trace(file, tiny_instance()).load.sum() == 120
    monkeypatch.setattr(stored_choices.os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(InputError, match="takes no more"):
        read_trace(file, tiny_instance())


def test_too_few_addresses_are_told(tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path, "npz", topk=choices(np.random.default_rng(2), 30).astype(np.uint8))

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(stored_choices.mmap, "mmap", fail)
    with pytest.raises(InputError, match=r"cannot be mapped \(Cannot allocate memory\), expected addresses for 0.0 GB"):
        read_trace(file, tiny_instance())


def test_groups_and_joined_parts_keep_the_order(small_blocks: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    topk = choices(rng, 50).astype(np.uint8)
    stored = read_trace(saved(tmp_path, "npz", topk=topk), tiny_instance()).topk
    assert stored is not None
    group = rng.integers(-1, 4, 50)
    group[group == 2] = 3
    for given_choices in (topk, stored):
        parts = by_group(given_choices, group, 4)
        assert [part.tolist() for part in parts] == [topk[group == one].tolist() for one in range(4)]
        assert count_all(parts[2], 4).tolist() == np.zeros((2, 4)).tolist()
        assert np.array_equal(joined(parts), np.concatenate([topk[group == one] for one in range(4)]))


def test_a_block_is_all_that_stays_in_memory(tmp_path: Path) -> None:
    """Pages of a mapped file that were read count as the process's own until they are given back."""
    topk = np.tile(choices(np.random.default_rng(4), 1000, 8, 64, 8).astype(np.uint8), (300, 1, 1))
    file = saved(tmp_path, "npy", topk=topk)
    with file.open("rb") as stream, pytest.MonkeyPatch.context() as patch:
        stored = stored_choices.map_choices(stream.fileno(), 128, topk.shape, topk.dtype, False)
        patch.setattr(stored_choices, "_BLOCK_BYTES", 640_000)
        assert sum(int(ids.sum()) for _, ids in in_blocks(stored)) == int(topk.sum())
        assert mapped_kilobytes(file) < 2000
        assert int(stored.sum()) == int(topk.sum())
        assert mapped_kilobytes(file) > 15_000


def mapped_kilobytes(file: Path) -> int:
    """Return what of a mapped file is in this process's memory."""
    inside, size = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            inside = rest.endswith(str(file))
        elif inside and name == "Rss:":
            size += int(rest.split()[0])
    return size


def test_more_sets_than_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    topk = choices(np.random.default_rng(5), 400, 2, 40, 3).astype(np.uint8)
    traffic = Traffic((Recording("a", count_all(topk, 40), np.full(2, 400.0), topk),), np.ones((1, 1)))
    monkeypatch.setattr(sets_module, "_SURELY_SMALL_BYTES", 1000)
    monkeypatch.setattr(sets_module, "available_memory", lambda: 2e5)
    assert len(token_sets_of_layers(traffic, [0, 1], 40)) == 2
    monkeypatch.setattr(sets_module, "available_memory", lambda: 2e4)
    with pytest.raises(InputError, match=r"different sets of experts in 2 MoE layers.*traffic\.sample_tokens"):
        token_sets_of_layers(traffic, [0, 1], 40)


@pytest.mark.parametrize("large", [False, True])
def test_a_sample_is_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    """Its tokens are those drawn, in order, and counts are of these alone; so it is with sources, and in units."""
    if large:
        monkeypatch.setattr(stored_choices, "_IN_MEMORY_BYTES", 0)
        monkeypatch.setattr(stored_choices, "_BLOCK_BYTES", 40)
    topk, node = choices(np.random.default_rng(6), 90), np.arange(90) % 4
    table = np.stack([defined_load(topk[node == one], 4) for one in range(4)])
    arrays = {"topk": topk, "load": table.sum(axis=0), "source_load": table, "token_source": node}
    file = saved(tmp_path, "npz", **arrays)
    drawn = stored_choices.draw_tokens(90, 25)
    instance = tiny_instance(traffic={"kind": "trace", "files": [str(file)], "sample_tokens": 25})
    traffic = load_traffic(instance)
    (recording,) = traffic.recordings
    assert recording.name == "recording.npz, 25 of 90 tokens"
    assert np.array_equal(recording.load, defined_load(topk[drawn], 4))
    assert recording.tokens.tolist() == [25, 25]
    assert traffic.sha256 == defined_hash(traffic, [topk[drawn]])
    check_sets(traffic, [topk[drawn]])
    units = read_units(file, instance)
    assert np.array_equal(pool([*units.plan, *units.score]).load, recording.load)
    sourced = tiny_instance(traffic={"kind": "trace", "files": [str(file)], "sample_tokens": 25, "sources": "recorded"})
    for at, one in enumerate(load_traffic(sourced).recordings):
        assert np.array_equal(one.load, defined_load(topk[drawn][node[drawn] == at], 4))
    for at, of_node in enumerate(read_units_by_node(file, sourced)):
        assert pool([*of_node.plan, *of_node.score]).tokens[0] == (node[drawn] == at).sum()


def test_a_sample_is_part_of_what_an_instance_asks() -> None:
    plain = tiny_instance(traffic={"kind": "trace"})
    assert tiny_instance(traffic={"kind": "trace", "sample_tokens": 9}).sha256 != plain.sha256
    assert tiny_instance(traffic={"kind": "trace", "sample_tokens": None}).sha256 == plain.sha256
    kept = tiny_instance(traffic={"kind": "trace", "sample_tokens": 9}).with_traces(["a.npz"])
    assert getattr(kept.traffic, "sample_tokens", None) == 9


def test_a_placement_of_a_large_recording_is_that_of_the_same_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, solved for copies per node on a sample, which the file names; and verified from either."""
    topk = choices(np.random.default_rng(7), 300)
    saved(tmp_path, "packed", topk=topk)
    instance = tiny_instance(
        traffic={"kind": "trace", "files": ["recording.npz"], "sample_tokens": 120},
        placement={"dispatch": "per-node", "slots_per_gpu": 2},
    )
    (tmp_path / "tiny.json").write_text(instance.model_dump_json())
    for folder, most in (("memory", 10**6), ("mapped", 0)):
        monkeypatch.setattr(stored_choices, "_IN_MEMORY_BYTES", most)
        monkeypatch.setattr(stored_choices, "_BLOCK_BYTES", 40)
        done = run("solve", tmp_path / "tiny.json", "-o", tmp_path / folder, "--solver", "greedy", "--no-dag", "-q")
        assert done.returncode == 0, done.stderr
        verified = run("verify", tmp_path / "tiny.json", tmp_path / folder / "placement.json")
        assert verified.returncode == 0, verified.stdout
    written = (tmp_path / "mapped" / "placement.json").read_text()
    assert written == (tmp_path / "memory" / "placement.json").read_text()
    assert "recording.npz, 120 of 300 tokens" in written


def test_verification_counts_large_recordings_once_and_small_ones_every_time(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is mapped cannot be written to, so that a count of it stays right; by its own code, for any ids."""
    topk = choices(np.random.default_rng(8), 40).astype(np.uint8)
    mapped = read_trace(saved(tmp_path, "npz", topk=topk), tiny_instance())
    small = Recording("small", mapped.load, mapped.tokens, topk)
    assert mapped.topk is not None
    assert not mapped.topk.flags.writeable
    for recording in (mapped, small):
        monkeypatch.setattr(choice_counts, "_IDS", 13)
        seen = count_recording(recording, 4)
        assert (seen.least, seen.most) == (0, 3)
        assert seen.load is not None
        assert seen.load.tolist() == defined_load(topk, 4).tolist()
        assert count_recording(recording, 3).load is None
        assert (count_recording(recording, 4) is seen) == (recording is mapped)
    topk[0, 0] = [0, 1] if topk[0, 0, 0] + topk[0, 0, 1] != 1 else [2, 3]
    again = count_recording(small, 4).load
    assert again is not None
    assert again.tolist() == defined_load(topk, 4).tolist()
