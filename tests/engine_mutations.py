"""Breaks the files that engines load: every mutation breaks a rule that the format's document states."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import yaml

Rng = np.random.Generator
Mutation = Callable[[Any, Rng], None]  # changes content in place

ENTRIES: dict[str, Any] = {
    "-1": -1,
    "far below 0": -(10**6),
    "a fraction": 1.0,
    "text": "3",
    "true": True,
    "null": None,
    "a list": [1],
    "a huge number": 10**25,
}


class Rows:
    """What breaks formats that list the slots of every layer."""

    def __init__(self, rows_of: Callable[[Any], list[list[Any]]], experts: int) -> None:
        self.rows_of, self.experts = rows_of, experts

    def pick(self, content: Any, rng: Rng) -> tuple[list[Any], int]:
        rows = self.rows_of(content)
        row = rows[int(rng.integers(len(rows)))]
        return row, int(rng.integers(len(row)))

    def entry(self, value: Any) -> Mutation:
        def change(content: Any, rng: Rng) -> None:
            row, at = self.pick(content, rng)
            row[at] = value

        return change

    def lose_expert(self, content: Any, rng: Rng) -> None:
        row, at = self.pick(content, rng)
        lost = row[at]
        row[:] = [(lost + 1) % self.experts if one == lost else one for one in row]

    def drop_slot(self, content: Any, rng: Rng) -> None:
        row, at = self.pick(content, rng)
        del row[at]

    def drop_two_slots_everywhere(self, content: Any, rng: Rng) -> None:
        for row in self.rows_of(content):
            del row[-2:]

    def add_slot(self, content: Any, rng: Rng) -> None:
        row, at = self.pick(content, rng)
        row.append(row[at])

    def empty(self, content: Any, rng: Rng) -> None:
        self.pick(content, rng)[0].clear()

    def all_fractions(self, content: Any, rng: Rng) -> None:
        for row in self.rows_of(content):
            row[:] = [float(one) for one in row]

    def all(self) -> dict[str, Mutation]:
        return {
            **{f"an entry that is {name}": self.entry(value) for name, value in ENTRIES.items()},
            "an entry that is E": self.entry(self.experts),
            "an expert lost": self.lose_expert,
            "a slot lost": self.drop_slot,
            "two slots lost in every layer": self.drop_two_slots_everywhere,
            "a slot too many": self.add_slot,
            "a layer without slots": self.empty,
            "fractions throughout": self.all_fractions,
        }


def layer_lists(layers_of: Callable[[Any], list[Any]]) -> dict[str, Mutation]:
    """Return what breaks formats whose layers are a list."""

    def drop(content: Any, rng: Rng) -> None:
        layers = layers_of(content)
        del layers[int(rng.integers(len(layers)))]

    def repeat(content: Any, rng: Rng) -> None:
        layers = layers_of(content)
        layers.append(json.loads(json.dumps(layers[int(rng.integers(len(layers)))])))

    def not_a_list(content: Any, rng: Rng) -> None:
        layers = layers_of(content)
        layers[int(rng.integers(len(layers)))] = rng.choice(np.array(["rows", "7"])).item()

    return {"a layer lost": drop, "a layer too many": repeat, "a layer that is no list": not_a_list}


def setting(key: str, value: Any) -> Mutation:
    def change(content: Any, rng: Rng) -> None:
        content[key] = value

    return change


def without(key: str) -> Mutation:
    def change(content: Any, rng: Rng) -> None:
        del content[key]

    return change


def keyed(key: str, dense: Any, further: Any) -> dict[str, Mutation]:
    """Return what breaks formats whose layers are keys of a mapping."""

    def drop(content: Any, rng: Rng) -> None:
        del content[key][list(content[key])[int(rng.integers(len(content[key])))]]

    def rename(content: Any, rng: Rng) -> None:
        first = next(iter(content[key]))
        content[key][dense] = content[key].pop(first)

    def add(content: Any, rng: Rng) -> None:
        content[key][further] = list(next(iter(content[key].values())))

    return {"a layer lost": drop, "a layer under another key": rename, "a layer under a wrong key": add}


def ascend_device(content: Any, rng: Rng) -> dict[str, Any]:
    layer = content["layer_list"][int(rng.integers(len(content["layer_list"])))]
    return layer["device_list"][int(rng.integers(len(layer["device_list"])))]


def ascend_twice(content: Any, rng: Rng) -> None:
    # The expert that leaves is still on another rank, so that only the repetition is wrong.
    for layer in content["layer_list"]:
        flat = [one for each in layer["device_list"] for one in each["device_expert"]]
        for each in layer["device_list"]:
            held = each["device_expert"]
            for at, one in enumerate(held):
                if flat.count(one) > 1 and len(held) > 1:
                    held[at] = held[at - 1]
                    return
    raise AssertionError("no expert has two replicas")


def ascend_lose_device(content: Any, rng: Rng) -> None:
    content["layer_list"][int(rng.integers(len(content["layer_list"])))]["device_list"].pop()


def ascend_device_id(content: Any, rng: Rng) -> None:
    ascend_device(content, rng)["device_id"] += 1


def ascend_layer_id(content: Any, rng: Rng) -> None:
    content["layer_list"][-1]["layer_id"] += 2


def ascend_uneven(content: Any, rng: Rng) -> None:
    layer = content["layer_list"][int(rng.integers(len(content["layer_list"])))]["device_list"]
    layer[0]["device_expert"].append(layer[1]["device_expert"].pop())


def ascend_further(content: Any, rng: Rng) -> None:
    ascend_device(content, rng)["slots"] = 2


def ascend_mutations() -> dict[str, Mutation]:
    return {
        "an expert twice on a rank": ascend_twice,
        "a device lost": ascend_lose_device,
        "a device under another id": ascend_device_id,
        "a layer under another id": ascend_layer_id,
        "unequal slots": ascend_uneven,
        "a further key in a device": ascend_further,
        "a wrong count of layers": setting("moe_layer_count", 7),
        "a further key": setting("made_by", "someone"),
        "no layers": setting("layer_list", []),
    }


def rename_map(content: Any, rng: Rng) -> None:
    content["logical_count"] = content.pop("physical_to_logical_map")


def ascend_rows(content: Any) -> list[Any]:
    return [device["device_expert"] for layer in content["layer_list"] for device in layer["device_list"]]


def mutations_of(form: str, experts: int, dense: int) -> dict[str, Mutation]:
    """Name the mutations of a format's content."""
    if form == "sglang":
        rows: Callable[[Any], list[Any]] = lambda content: content["physical_to_logical_map"]  # noqa: E731
        extra = {
            "a further key": setting("made_by", "someone"),
            "a recording besides": setting("logical_count", [[1]]),
            "only a recording": lambda content, rng: content.update(
                logical_count=content.pop("physical_to_logical_map")
            ),
            "no layers": setting("physical_to_logical_map", []),
        }
        return {**Rows(rows, experts).all(), **layer_lists(rows), **extra}
    if form in {"vllm-plan", "vllm-initial-map"}:
        return {**Rows(lambda content: content, experts).all(), **layer_lists(lambda content: content)}
    if form == "vllm-jsonl":
        key = "initial_global_assignments"
        return {
            **Rows(lambda content: list(content[key].values()), experts).all(),
            **keyed(key, "7", "x"),
            "a wrong count of slots": setting("num_slots", 24),
            "a wrong count of redundant slots": setting("num_redundant_experts", 8),
            "another version": setting("version", 2),
            "another record": setting("record_type", "eplb_load_stats"),
            "a further key": setting("made_by", "someone"),
            "no count of slots": without("num_slots"),
        }
    if form == "trtllm":
        key = "initial_global_assignments"
        return {
            **Rows(lambda content: list(content[key].values()), experts).all(),
            **keyed(key, dense, "3"),
            "a wrong count of slots": setting("num_slots", 24),
            "updates": setting("layer_updates_per_iter", 2),
            "the key that old scripts write": setting("ep_size", 8),
            "no count of slots": without("num_slots"),
            "layers counted without dense ones": lambda content, rng: content.update(
                {key: dict(enumerate(content[key].values()))}
            ),
        }
    assert form == "vllm-ascend"
    entries = Rows(ascend_rows, experts).all()
    del entries["an expert lost"]  # of one rank, it may be on another one still
    return {**entries, **layer_lists(lambda content: content["layer_list"]), **ascend_mutations()}


