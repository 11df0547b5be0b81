"""Instance files: every mistake is found, with file, line and field; nothing but an InputError ever comes out."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from builders import TINY, tiny_instance
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from moe_placer.errors import InputError
from moe_placer.instance import Instance, load_instance, make_instance
from moe_placer.instance.sizes import expert_bytes, memory_parts, token_bytes
from moe_placer.instance.yaml_reader import parse_yaml, read_yaml

FOLDER = Path(__file__).parents[2] / "instances"
SEED_PLAN = (FOLDER / "h100-128.yaml").read_text()
SEED_LINE = "                 # synthetic | trace | load\n  seed: 7"
FILES = sorted(FOLDER.glob("*.yaml"))


def load(folder: Path, text: str | bytes) -> Instance:
    file = folder / "instance.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_instance(file)


def mistakes(folder: Path, *changes: tuple[str, str]) -> list[tuple[int | None, str, str, str]]:
    """Change the seed plan, and return what is found: (line, field, found, expected)."""
    text = SEED_PLAN
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(InputError) as error:
        load(folder, text)
    assert all(m.file == folder / "instance.yaml" for m in error.value.mistakes)
    return [(m.line, m.path, m.found, m.expected) for m in error.value.mistakes]


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_shipped_instance_loads(file: Path) -> None:
    assert load_instance(file).name == file.stem


@pytest.mark.parametrize(
    ("old", "new", "field", "found"),
    [
        ("experts: 64 ", "experts: no ", "model.experts", "the text 'no'"),
        ("experts: 64 ", "experts: 064 ", "model.experts", "064, a number with a leading zero"),
        ("experts: 64 ", "experts: 1_000 ", "model.experts", "the text '1_000'"),
        ("experts: 64 ", "experts: 6.5 ", "model.experts", "6.5"),
        ("experts: 64 ", 'experts: "64" ', "model.experts", "the text '64'"),
        ("experts: 64 ", "experts: true ", "model.experts", "true"),
        ("experts: 64 ", "experts: .nan ", "model.experts", "nan"),
        ("experts: 64 ", "experts: 1e9 ", "model.experts", "1000000000"),
        ("experts: 64 ", "experts: 0 ", "model.experts", "0"),
        ("experts: 64 ", "experts: [64] ", "model.experts", "a list"),
        ("memory_gb: 64", "memory_gb: .inf", "cluster.gpu.memory_gb", "inf"),
        ("memory_gb: 64", "memory_gb: -1", "cluster.gpu.memory_gb", "-1"),
        ("mfu: 0.60", "mfu: 1.5", "cluster.gpu.mfu", "1.5"),
        ("nodes: 16", "nods: 16", "cluster.nods", "an unknown field"),
        ("kind: fat-tree ", "kind: rail ", "cluster.fabric", "kind rail"),
        ("replicas: dp ", "replicas: {redundant: 3} ", "placement.replicas.redundant", "an unknown field"),
        ("replicas: dp ", "replicas: some ", "placement.replicas", "the text 'some'"),
        ("top_k: 8", "top_k: 65", "model.top_k", "65"),
        ("name: h100-128", "name: ..", "name", "the text '..'"),
        (
            "failed_gpus: []",
            f"failed_gpus: {list(range(17_000))}",
            "placement.failed_gpus",
            "more than 16,384 entries",
        ),
        ("dp: 2 ", "dp: 3 ", "parallelism.dp", "3"),
        ("failed_gpus: []", "failed_gpus: [3, 128]", "placement.failed_gpus[1]", "128"),
        ("failed_gpus: []", "failed_gpus: [3, 3]", "placement.failed_gpus[1]", "3 a second time"),
        ("dense_layers: [0, 1, 2]", "dense_layers: [0, 61]", "model.dense_layers[1]", "61"),
        (
            "kind: synthetic                  # synthetic | trace | load\n  seed: 7",
            "kind: trace\n  mix: [[1]]",
            "traffic.mix",
            "1 rows",
        ),
        ("name: h100-128", "name: a/b", "name", "the text 'a/b'"),
        ("  seed: 7", "  seed: 7\n  seed: 8", "traffic.seed", "the key a second time"),
    ],
)
def test_a_mistake_is_found_where_it_is(tmp_path: Path, old: str, new: str, field: str, found: str) -> None:
    reported = mistakes(tmp_path, (old, new))
    assert (field, found) in [(m[1], m[2]) for m in reported]
    lines = SEED_PLAN.replace(old, new).splitlines()
    line = next(m[0] for m in reported if m[1] == field)
    assert line is not None
    assert (
        field.rsplit(".", 1)[-1].split("[")[0] in lines[line - 1]
        or "kind" in lines[line - 1]
        or "mix" in lines[line - 1]
    )


def test_two_budgets_of_replicas_are_one_too_many(tmp_path: Path) -> None:
    both = "replicas: {redundant_slots: 3, redundant_slots_in_all: 9} "
    ((_, field, found, expected),) = mistakes(tmp_path, ("replicas: dp ", both))
    assert (field, found) == ("placement.replicas.redundant_slots", "an unknown field")
    assert expected == "only one of redundant_slots, redundant_slots_in_all"


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    reported = mistakes(
        tmp_path,
        ("layers: 61", "layers: 0"),
        ("nodes: 16", "nodes: -1"),
        ("top_k: 8", "top_k: x"),
        ("dp: 2 ", "dpp: 2 "),
    )
    assert {m[1] for m in reported} >= {"model.layers", "cluster.nodes", "model.top_k", "parallelism.dpp"}


def test_contradictions_come_with_other_mistakes(tmp_path: Path) -> None:
    reported = mistakes(tmp_path, ("top_k: 8", "top_k: 70"), ("nodes: 16", "nodes: -1"))
    assert {m[1] for m in reported} == {"model.top_k", "cluster.nodes"}


def test_missing_fields_are_named(tmp_path: Path) -> None:
    assert (4, "model.layers", "nothing", "this field, which has no default") in mistakes(
        tmp_path, ("  layers: 61\n", "")
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "an empty file"),
        ("- a", "a list at the top level"),
        ("a: [", "not YAML"),
        ("a: 1\n---\nb: 2", "a second YAML document"),
        ("[" * 100, "nesting deeper"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("a: !!python/object/apply:os.system [ls]", "the tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: \x00", "binary data"),
        ("a: &a [*a]", r"the alias \*a stands for nothing that ends before it"),
        ("a: ! b", "the tag !"),
        ('a: "\\UFFFFFFFF"', "not YAML"),
        ("%YAML 1." + "1" * 5000 + "\n---\na: 1", "not YAML"),
        ("name: 1\nmodel: " + "9" * 100_000, "the text '999"),
        ("a: &a [1]\nb: &b [" + "*a," * 1000 + "]\nc: [" + "*b," * 1000 + "]", "a YAML bomb"),
    ],
)
def test_what_is_no_instance_at_all(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load(tmp_path, text)


@pytest.mark.parametrize("field", ["failed_gpus: [{}]", "failed_gpus: [[{}]]", "kv_cache_gb: [{}]"])
def test_long_lists_are_refused_in_seconds(tmp_path: Path, field: str) -> None:
    text = SEED_PLAN.replace("failed_gpus: []", field.format(", ".join(["1"] * 60_000)))
    started = time.process_time()
    with pytest.raises(InputError):
        load(tmp_path, text)
    assert time.process_time() - started < 20  # it was minutes when every entry was compared with all before it


def test_round_numbers_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    text = SEED_PLAN.replace("tokens_per_gpu: 1024", "tokens_per_gpu: 4e3").replace("experts: 64 ", "experts: 1e2 ")
    instance = load(tmp_path, text)
    assert instance.traffic.tokens_per_gpu == 4000
    assert instance.model.experts == 100


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    plain = load(tmp_path, SEED_PLAN)
    assert load(tmp_path, "# a comment\n" + SEED_PLAN).sha256 == plain.sha256
    assert (
        load(tmp_path, SEED_PLAN.replace("  slots_per_gpu: 1 ", "  expert_tp_: 1 ")[:0] + SEED_PLAN).sha256
        == plain.sha256
    )
    assert load(tmp_path, SEED_PLAN.replace("spines: 4", "spines: 8")).sha256 != plain.sha256
    one, other = plain.with_traces(["a.npz"]), plain.with_traces(["b.npz"])
    assert one.sha256 == other.sha256 != plain.sha256


def test_defaults_count_as_written(tmp_path: Path) -> None:
    without = SEED_PLAN.replace("  slots_per_gpu: 1                 # experts of one layer that a GPU may hold\n", "")
    assert without != SEED_PLAN
    assert load(tmp_path, without).sha256 == load(tmp_path, SEED_PLAN).sha256


def test_sizes_of_the_seed_plan_by_hand() -> None:
    instance = load_instance(FOLDER / "h100-128.yaml")
    assert len(instance.moe_layers) == 58
    assert instance.replicas_per_layer == instance.gpus == 128
    assert expert_bytes(instance) == 2 * 7168 * 2048 * 2  # two matrices, two bytes a value
    assert token_bytes(instance) == 7168 * 2
    parts = memory_parts(instance)
    assert parts.attention == 61 * 4 * 7168 * 128 * 128 * 2 / 8
    assert parts.dense == 3 * 2 * 7168 * (8 * 2048) * 2 / 8
    assert parts.embeddings == 2 * 129_280 * 7168 * 2 / 8


@given(st.text(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_text_gives_an_input_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    with pytest.raises(InputError):
        load(tmp_path_factory.mktemp("any"), text.encode("utf-8", "surrogatepass"))


OFFERED_NOWHERE = (("placement", "replica_routing", "optimal"),)


@pytest.mark.parametrize(("section", "field", "value"), OFFERED_NOWHERE)
def test_what_nothing_can_serve_is_not_offered(tmp_path: Path, section: str, field: str, value: str) -> None:
    text = re.sub(f"{field}: [a-z-]+", f"{field}: {value}", SEED_PLAN)
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    (mistake,) = caught.value.mistakes
    offered = "one of group, even, trtllm-round-robin, vllm-hash, vllm-ascend, nearest, sglang-static or sglang-dynamic"
    why = f"{value} is no rule of an engine, but the best split of tokens for a placement"
    assert (mistake.path, mistake.found) == (f"{section}.{field}", f"the text '{value}'")
    assert mistake.expected == f"{offered} ({why}; `evaluate --routing {value}` counts it)"
    assert not re.search("optimal", json.dumps(Instance.model_json_schema()))


LINES = SEED_PLAN.splitlines()


@given(st.integers(0, len(LINES) - 1), st.text("0123456789abc-:[]{}#'\"&*!%@`.,\n ", max_size=12), st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_loads_or_gives_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, number: int, inserted: str, column: int
) -> None:
    lines: list[Any] = list(LINES)
    lines[number] = lines[number][:column] + inserted + lines[number][column:]
    with contextlib.suppress(InputError):
        assert load(tmp_path_factory.mktemp("damaged"), "\n".join(lines)).name


def test_the_json_schema_takes_what_is_read_and_refuses_what_is_not() -> None:
    validator = Draft202012Validator(Instance.model_json_schema())
    Draft202012Validator.check_schema(validator.schema)
    for file in FILES:
        assert not list(validator.iter_errors(read_yaml(file).data)), file.name
    good = read_yaml(FOLDER / "h100-128.yaml").data
    for section, field, value in (
        ("model", "layers", 0),
        ("model", "top_k", "two"),
        ("model", "unknown", 1),
        ("cluster", "nodes", 1e9),
        ("traffic", "kind", "guess"),
        *OFFERED_NOWHERE,
        ("cluster", "fabric", {"kind": "rail"}),
    ):
        assert list(validator.iter_errors({**good, section: {**good[section], field: value}})), (section, field)
    assert list(validator.iter_errors({**good, "name": ".."}))
    assert list(validator.iter_errors({k: v for k, v in good.items() if k != "cluster"}))


def test_an_instance_is_made_without_a_file() -> None:
    made = make_instance(**TINY)
    assert made == Instance.model_validate(TINY)
    assert made.sha256 == Instance.model_validate(TINY).sha256


def test_all_mistakes_of_an_instance_without_a_file_are_reported() -> None:
    with pytest.raises(InputError) as caught:
        make_instance(**{**TINY, "model": {**TINY["model"], "experts": 0, "top_k": "two"}, "parallelism": {"dp": 3}})
    assert {mistake.path for mistake in caught.value.mistakes} >= {"model.experts", "model.top_k", "parallelism.dp"}
    assert all(mistake.file is None and mistake.line is None for mistake in caught.value.mistakes)


PLANNED = {"computation": 0.40, "communication": 0.35, "synchronization": 0.15, "overhead": 0.10}


def test_what_is_expected_of_a_step_changes_no_hash() -> None:
    asked = tiny_instance(schedule={"planned_shares": PLANNED})
    assert asked.schedule.planned_shares is not None
    assert asked.sha256 == tiny_instance().sha256


def test_planned_shares_sum_to_1() -> None:
    with pytest.raises(
        InputError, match=r"schedule.planned_shares: found shares that sum to 1.05, expected .* sum to 1"
    ):
        tiny_instance(schedule={"planned_shares": {**PLANNED, "overhead": 0.15}})


def test_a_later_anchor_takes_the_name_of_an_earlier_one() -> None:
    document = parse_yaml(b"a: &x 1\nb: *x\nc: &x no\nd: *x\n", Path("f.yaml"), "a mapping")
    assert document.data == {"a": 1, "b": 1, "c": "no", "d": "no"}
    assert document.mistakes == []
