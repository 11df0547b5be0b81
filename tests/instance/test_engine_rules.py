"""What engines demand of slots, GPUs and replicas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from builders import tiny_instance
from command_line import TINY as TINY_FILE
from command_line import fails, run
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moe_placer.cli.describe import describe
from moe_placer.engines.layouts import ENGINES, LAYOUTS, EngineName, slots_mistake
from moe_placer.errors import InputError


def test_every_engine_has_rules_and_a_layout() -> None:
    assert set(ENGINES) == set(get_args(EngineName)) == {layout.engine for layout in LAYOUTS.values()}
    assert all(name == rules.name for name, rules in ENGINES.items())


def test_160_slots_on_64_gpus_are_refused_with_the_counts_that_fit() -> None:
    mistake = slots_mistake(ENGINES["sglang"], 128, 160, 64)
    assert mistake is not None
    found, expected = mistake
    assert found == "128 experts + 32 redundant slots = 160 slots on 64 GPUs, 2.5 each"
    assert expected == (
        "0 (2 slots on each GPU) or 64 (3 slots on each GPU) redundant slots: SGLang 0.5.23 gives every GPU as many "
        "slots (num_physical_experts % ep_size == 0), and asserts it at start"
    )


@pytest.mark.parametrize("name", ENGINES)
@given(experts=st.integers(1, 512), redundant=st.integers(0, 512), gpus=st.integers(1, 512))
def test_only_multiples_of_the_gpus_pass(name: str, experts: int, redundant: int, gpus: int) -> None:
    mistake = slots_mistake(ENGINES[name], experts, experts + redundant, gpus)
    fits = (experts + redundant) % gpus == 0 or not ENGINES[name].equal_slots
    assert (mistake is None) == fits
    if mistake:
        counts = [int(word) for word in re.findall(r"(\d+) \(", mistake[1].split(":")[0])]
        assert counts
        assert all((experts + count) % gpus == 0 for count in counts)


# --- in an instance: 8 GPUs, 4 experts -----------------------------------------------------------------------------

EVEN = {"replica_routing": "even"}


@pytest.mark.parametrize("engine", ["sglang", "vllm", "trtllm"])
@pytest.mark.parametrize(
    "changes",
    [
        {"placement": EVEN},  # dp 2: 8 slots
        {"placement": {**EVEN, "replicas": {"redundant_slots": 4}}},
        {"placement": {**EVEN, "replicas": {"redundant_slots": 12}, "slots_per_gpu": 2}},
        {"placement": {**EVEN, "replicas": {"redundant_slots": 8}, "slots_per_gpu": 2, "failed_gpus": [2, 3]}},
        {"cluster": {"nodes": 2}, "parallelism": {"dp": 1}},  # one replica of each: group routing is any routing
    ],
)
def test_instances_that_engines_can_load(engine: str, changes: dict[str, Any]) -> None:
    plain = tiny_instance(**changes)
    assert tiny_instance(engine=engine, **changes).engine == engine
    assert plain.with_engine(engine).engine == engine  # type: ignore[arg-type]
    assert plain.with_engine(engine).sha256 == plain.sha256  # type: ignore[arg-type]
    assert f"Engine: {ENGINES[engine].label}" in describe(tiny_instance(engine=engine, **changes), None).to_text()


@pytest.mark.parametrize(
    ("changes", "path", "says"),
    [
        (
            {"placement": {**EVEN, "replicas": {"redundant_slots": 3}}},
            "placement.replicas.redundant_slots",
            "7 slots on 8",
        ),
        ({"placement": {**EVEN, "replicas": {"redundant_slots_in_all": 8}}}, "placement.replicas", "in every layer"),
        ({"placement": {**EVEN, "slots_per_gpu": 2}}, "placement.slots_per_gpu", "found 2, expected 1"),
        ({"placement": {}}, "placement.replica_routing", "a token may take any replica"),
        ({"parallelism": {"dp": 3}, "placement": EVEN}, "parallelism.dp", "12 slots on 8 GPUs, 1.5 each"),
        ({"parallelism": {"dp": 1}}, "parallelism.dp", "4 slots on 8 GPUs"),
        ({"placement": {**EVEN, "failed_gpus": [3]}}, "placement.failed_gpus", "all GPUs of a node, or none"),
        ({"parallelism": {"dp": 1, "expert_tp": 2}, "cluster": {"nodes": 2}}, "parallelism.expert_tp", "whole experts"),
    ],
)
def test_instances_that_no_engine_can_load(changes: dict[str, Any], path: str, says: str) -> None:
    tiny_instance(**changes)
    with pytest.raises(InputError) as caught:
        tiny_instance(engine="sglang", **changes)
    (mistake,) = caught.value.mistakes
    assert mistake.path == path
    assert says in str(mistake)
    with pytest.raises(InputError, match=re.escape(says)):
        tiny_instance(**changes).with_engine("trtllm")


def test_an_engine_that_is_not_known() -> None:
    with pytest.raises(ValidationError):
        tiny_instance(engine="omni")


def test_solve_knows_the_engine(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    text = TINY_FILE.read_text()
    file.write_text(text + "placement: {replica_routing: even, replicas: {redundant_slots: 2}, slots_per_gpu: 2}\n")
    fails(1, "solve", file, "--engine", "sglang", says="6 slots on 4 GPUs, 1.5 each, expected 0 (1 slots on each GPU)")
    file.write_text(text + "engine: sglang\nplacement: {slots_per_gpu: 2}\n")
    fails(1, "inspect", file, says="placement.slots_per_gpu: found 2, expected 1: SGLang 0.5.23 fills 4 slots")
    fails(2, "solve", file, "--engine", "omni", says="--engine")
    done = run("solve", TINY_FILE, "--engine", "vllm", "-o", tmp_path / "out", "--no-dag", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert run("verify", TINY_FILE, tmp_path / "out" / "placement.json").returncode == 0


def test_sglang_follows_its_own_rules_and_not_the_nearest() -> None:
    rules = ("even", "nearest", "sglang-static", "sglang-dynamic", "vllm-hash")
    followed = {rule for rule in rules if ENGINES["sglang"].follows(rule)}
    assert followed == {"sglang-static", "sglang-dynamic"}
    assert ENGINES["vllm"].follows("even")
    assert ENGINES["trtllm"].follows("trtllm-round-robin")
    assert not ENGINES["vllm-ascend"].follows("even")
    slots: dict[str, Any] = {"replicas": {"redundant_slots": 4}}
    for rule, says in (("sglang-static", "as modelled here"), ("even", "a solve takes any replica with equal chance")):
        placement = {"replica_routing": rule, **slots}
        instance = tiny_instance(engine="sglang", parallelism={"dp": 1}, placement=placement)
        assert says in describe(instance, None).to_text()