def read(form: str, raw: bytes) -> Any:
    return yaml.safe_load(raw) if form == "trtllm" else json.loads(raw)


def write(form: str, content: Any) -> bytes:
    return (yaml.safe_dump(content) if form == "trtllm" else json.dumps(content)).encode()


def omni_mutations(pattern: np.ndarray) -> dict[str, Callable[[np.ndarray, Rng], np.ndarray]]:
    """Return what breaks a pattern [ranks, MoE layers, experts]."""

    def place(pattern: np.ndarray, rng: Rng) -> tuple[int, ...]:
        return tuple(int(rng.integers(size)) for size in pattern.shape)

    def value(number: int) -> Callable[[np.ndarray, Rng], np.ndarray]:
        def change(pattern: np.ndarray, rng: Rng) -> np.ndarray:
            pattern[place(pattern, rng)] = number
            return pattern

        return change

    def lose(pattern: np.ndarray, rng: Rng) -> np.ndarray:
        _, layer, expert = place(pattern, rng)
        pattern[:, layer, expert] = 0
        return pattern

    def one_more(pattern: np.ndarray, rng: Rng) -> np.ndarray:
        free = np.argwhere(pattern == 0)
        pattern[tuple(free[int(rng.integers(len(free)))])] = 1
        return pattern

    return {
        "a 2": value(2),
        "a -1": value(-1),
        "an expert lost": lose,
        "a one too many": one_more,
        "a rank lost": lambda pattern, rng: pattern[1:],
        "a layer lost": lambda pattern, rng: pattern[:, 1:],
        "an expert's column lost": lambda pattern, rng: pattern[:, :, 1:],
        "axes swapped": lambda pattern, rng: pattern.transpose(1, 0, 2),
        "fractions": lambda pattern, rng: pattern + 0.25,
        "text": lambda pattern, rng: pattern.astype(str),
        "one layer's matrix": lambda pattern, rng: pattern[:, 0],
    }


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def cuts(raw: bytes, rng: Rng, count: int) -> Iterator[tuple[str, bytes]]:
    """Cut a file short, as a full disk does; what is left over of blanks does not count."""
    whole = len(raw.rstrip())
    for _ in range(count):
        at = int(rng.integers(0, whole - 2))
        yield f"cut after {at} bytes", raw[:at]
