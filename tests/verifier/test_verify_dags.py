"""DAGs read back from their files: good ones pass, and each thing broken is told by its own rule alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from dag_examples import VARIANTS, Example, example, reference
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.dag.build import build_dag
from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.dag.texts import to_dot, to_json
from moe_placer.dag.views import VIEWS
from moe_placer.errors import InputError
from moe_placer.verifier.dags import DAG_RULES, verify_dags
from moe_placer.verifier.dags.read_back import read_dot

NAME = "comprehensive_moe_dag"


def write(folder: Path, dag: Dag, name: str = NAME) -> None:
    (folder / f"{name}.json").write_text(to_json(dag, name), encoding="utf-8")
    (folder / f"{name}.dot").write_text(to_dot(dag, name), encoding="utf-8")


def rules_broken(some: Example, folder: Path) -> set[str]:
    instance, placement, traffic = some
    return {v.rule for check in verify_dags(instance, placement, folder, traffic) for v in check.violations}


def found_in(name: str, folder: Path, change: Callable[[Dag], None]) -> set[str]:
    some = example(name)
    dag = build_dag(*some)
    change(dag)
    write(folder, dag)
    return rules_broken(some, folder)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_drawing_of_every_example_is_good(name: str, tmp_path: Path) -> None:
    some = example(name)
    for view in VIEWS.values():
        write(tmp_path, view.build(*some), view.name)
    instance, placement, traffic = some
    checks = verify_dags(instance, placement, tmp_path, traffic)
    assert [check.name for check in checks] == sorted(VIEWS)
    assert [check.violations for check in checks] == [()] * len(VIEWS)
    assert all(check.operations > 10 and check.edges > 10 for check in checks)


@pytest.mark.slow
def test_the_whole_reference_deployment_is_good(tmp_path: Path) -> None:
    instance, placement, traffic = some = reference()
    write(tmp_path, build_dag(*some))
    (check,) = verify_dags(instance, placement, tmp_path, traffic)
    assert (check.operations, check.violations) == (16_068, ())


def edge(dag: Dag, source: str, target: str) -> Edge:
    (found,) = [e for e in dag.outgoing(source) if e.target == target]
    return found


def resize(dag: Dag, one: Edge, tokens: float) -> None:
    """Give an edge other tokens, consistently at both ends."""
    size = one.bytes / one.shape[0] * tokens
    dag.operation(one.target).bytes_read += size - one.bytes
    one.shape, one.bytes = (tokens, *one.shape[1:]), size
    dag.operation(one.source).outputs[one.tensor] = one.shape
    dag.operation(one.target).inputs[one.tensor] = one.shape


# What is broken: rule, example, name, change. Each must be told by that rule and no other.
BREAKS: list[tuple[str, str, Callable[[Dag], None]]] = []


def breaks(rule: str, name: str = "small") -> Callable[[Callable[[Dag], None]], Callable[[Dag], None]]:
    def keep(change: Callable[[Dag], None]) -> Callable[[Dag], None]:
        BREAKS.append((rule, name, change))
        return change

    return keep


@breaks("dag-acyclic")
def _waits_for_itself(dag: Dag) -> None:
    dag.connect(Edge("L1.aggregate.g0", "L1.attention.g0", "", (), "", 0.0, "order"))


@breaks("dag-connected")
def _stands_alone(dag: Dag) -> None:
    dag.add(Operation("stray", "expert_reduce", (0,), 1))


@breaks("dag-connected")
def _is_only_ordered(dag: Dag) -> None:
    dag.add(Operation("stray", "expert_reduce", (0,), 1))
    dag.connect(Edge("input", "stray", "", (), "", 0.0, "order"))
    dag.connect(Edge("stray", "output", "", (), "", 0.0, "order"))


@breaks("dag-shapes")
def _another_width_where_it_arrives(dag: Dag) -> None:
    inputs = dag.operation("norm.g0").inputs
    inputs["hidden.g0"] = (inputs["hidden.g0"][0], 63.0)


@breaks("dag-shapes")
def _an_axis_less_where_it_starts(dag: Dag) -> None:
    one = edge(dag, "norm.g0", "head.g0")
    dag.operation("norm.g0").outputs[one.tensor] = one.shape[:1]


@breaks("dag-shapes")
def _bytes_of_another_shape(dag: Dag) -> None:
    one = edge(dag, "norm.g0", "head.g0")
    one.bytes *= 2
    dag.operation("head.g0").bytes_read += one.bytes / 2


@breaks("dag-shapes")
def _needs_what_nobody_sends(dag: Dag) -> None:
    dag.operation("gather").inputs["choices.of.nobody"] = (1.0, 1.0)


@breaks("dag-arithmetic")
def _too_many_flops(dag: Dag) -> None:
    dag.operation("L1.expert.e2.r1").flops *= 1.01


@breaks("dag-arithmetic")
def _communication_that_computes(dag: Dag) -> None:
    dag.operation("L1.dispatch_send.n0").flops = 7.0


@breaks("dag-arithmetic")
def _weights_not_read(dag: Dag) -> None:
    dag.operation("L0.mlp.g1").bytes_read -= 1000


@breaks("dag-arithmetic")
def _an_expert_that_swallows_tokens(dag: Dag) -> None:
    one = next(e for e in dag.outgoing("L1.expert.e0.r0") if e.target.startswith("L1.combine_send"))
    resize(dag, one, one.shape[0] / 2)


@breaks("dag-layers")
def _a_layer_too_few(dag: Dag) -> None:
    dag.facts["layers"] = dag.facts["layers"][:-1]


@breaks("dag-layers")
def _a_layer_that_is_not_there(dag: Dag) -> None:
    dag.operation("norm.g0").layer = 99


@breaks("dag-gpus")
def _no_gpu(dag: Dag) -> None:
    dag.operation("L1.aggregate.g0").gpus = ()


@breaks("dag-gpus")
def _a_gpu_that_does_not_exist(dag: Dag) -> None:
    dag.operation("L1.aggregate.g0").gpus = (0, 1, 8)


@breaks("dag-gpus", "failed-gpu")
def _a_failed_gpu(dag: Dag) -> None:
    dag.operation("L1.combine_receive.n2").gpus = (4, 5)


@breaks("dag-gpus")
def _gates_elsewhere(dag: Dag) -> None:
    dag.operation("L1.gate.g0").gpus = (1,)


@breaks("dag-gpus")
def _serves_another_group(dag: Dag) -> None:
    dag.operation("L1.attention.g0").group = 1


@breaks("dag-gpus")
def _an_expert_of_another_group(dag: Dag) -> None:
    dag.operation("L1.expert.e0.r0").group = 1


@breaks("dag-communication")
def _an_all_reduce_that_stays_on_one_gpu(dag: Dag) -> None:
    edge(dag, "L1.attention.g0", "L1.attention_reduce.g0").travel = "same-gpu"


@breaks("dag-traffic")
def _a_hot_way_that_looks_cool(dag: Dag) -> None:
    next(one for one in dag.edges() if one.hot == 1).hot = 0.5


@breaks("dag-communication")
def _mha_not_dashed(dag: Dag) -> None:
    edge(dag, "L1.attention.g0", "L1.attention_reduce.g0").dashed = False


@breaks("dag-communication")
def _gating_not_dashed(dag: Dag) -> None:
    edge(dag, "L1.gate.g0", "L1.gate_scatter.g0").dashed = False


@breaks("dag-communication")
def _dispatch_dashed(dag: Dag) -> None:
    edge(dag, "L1.dispatch_send.n0", "L1.dispatch_receive.n1").dashed = True


@breaks("dag-communication")
def _a_network_without_a_way(dag: Dag) -> None:
    edge(dag, "L1.attention.g0", "L1.attention_reduce.g0").travel = "network"


@breaks("dag-communication")
def _moves_without_communicating(dag: Dag) -> None:
    edge(dag, "norm.g0", "head.g0").travel = "nvlink"


@breaks("dag-communication")
def _attention_without_its_sum(dag: Dag) -> None:
    reduce, attention = "L1.attention_reduce.g0", dag.operation("L1.attention.g0")
    after = dag.outgoing(reduce)
    dag.graph.remove_node(reduce)
    attention.outputs.clear()
    for one in after:
        dag.connect(Edge(attention.id, one.target, one.tensor, one.shape, one.dtype, one.bytes, "same-gpu"))


@breaks("dag-experts")
def _an_expert_on_another_gpu(dag: Dag) -> None:
    expert = dag.operation("L1.expert.e0.r0")
    expert.gpus = tuple(gpu ^ 1 for gpu in expert.gpus)


@breaks("dag-experts", "redundant")
def _a_replica_twice_and_one_not_at_all(dag: Dag) -> None:
    twin = next(op for op in dag.operations("expert") if op.experts[0][1] == 1)
    twin.experts = ((twin.experts[0][0], 0),)


@breaks("dag-traffic")
def _attends_to_fewer_tokens(dag: Dag) -> None:
    attention = dag.operation("L1.attention.g0")
    (one,) = dag.incoming(attention.id)
    before = one.shape[0]
    resize(dag, one, before - 50)
    attention.flops *= (before - 50) / before


@breaks("dag-traffic")
def _a_link_that_looks_cooler(dag: Dag) -> None:
    costs = dag.facts["links"][1]
    costs[max(costs, key=costs.get)] *= 0.5


@breaks("dag-traffic")
def _a_link_that_looks_faster(dag: Dag) -> None:
    dag.facts["per_token"]["node0->leaf0"][1] *= 0.5


@breaks("dag-traffic")
def _a_token_that_looks_cheaper(dag: Dag) -> None:
    dag.facts["per_token"]["node0->leaf0"][0] *= 0.5


@breaks("dag-traffic")
def _another_metric(dag: Dag) -> None:
    dag.facts["metric"] = "tokens"


@breaks("dag-traffic")
def _another_way(dag: Dag) -> None:
    links = dag.routes[0, 2]
    links[next(iter(links))] = 0.25


@breaks("dag-traffic", "redundant")
def _tokens_between_other_nodes(dag: Dag) -> None:
    # All sums stay: what node 0 sends more to node 1 and less to 2, node 3 sends less to 1 and more to 2.
    for s, d, sign in ((0, 1, 1), (0, 2, -1), (3, 1, -1), (3, 2, 1)):
        one = edge(dag, f"L1.dispatch_send.n{s}", f"L1.dispatch_receive.n{d}")
        resize(dag, one, one.shape[0] + sign * 5)


@breaks("dag-traffic", "once-per-node")
def _a_copy_that_nobody_counts(dag: Dag) -> None:
    one = edge(dag, "L1.dispatch_send.n0", "L1.dispatch_receive.n1")
    resize(dag, one, one.shape[0] * 0.99)


@breaks("dag-traffic", "once-per-node")
def _a_sum_that_another_group_gets(dag: Dag) -> None:
    for group, sign in ((0, 1), (1, -1)):
        one = edge(dag, "L1.combine_receive.n0", f"L1.aggregate.g{group}")
        dag.operation(one.target).flops += sign * one.shape[1]
        resize(dag, one, one.shape[0] + sign)


@breaks("dag-arithmetic", "once-per-node")
def _sums_that_take_no_additions(dag: Dag) -> None:
    dag.operation("L1.combine_send.n2").flops = 0.0


@breaks("dag-communication", "once-per-node")
def _tokens_that_reach_their_experts_by_themselves(dag: Dag) -> None:
    edge(dag, "L1.dispatch_receive.n0", "L1.expert.e0.r0").travel = "same-gpu"


@breaks("dag-communication", "once-per-node")
def _what_stays_that_moves(dag: Dag) -> None:
    edge(dag, "L1.dispatch_send.n0", "L1.dispatch_receive.n0").travel = "nvlink"


@breaks("dag-shapes", "once-per-node")
def _forwarded_in_another_type(dag: Dag) -> None:
    edge(dag, "L1.dispatch_receive.n0", "L1.expert.e0.r0").dtype = "bf16"


@breaks("dag-form", "once-per-gpu")
def _another_unit_of_dispatch(dag: Dag) -> None:
    dag.facts["dispatch"] = "per-node"


@pytest.mark.parametrize(("rule", "name", "change"), BREAKS, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_broken_is_told_by_its_rule_alone(
    rule: str, name: str, change: Callable[[Dag], None], tmp_path: Path
) -> None:
    assert found_in(name, tmp_path, change) == {rule}


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    some = example()
    dag = build_dag(*some)
    dag.graph.remove_node("L2.expert.e3.r0")
    write(tmp_path, dag)
    instance, placement, traffic = some
    (check,) = verify_dags(instance, placement, tmp_path, traffic)
    assert any("expert 3, replica 0 of layer 2 is there 0 times" in str(v) for v in check.violations)


def test_a_dag_of_another_placement_is_told(tmp_path: Path) -> None:
    instance, placement, traffic = some = example()
    write(tmp_path, build_dag(*some))
    gpu = [[list(replicas) for replicas in row] for row in placement.gpu]
    gpu[0][0], gpu[0][3] = gpu[0][3], gpu[0][0]
    moved = placement.model_copy(update={"gpu": tuple(tuple(tuple(c) for c in row) for row in gpu)})
    assert rules_broken((instance, moved, traffic), tmp_path) == {"dag-experts", "dag-traffic"}


def edited(folder: Path, suffix: str, old: str, new: str) -> set[str]:
    some = example()
    write(folder, build_dag(*some))
    path = folder / f"{NAME}.{suffix}"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return rules_broken(some, folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            '"L1.gate.g0" [kind="gate", role="routing", gpus="[0]"',
            '"L1.gate.g0" [kind="gate", role="routing", gpus="[1]"',
        ),
        ('shape="ellipse"', 'shape="box"'),
        ('travel="nvlink"', 'travel="network"'),
        ('"gather" -> "output"', '"gather" -> "input"'),
        ('"output" [', '"outptu" ['),
        ('style="dashed"', 'style="solid"'),
        ('facts="', 'fasts="'),
        ('routes="{', 'routes="'),
    ],
)
def test_a_dot_that_says_something_else_is_told(old: str, new: str, tmp_path: Path) -> None:
    assert edited(tmp_path, "dot", old, new) == {"dag-twin"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"kind":"gate"', '"kind":"goat"'),
        ('"role":"routing"', '"role":"computation"'),
        ('"gpus":[0]', '"gpus":[0,0]'),
        ('"gpus":[0]', '"gpus":["0"]'),
        ('"flops":', '"flops":-1'),
        ('"layer":1', '"layer":true'),
        ('"travel":"nvlink"', '"travel":"by hand"'),
        ('"source":"input"', '"source":"nowhere"'),
        ('"style":"solid"', '"style":7'),
        ('"bytes":', '"bytes":"many","bites":'),
        ('{"id":"input"', '{"id":["input"]'),
    ],
)
def test_a_field_that_makes_no_sense_is_told(old: str, new: str, tmp_path: Path) -> None:
    broken = edited(tmp_path, "json", old, new)
    assert "dag-form" in broken
    assert broken <= {"dag-form", "dag-twin"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"nodes":[],"edges":[]}',
        '{"nodes":{},"edges":[],"graph":{}}',
        "[" * 100_000,
        '{"a":NaN}',
        "\0",
    ],
)
def test_what_is_no_dag_is_bad_input(text: str, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=NAME):
        rules_broken(example(), tmp_path)


@pytest.mark.parametrize(
    "text", ["", "digraph {", 'digraph "x" {\nnode;\n}\n', 'digraph "x" {\n"a" [k=v];\n}\n', "graph"]
)
def test_what_is_no_dot_is_bad_input(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x_dag.dot"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="x_dag"):
        read_dot(path)


def test_a_dag_in_one_form_only_is_bad_input(tmp_path: Path) -> None:
    write(tmp_path, build_dag(*example()))
    (tmp_path / f"{NAME}.dot").unlink()
    with pytest.raises(InputError, match="no such file"):
        rules_broken(example(), tmp_path)


@cache
def small_files() -> tuple[str, str]:
    """The files of the smallest example, .json and .dot."""
    dag = build_dag(*example())
    return to_json(dag, NAME), to_dot(dag, NAME)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_figure_of_any_operation_or_edge_can_change_unseen(data: st.DataObject, tmp_path: Path) -> None:
    good, dot = small_files()
    content = json.loads(good)
    table = data.draw(st.sampled_from(["nodes", "edges"]))
    row = data.draw(st.sampled_from(content[table]))
    field = data.draw(st.sampled_from(sorted(row.keys() - {"id", "key"})))
    before = json.dumps(row[field])
    if isinstance(row[field], list) and row[field]:
        row[field] = [*row[field][:-1], data.draw(st.sampled_from([0, 1, 3, 10_000, "x"]))]
    elif isinstance(row[field], dict) and row[field]:
        tensor = data.draw(st.sampled_from(sorted(row[field])))
        row[field][tensor] = [12345, 7]
    else:
        row[field] = data.draw(st.sampled_from([0, 1e9, "gate", "network", "dashed", None]))
    if json.dumps(row[field]) == before:
        return
    (tmp_path / f"{NAME}.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / f"{NAME}.dot").write_text(dot, encoding="utf-8")
    assert rules_broken(example(), tmp_path)


def test_every_rule_has_something_that_breaks_it() -> None:
    elsewhere = {"dag-form", "dag-twin", "dag-operators"}  # the last one in test_operator_checks.py
    assert {rule for rule, _, _ in BREAKS} | elsewhere == set(DAG_RULES)


def test_bytes_inside_an_all_to_all_are_those_of_the_flows(tmp_path: Path) -> None:
    some, view = example(), VIEWS["complete_deployment_dag"]
    dag = view.build(*some)
    next(dag.operations("dispatch")).moved["network"] *= 1.01
    write(tmp_path, dag, view.name)
    assert rules_broken(some, tmp_path) == {"dag-traffic"}
