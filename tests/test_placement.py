"""Placement files: what is written is read back, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import honest, tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.errors import InputError, visible
from moe_placer.placement import Placement, load_placement

INSTANCE = tiny_instance()
GOOD = json.dumps(honest(INSTANCE, tiny_traffic(INSTANCE)))

COST = st.floats(0, 1e15)
# Names without control and direction characters, which placement files may not hold.
NAME = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda text: visible(text) == text)
RECORD = st.fixed_dictionaries(
    {
        "layer": st.integers(0, 1000),
        "z": COST,
        "bound": COST,
        "proof": st.sampled_from(["dual", "threshold", "solver"]),
    },
    optional={
        "weights": st.dictionaries(NAME, COST, max_size=3),
        "threshold": COST,
        "hot": st.tuples(st.integers(0, 9), st.integers(0, 9)),
        "any_copies": st.booleans(),
        "worst_link": NAME,
        "solver_bound": COST,
    },
)
GPU_ID = st.integers(0, 10_000)
REPLICAS = st.one_of(
    st.lists(GPU_ID, min_size=1, max_size=3), st.lists(st.lists(GPU_ID, min_size=1, max_size=2), min_size=1, max_size=2)
)


@given(st.lists(RECORD, max_size=3), st.lists(st.lists(REPLICAS, max_size=3), max_size=3), st.integers(0, 2**63))
@settings(deadline=None)
def test_files_round_trip(tmp_path: Path, records: list[Any], gpu: list[Any], seed: int) -> None:
    content = {**json.loads(GOOD), "layers": records, "gpu": gpu}
    content["solver"]["seed"] = seed
    placement = Placement.model_validate_json(json.dumps(content))
    placement.write(tmp_path / "placement.json")
    again = load_placement(tmp_path / "placement.json")
    assert again == placement
    assert again.to_json() == placement.to_json() == (tmp_path / "placement.json").read_text()


def test_shards_are_lists_within_lists() -> None:
    content = json.loads(GOOD)
    content["gpu"] = [[[1, 2], [[3, 4], [5, 6]]]]
    placement = Placement.model_validate_json(json.dumps(content))
    assert placement.shards(0, 0) == ((1,), (2,))
    assert placement.shards(0, 1) == ((3, 4), (5, 6))


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(GOOD), **changes})


A_LIST = r"gpu\[0\]\[0\]: found .*, expected GPU ids, one per replica"
WRONG: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "not JSON"),
    "binary": (b"\x00\xff\xfe" * 9, "not JSON"),
    "cut": (GOOD[:-20], "not JSON"),
    "a list": ("[]", "an object"),
    "deep": ("[" * 200_000, "deeply nested"),
    "deep objects": ('{"a":' * 200_000, "deeply nested"),
    "a key twice": (GOOD[:-1] + ', "gpu": []}', "'gpu' stands twice"),
    "too many digits": (GOOD.replace('"seed": 0', '"seed": ' + "9" * 5000), "not JSON"),
    "not a number": (changed(layers=[{"layer": 0, "z": float("nan"), "bound": 0, "proof": "dual"}]), r"layers\[0\].z"),
    "half a character": (changed(instance={"name": "\ud800", "sha256": "", "traffic_sha256": ""}), "direction char"),
    "another schema": (changed(schema="moe-placer/placement/9"), "schema"),
    "no schema": (json.dumps({k: v for k, v in json.loads(GOOD).items() if k != "schema"}), "schema: found nothing"),
    "a negative GPU": (changed(gpu=[[[-1]]]), A_LIST),
    "half a GPU": (changed(gpu=[[[1.5]]]), A_LIST),
    "true as a GPU": (changed(gpu=[[[True]]]), A_LIST),
    "text as a GPU": (changed(gpu=[[["1"]]]), A_LIST),
    "an unknown proof": (changed(layers=[{"layer": 0, "z": 1, "bound": 0, "proof": "trust me"}]), r"layers\[0\].proof"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, name: str) -> None:
    content, says = WRONG[name]
    file = tmp_path / "placement.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=says):
        load_placement(file)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_placer.placement.MAX_BYTES", 100)
    (tmp_path / "placement.json").write_text(GOOD)
    with pytest.raises(InputError, match=r"more than 0\.0001 MB"):
        load_placement(tmp_path / "placement.json")


@given(position=st.integers(0, len(GOOD) - 1), text=st.text('0123456789-.[]{}",:eEnul \\u', max_size=4))
@settings(deadline=None, max_examples=100)
def test_a_damaged_file_loads_or_gives_an_input_error(tmp_path: Path, position: int, text: str) -> None:
    file = tmp_path / "placement.json"
    file.write_text(GOOD[:position] + text + GOOD[position + 1 :])
    try:
        placement = load_placement(file)
    except InputError:
        return
    assert isinstance(placement, Placement)
