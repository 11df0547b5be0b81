"""How engines are started with a plan: processes find each other, attention and all-to-all are those of the plan."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_plans import drawn_plan, engine_instance, placed

from moe_placer.engines.layouts import ENGINES
from moe_placer.engines.plans.export import FORMATS, Export, export_plan
from moe_placer.engines.plans.forms import FORMS
from moe_placer.engines.plans.plan import read_deployment
from moe_placer.errors import InputError
from moe_placer.instance import Instance
from moe_placer.verifier.replica_choice import RULES_BY_NAME

VLLM = ("vllm-plan", "vllm-initial-map", "vllm-jsonl")


def started(form: str, instance: Instance | None = None, name: str = "plan.json") -> Export:
    instance = instance or engine_instance()
    placement, _ = placed(instance, drawn_plan(read_deployment(instance), 1))
    return export_plan(instance, placement, form, Path(name))


def shared(gpus: int, **sizes: int) -> Instance:
    """Build an instance of 8 GPUs on which so many share attention."""
    instance = engine_instance(**sizes)
    parallelism = instance.parallelism.model_copy(update={"attention_tp": gpus})
    return instance.model_copy(update={"parallelism": parallelism})


@pytest.mark.parametrize("form", FORMATS)
def test_a_name_with_blanks_stays_one_word(form: str) -> None:
    ending = "npy" if form == "omni" else "json"
    text = started(form, name=f"plan of today.{ending}").start.to_text()
    lines = [line for line in text.splitlines() if "load_balancer:" not in line]
    words = shlex.split("\n".join(lines), comments=True)
    if form != "trtllm":
        assert any(f"/plan of today.{ending}" in word for word in words)
    assert not any(word.startswith("of") for word in words)


@pytest.mark.parametrize("form", FORMATS)
def test_what_only_the_user_knows_is_named_where_it_is_used(form: str) -> None:
    text = started(form).start.to_text()
    (line,) = [line for line in text.splitlines() if line.startswith("# Set ")]
    for name in ("MODEL", "NODE_RANK", "HEAD"):
        assert (f"{name}: " in line) == (f"${name}" in text or f"({name} " in text)


@pytest.mark.parametrize(("attention_tp", "flag"), [(1, "--attn-dp-size 8"), (2, "--attn-dp-size 4"), (8, None)])
def test_sglangs_attention_is_that_of_the_plan(attention_tp: int, flag: str | None) -> None:
    flags = started("sglang", shared(attention_tp)).start.flags
    assert [one for one in flags if one.startswith("--attn-dp-size")] == ([flag] if flag else [])
    assert {"--tp-size 8", "--ep-size 8", "--nnodes 4", "--dist-init-addr $HEAD:20000"} <= set(flags)


def test_one_node_needs_no_address() -> None:
    instance = engine_instance(1, 8)
    for form in ("sglang", *VLLM):
        text = started(form, instance).start.to_text()
        assert "$HEAD" not in text
        assert "NODE_RANK" not in text


def test_vllms_groups_stay_on_their_nodes() -> None:
    flags = started("vllm-plan", shared(2)).start.flags
    assert flags[:4] == (
        "--tensor-parallel-size 2",
        "--data-parallel-size 4",
        "--data-parallel-size-local 1",
        "--data-parallel-start-rank $((NODE_RANK * 1))",
    )
    assert "$([ $NODE_RANK = 0 ] || echo --headless)" in flags
    wide = started("vllm-plan", shared(4))
    assert any("4 GPUs share attention, 2 are on a node" in warning for warning in wide.warnings)
    assert not any("--data-parallel-size-local" in flag for flag in wide.start.flags)


@pytest.mark.parametrize(
    ("dispatch", "backend"),
    [("per-expert", ["deepep_low_latency"]), ("per-node", ["deepep_high_throughput"]), ("per-gpu", [])],
)
def test_the_all_to_all_sends_as_the_plan_counts(dispatch: str, backend: list[str]) -> None:
    """vLLM's default gathers everything everywhere, so that no plan would change what links carry."""
    deployment = replace(read_deployment(engine_instance()), dispatch=dispatch)
    for form in VLLM:
        flags = FORMS[form].start(drawn_plan(deployment, 1), deployment, Path("plan.json")).flags
        assert [flag.split()[1] for flag in flags if flag.startswith("--all2all-backend")] == backend


def test_kernels_that_send_otherwise_are_named() -> None:
    """Only engines whose kernels are known say it."""
    said = {form: [one for one in started(form).warnings if one.startswith("The plan counts")] for form in FORMATS}
    assert {form for form, lines in said.items() if lines} == {"sglang", *VLLM}
    assert "as deepep_low_latency sends them (others: deepep_high_throughput per-node" in said["vllm-plan"][0]


def test_attention_dp_is_what_tensorrt_llm_needs() -> None:
    assert any("attention_tp is 2" in warning for warning in started("trtllm", shared(2)).warnings)
    assert not any("attention_tp" in warning for warning in started("trtllm").warnings)


def test_attention_groups_divide_the_gpus() -> None:
    with pytest.raises(InputError, match=r"attention_tp: found 3, expected a divisor of the 8 GPUs"):
        read_deployment(shared(3))


@pytest.mark.parametrize("engine", ENGINES)
def test_rules_that_warnings_name_are_those_of_evaluate(engine: str) -> None:
    rule: Any = ENGINES[engine].routing_rule
    assert rule in RULES_BY_NAME or (rule, engine) == ("", "omni")
