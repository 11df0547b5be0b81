"""Advice where memory or slots do not suffice: what it names is enough, and nothing smaller is."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import yaml
from builders import TINY, merged, tiny_instance
from command_line import run
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.errors import InputError
from moe_placer.instance import Instance, load_instance, make_instance
from moe_placer.instance.expert_tp import holds_experts
from moe_placer.instance.sizes import GB, expert_bytes, memory_parts
from moe_placer.problem.advice import Advice, advise, memory_binds
from moe_placer.problem.capacity import why_infeasible
from moe_placer.problem.shortage import find_shortage


def memory_for(experts: float, **changes: Any) -> float:
    """GB of a GPU of the tiny instance that holds what is resident, and so many experts."""
    instance = tiny_instance(**changes)
    return (memory_parts(instance).total + experts * expert_bytes(instance)) / GB


def with_fields(instance: Instance, fields: dict[str, Any]) -> Instance:
    content = instance.model_dump()
    for field, value in fields.items():
        *path, name = field.split(".")
        section = content
        for part in path:
            section = section[part]
        section[name] = value
    return Instance.model_validate(content)


def advised(instance: Instance) -> dict[str, Any]:
    advice = advise(instance)
    assert isinstance(advice, Advice)
    for change in advice.changes:
        assert why_infeasible(with_fields(instance, change.fields)) is None
    for change in advice.in_vain:
        changed = with_fields(instance, change.fields)
        assert why_infeasible(changed) is not None or memory_binds(changed)
    named = [set(change.fields) for change in (*advice.changes, *advice.in_vain)]
    assert len(set(map(frozenset, named))) == len(named)
    return {field: value for change in advice.changes for field, value in change.fields.items()}


def test_nothing_is_advised_where_nothing_is_missing() -> None:
    assert advise(tiny_instance()) is None


ONE = {"parallelism": {"dp": 1}}


def test_an_expert_too_large_for_a_gpu_is_shared_by_two() -> None:
    one = {**ONE, "model": {"layers": 1, "dense_layers": [], "expert_hidden_size": 4096}}
    instance = tiny_instance(**one, cluster={"gpu": {"memory_gb": memory_for(0.9, **one)}})
    assert "holds only 0" in str(why_infeasible(instance))
    found = advised(instance)
    assert found["parallelism.expert_tp"] == 2  # the four experts of two shards each take all eight slots
    assert found["model.dtype"] == "fp8"
    assert "parallelism.dp" not in found
    assert "cluster.nodes" not in found  # no number of nodes holds an expert that no GPU holds


def test_slots_that_shards_need_come_with_them() -> None:
    two = {"model": {"layers": 1, "dense_layers": [], "expert_hidden_size": 4096, "experts": 8}, **ONE}
    instance = tiny_instance(**two, cluster={"gpu": {"memory_gb": memory_for(0.9, **two)}})
    assert "parallelism.expert_tp" not in advised(instance)
    in_vain = advise(instance).in_vain  # type: ignore[union-attr]
    assert {"parallelism.expert_tp": 2, "placement.slots_per_gpu": 2} in [change.fields for change in in_vain]


def test_weights_of_attention_are_shared_by_more_gpus() -> None:
    wide = {"model": {"attention_heads": 4096}, **ONE}
    resident = memory_parts(tiny_instance(**wide))
    instance = tiny_instance(**wide, cluster={"gpu": {"memory_gb": (resident.total - resident.attention / 3) / GB}})
    assert advised(instance)["parallelism.attention_tp"] == 2


def test_fewer_replicas_or_more_nodes() -> None:
    found = advised(tiny_instance(cluster={"nodes": 2}))
    assert (found["parallelism.dp"], found["placement.slots_per_gpu"], found["cluster.nodes"]) == (1, 2, 4)


def test_a_budget_of_replicas_is_cut() -> None:
    even = {"replicas": {"redundant_slots": 40}, "replica_routing": "even"}
    found = advised(tiny_instance(**ONE, placement=even))
    assert found["placement.replicas"] == {"redundant_slots": 0}


def test_what_is_kept_for_the_cache_is_named() -> None:
    free = 1.0 - memory_for(2)
    instance = tiny_instance(placement={"kv_cache_gb": free * 1.5})
    assert advised(instance)["placement.kv_cache_gb"] == pytest.approx(free * 1.5 * 5 / 8)


def test_memory_that_binds_without_forbidding_is_advised_on() -> None:
    spare = {"cluster": {"gpus_per_node": 4, "gpu": {"memory_gb": memory_for(1.5)}}}
    instance = tiny_instance(**spare)
    assert why_infeasible(instance) is None
    assert memory_binds(instance)
    assert advised(instance)["model.dtype"] == "fp8"


@settings(max_examples=25)
@given(
    experts=st.integers(1, 8), dp=st.sampled_from([1, 2, 4]), room=st.floats(0, 4), slots=st.integers(1, 2),
    heads=st.sampled_from([4, 400]),
)  # fmt: skip
def test_whatever_is_advised_is_enough(experts: int, dp: int, room: float, slots: int, heads: int) -> None:
    model = {"model": {"experts": experts, "top_k": 1, "attention_heads": heads}, "parallelism": {"dp": dp}}
    memory = max(1e-4, memory_for(room, **model))
    instance = tiny_instance(
        **model, cluster={"gpu": {"memory_gb": memory}}, placement={"slots_per_gpu": slots, "kv_cache_gb": 1e-4}
    )
    if why_infeasible(instance) is not None or memory_binds(instance):
        advised(instance)
    else:
        assert advise(instance) is None


@settings(max_examples=40)
@given(
    per_node=st.integers(1, 4), tp=st.integers(1, 4), room=st.floats(0, 4), slots=st.integers(1, 3),
    failed=st.sets(st.integers(0, 3), max_size=2), dp=st.sampled_from([1, 2]),
)  # fmt: skip
def test_what_auto_counts_is_what_the_problem_counts(
    per_node: int, tp: int, room: float, slots: int, failed: set[int], dp: int
) -> None:
    shards = min(tp, per_node)
    changes = {"parallelism": {"dp": dp, "expert_tp": shards}}
    gpus = {"gpus_per_node": per_node, "gpu": {"memory_gb": memory_for(room, **changes, cluster={"gpus_per_node": 4})}}
    placement = {"slots_per_gpu": slots, "failed_gpus": sorted(failed), "replicas_apart": "gpu"}
    instance = tiny_instance(**changes, cluster=gpus, placement=placement)
    shortage = find_shortage(instance)
    if shortage is None or "different gpus" not in shortage:  # the distance between replicas is not counted
        assert holds_experts(instance) == (shortage is None)


LARGE = {"layers": 1, "dense_layers": [], "expert_hidden_size": 4096}


@pytest.mark.parametrize(("room", "chosen"), [(1.0, 1), (0.9, 2), (0.01, 1)])
def test_auto_shares_experts_only_where_it_must(room: float, chosen: int) -> None:
    memory = memory_for(room, **ONE, model=LARGE)
    content = merged(TINY, {"model": LARGE, "parallelism": {"dp": 1, "expert_tp": "auto"}})
    content = merged(content, {"cluster": {"gpu": {"memory_gb": memory}}})
    instance = make_instance(**content)
    assert instance.parallelism.expert_tp == chosen
    number = merged(content, {"parallelism": {"expert_tp": chosen}})
    assert instance.sha256 == make_instance(**number).sha256
    assert (why_infeasible(instance) is None) == (room > 0.5)


def test_auto_never_contradicts_the_other_fields() -> None:
    content = merged(TINY, {"model": LARGE, "parallelism": {"dp": 1, "expert_tp": "auto"}})
    content = merged(content, {"cluster": {"gpu": {"memory_gb": memory_for(0.9, **ONE, model=LARGE)}}})
    content = merged(content, {"objective": {"minimise": "layer-time"}})  # which refuses shards
    assert make_instance(**content).parallelism.expert_tp == 1
    with pytest.raises(
        InputError, match=r"parallelism.expert_tp: found the text 'some', expected a whole number or auto"
    ):
        make_instance(**merged(content, {"parallelism": {"expert_tp": "some"}}))
    with pytest.raises(InputError) as caught:  # every mistake at once, contradictions included
        make_instance(**merged(content, {"model": {"top_k": 99}, "name": 3}))
    assert {mistake.path for mistake in caught.value.mistakes} == {"model.top_k", "name"}


def test_the_commands_say_what_would_do(tmp_path: Any) -> None:
    content = merged(TINY, {"cluster": {"nodes": 2}, "traffic": {"kind": "synthetic"}})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    for command in ("solve", "inspect"):
        done = run(command, tmp_path / "tiny.yaml", *(["-o", tmp_path / "out"] if command == "solve" else []))
        assert done.returncode == 3
        said = " ".join((done.stderr + done.stdout).split())
        assert "each of these is enough: parallelism.dp: 1 (now 2); placement.slots_per_gpu: 2 (now 1)" in said
    described = run("inspect", tmp_path / "tiny.yaml", "--json")
    advice = advise(load_instance(tmp_path / "tiny.yaml"))
    assert advice is not None
    assert json.loads(described.stdout)["advice"] == json.loads(json.dumps(asdict(advice)))
