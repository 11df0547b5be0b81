"""Mutations of a good graph of operators: each is refused, by the rule that it breaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dag_examples import example

from moe_placer.dag.build import build_dag
from moe_placer.dag.operation import Dag, Edge
from moe_placer.dag.operators import Attended, refine
from moe_placer.dag.texts import to_dot, to_json
from moe_placer.verifier.dags import DagViolation, verify_dags

NAME = "layer_operators"


def fine(name: str = "small") -> Dag:
    some = example(name)
    layers = [0, 1] if name == "small" else [1]
    return refine(build_dag(*some, layers, whole=False), some[0], Attended("decode", 100.0))


def broken(folder: Path, dag: Dag, name: str = "small") -> list[DagViolation]:
    (folder / f"{NAME}.json").write_text(to_json(dag, NAME))
    (folder / f"{NAME}.dot").write_text(to_dot(dag, NAME))
    instance, placement, traffic = example(name)
    (check,) = verify_dags(instance, placement, folder, traffic)
    return list(check.violations)


@pytest.mark.parametrize("name", ["once-per-node", "once-per-gpu"])
def test_a_refined_graph_of_dispatch_once_per_place_is_good(name: str, tmp_path: Path) -> None:
    assert broken(tmp_path, fine(name), name) == []


def edge(dag: Dag, target: str, tensor: str) -> Edge:
    (found,) = [one for one in dag.incoming(target) if one.tensor.partition(".")[0] == tensor]
    return found


def reshape(dag: Dag, one: Edge, shape: tuple[float, ...]) -> None:
    """Give a tensor another shape at both ends, and the bytes of that shape."""
    size = one.bytes
    for length, was in zip(shape, one.shape, strict=True):
        size *= length / was
    dag.operation(one.target).bytes_read += size - one.bytes
    one.shape, one.bytes = shape, size
    dag.operation(one.source).outputs[one.tensor] = shape
    dag.operation(one.target).inputs[one.tensor] = shape


def lead(dag: Dag, one: Edge, source: str) -> None:
    """Have a tensor come from another operator."""
    key = next(k for _, _, k, d in dag.graph.in_edges(one.target, keys=True, data=True) if d["edge"] is one)
    dag.graph.remove_edge(one.source, one.target, key)
    dag.operation(one.source).outputs.pop(one.tensor)
    one.source = source
    dag.connect(one)


def other_shape_of_a_shard(dag: Dag) -> None:
    one = edge(dag, "L0.attention.g0.attention_scores", "query")
    reshape(dag, one, (one.shape[0], one.shape[1] * 2, one.shape[2]))


def softmax_over_other_lengths(dag: Dag) -> None:
    one = edge(dag, "L0.attention.g0.attention_softmax", "scores")
    reshape(dag, one, (one.shape[0], one.shape[1], one.shape[2] + 1))


def residual_from_the_wrong_place(dag: Dag) -> None:
    lead(dag, edge(dag, "L1.self_attn_bda.g0", "self_attn_bda_residual"), "L0.self_attn_bda.g0")


def residual_left_out(dag: Dag) -> None:
    one = edge(dag, "L0.mlp_bda.g1", "mlp_bda_residual")
    dag.graph.remove_edge(one.source, one.target)
    dag.operation(one.source).outputs.pop(one.tensor)
    target = dag.operation(one.target)
    target.inputs.pop(one.tensor)
    target.bytes_read -= one.bytes


def norm_passed_by(dag: Dag) -> None:
    lead(dag, edge(dag, "L1.gate.g0.router_gating", "attended"), "L1.self_attn_bda.g0")


def weight_of_another_shape(dag: Dag) -> None:
    dag.operation("L1.expert.e2.r1.linear_fc2").detail["weight"] = (32.0, 64.0)


def flops_moved_between_operators(dag: Dag) -> None:
    dag.operation("L0.attention.g0.linear_qkv").flops += 1000
    dag.operation("L0.attention.g0.linear_proj").flops -= 1000


def scores_that_cost_half(dag: Dag) -> None:
    dag.operation("L1.attention.g2.attention_scores").flops /= 2


def activation_left_out(dag: Dag) -> None:
    """The up projection leads straight to the down projection."""
    one = edge(dag, "L1.expert.e0.r0.linear_fc2", "activated")
    lead(dag, one, "L1.expert.e0.r0.linear_fc1")
    dag.graph.remove_node("L1.expert.e0.r0.activation_func")
    dag.operation("L1.expert.e0.r0.linear_fc1").outputs.pop("up.e0.r0")


def operator_of_another_operation(dag: Dag) -> None:
    dag.operation("L1.expert.e0.r0.linear_fc1").detail["part_of"] = "L1.expert.e1.r0"


def operator_on_other_gpus(dag: Dag) -> None:
    dag.operation("L1.expert.e0.r0.activation_func").gpus = (7,)


def keys_swapped_for_values(dag: Dag) -> None:
    dag.operation("L0.attention.g0.attention_scores").detail["op"] = "aten::_softmax"


def name_of_another_module(dag: Dag) -> None:
    dag.operation("L0.mlp.g0.linear_fc1").detail["module"] = "decoder.layers.1.mlp.linear_fc1"


def other_context(dag: Dag) -> None:
    dag.facts["context"] = 101.0


def another_unit(dag: Dag) -> None:
    dag.facts["dispatch"] = "per-node"


def another_receiver(dag: Dag) -> None:
    dag.facts["receive"] = "source-rail"


def divided_over_more_gpus(dag: Dag) -> None:
    edge(dag, "L0.attention.g0.linear_proj", "context").parts = 4


def expert_that_is_not_there(dag: Dag) -> None:
    for kind in ("linear_fc1", "activation_func", "linear_fc2"):
        dag.operation(f"L1.expert.e0.r0.{kind}").experts = ((1, 0),)


def result_before_its_time(dag: Dag) -> None:
    lead(dag, edge(dag, "L0.attention_reduce.g0", "attention_parts"), "L0.attention.g0.attention_context")


MUTATIONS: list[tuple[Callable[[Dag], None], str]] = [
    (other_shape_of_a_shard, "dag-shapes"),
    (softmax_over_other_lengths, "dag-shapes"),
    (residual_from_the_wrong_place, "dag-operators"),
    (residual_left_out, "dag-operators"),
    (norm_passed_by, "dag-operators"),
    (weight_of_another_shape, "dag-operators"),
    (flops_moved_between_operators, "dag-arithmetic"),
    (scores_that_cost_half, "dag-arithmetic"),
    (activation_left_out, "dag-operators"),
    (operator_of_another_operation, "dag-operators"),
    (operator_on_other_gpus, "dag-operators"),
    (keys_swapped_for_values, "dag-operators"),
    (name_of_another_module, "dag-operators"),
    (other_context, "dag-arithmetic"),
    (another_unit, "dag-form"),
    (another_receiver, "dag-form"),
    (divided_over_more_gpus, "dag-shapes"),
    (expert_that_is_not_there, "dag-experts"),
    (result_before_its_time, "dag-connected"),
]


LATENT = "latent-attention-and-dense-between"
OF = "L1.attention.g0"


def latents_of_another_width(dag: Dag) -> None:
    one = edge(dag, f"{OF}.latent_gather", "latents")
    reshape(dag, one, (one.shape[0], one.shape[1] * 2))


def latents_not_gathered(dag: Dag) -> None:
    """Every GPU works on its own part only."""
    one = edge(dag, f"{OF}.linear_q_up_proj", "query_latent")
    lead(dag, one, f"{OF}.linear_qkv_down_proj")
    one.dashed = False


def queries_without_their_latent(dag: Dag) -> None:
    dag.operation(f"{OF}.linear_q_up_proj").detail["weight"] = (48.0, 64.0)


def work_moved_to_the_other_up_projection(dag: Dag) -> None:
    dag.operation(f"{OF}.absorb_keys").flops += 1000
    dag.operation(f"{OF}.linear_q_up_proj").flops -= 1000


def rotary_part_left_out_of_scores(dag: Dag) -> None:
    dag.operation(f"{OF}.attention_scores").flops *= 24 / 32


def key_that_is_not_turned(dag: Dag) -> None:
    one = edge(dag, f"{OF}.attention_scores", "rotated_key")
    lead(dag, one, f"{OF}.latent_gather")
    one.dashed = True


def cache_of_one_gpu_only(dag: Dag) -> None:
    dag.operation(f"{OF}.attention_scores").detail["cache_bytes"] /= 2


def queries_not_absorbed(dag: Dag) -> None:
    lead(dag, edge(dag, f"{OF}.attention_scores", "absorbed_query"), f"{OF}.linear_q_up_proj")


def expanded_instead_of_absorbed(dag: Dag) -> None:
    dag.facts["phase"] = "prefill"


def gathering_drawn_solid(dag: Dag) -> None:
    edge(dag, f"{OF}.latent_gather", "latents").dashed = False


LATENT_MUTATIONS: list[tuple[Callable[[Dag], None], str]] = [
    (latents_of_another_width, "dag-shapes"),
    (latents_not_gathered, "dag-operators"),
    (queries_without_their_latent, "dag-operators"),
    (work_moved_to_the_other_up_projection, "dag-arithmetic"),
    (rotary_part_left_out_of_scores, "dag-arithmetic"),
    (key_that_is_not_turned, "dag-operators"),
    (cache_of_one_gpu_only, "dag-arithmetic"),
    (queries_not_absorbed, "dag-connected"),
    (expanded_instead_of_absorbed, "dag-operators"),
    (gathering_drawn_solid, "dag-communication"),
]


@pytest.mark.parametrize(("change", "rule"), LATENT_MUTATIONS, ids=lambda one: getattr(one, "__name__", one))
def test_each_mutation_of_latent_attention_is_refused(change: Callable[[Dag], None], rule: str, tmp_path: Path) -> None:
    dag = fine(LATENT)
    change(dag)
    found = broken(tmp_path, dag, LATENT)
    assert rule in {one.rule for one in found}, found


def test_unchanged_it_is_good(tmp_path: Path) -> None:
    assert broken(tmp_path, fine()) == []


@pytest.mark.parametrize(("change", "rule"), MUTATIONS, ids=lambda one: getattr(one, "__name__", one))
def test_each_mutation_is_refused_by_its_rule(change: Callable[[Dag], None], rule: str, tmp_path: Path) -> None:
    dag = fine()
    change(dag)
    found = broken(tmp_path, dag)
    assert rule in {one.rule for one in found}, found


@pytest.mark.parametrize("name", ["tensor-parallel-over-nodes", "sharded-experts"])
def test_other_examples_are_checked_as_well(name: str, tmp_path: Path) -> None:
    dag = fine(name)
    assert broken(tmp_path, dag, name) == []
    some = next(op for op in dag.operations() if op.kind == "linear_fc2")
    some.detail["weight"] = tuple(2 * length for length in some.detail["weight"])
    assert {one.rule for one in broken(tmp_path, dag, name)} == {"dag-operators"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"vector_flops": "many"}, "vector_flops is no number"),
        ({"weight": []}, "weight is no shape"),
        ({"batch": 0}, "'batch' is no field of an operator"),
        ({"part_of": 7}, "part_of is 7"),
    ],
)
def test_fields_of_the_wrong_kind_are_told(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    dag = fine()
    assert broken(tmp_path, dag) == []
    content = json.loads((tmp_path / f"{NAME}.json").read_text())
    changed = next(one for one in content["nodes"] if one["kind"] == "linear_qkv")
    changed.update(row)
    dag.operation(changed["id"]).detail.update(row)
    assert any(message in one.message for one in broken(tmp_path, dag))
