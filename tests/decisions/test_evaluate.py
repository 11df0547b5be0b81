"""What a placement costs on any traffic: against the verifier, by hand, and what is a fact and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import in_order, level_traffic, placement_data, tiny_instance, tiny_tokens, tiny_traffic
from command_line import TINY, fails, run
from jsonschema import validate

from moe_placer import evaluate, result_schema
from moe_placer.decisions.evaluate import Evaluation, PlanCosts
from moe_placer.errors import InputError, UsageError
from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.solve.solve import solve
from moe_placer.traffic import Traffic
from moe_placer.verifier import verify

EVEN: dict[str, Any] = {"placement": {"replica_routing": "even"}}


def placed(instance: Instance, traffic: Traffic) -> Placement:
    return solve(instance, traffic, limits=Limits(work=1)).placement


def test_on_its_own_traffic_it_has_the_verified_figures() -> None:
    instance = tiny_instance(**EVEN)
    traffic = tiny_traffic(instance, 3)
    placement = placed(instance, traffic)
    found, verified = evaluate(instance, placement, traffic), verify(instance, placement, traffic)
    assert (found.same_instance, found.same_traffic, found.breaks) == (True, True, ())
    costs = found.placement
    assert costs.total_z == pytest.approx(verified.total_z)
    assert (costs.max_z, costs.aggregate) == (pytest.approx(verified.max_z), pytest.approx(verified.aggregate))
    assert (costs.dispatch_us, costs.combine_us) == (
        pytest.approx(verified.dispatch_us),
        pytest.approx(verified.combine_us),
    )
    assert costs.layer_time_us == pytest.approx(verified.total_layer_us)
    assert costs.busiest_gpu_tokens == pytest.approx(verified.busiest_gpu.sum())
    assert costs.nic_z is None
    assert costs.step_us is None
    assert found.bound <= costs.total_z * (1 + 1e-9)
    assert found.layer_time_bound_us <= costs.layer_time_us * (1 + 1e-9)


def test_other_traffic_is_a_fact() -> None:
    instance = tiny_instance(**EVEN)
    old, new = tiny_traffic(instance, 3), tiny_traffic(instance, 4)
    placement = placed(instance, old)
    assert not verify(instance, placement, new).ok
    found = evaluate(instance, placement, new)
    assert (found.same_instance, found.same_traffic, found.breaks) == (True, False, ())
    bare = Placement.model_validate(
        {**json.loads(placement.to_json()), "layers": [], "instance": placement.instance.model_dump()}
    )
    assert vars(evaluate(instance, bare, new).placement) == vars(found.placement)  # what it states does not matter
    assert found.bound <= min(plan.total_z for plan in found.rivals.values() if isinstance(plan, PlanCosts))


def test_by_hand() -> None:
    """Two nodes of one GPU, 100 tokens of 2 choices each: what the experts of the other node are chosen for crosses."""
    instance = tiny_instance(
        model={"layers": 1, "dense_layers": []},
        cluster={"nodes": 2, "gpus_per_node": 1, "fabric": {"nodes_per_leaf": 2}},
        parallelism={"dp": 1},
        placement={"slots_per_gpu": 2},
    )
    traffic = level_traffic(instance, [[5.0, 1.0, 1.0, 1.0]], tokens=4.0)
    placement = Placement.model_validate(placement_data(instance, [[[0], [0], [1], [1]]], traffic, []))
    found = evaluate(instance, placement, traffic)
    # Of the 200 choices of each node, 6/8 are of experts on node 0, 2/8 of those on node 1.
    assert found.placement.total_z == pytest.approx(150)
    assert found.placement.inter_node_tokens == pytest.approx(150 + 50)
    assert found.placement.busiest_gpu_tokens == pytest.approx(300)
    assert found.placement.above_mean == pytest.approx(0.5)


def test_another_unit_of_dispatch_and_rule() -> None:
    instance = tiny_instance(placement={"dispatch": "per-node"})
    traffic = tiny_tokens(instance, 2)
    placement = Placement.model_validate(placement_data(instance, in_order(instance), traffic, []))
    once, each = (evaluate(instance, placement, traffic, dispatch=unit) for unit in ("per-node", "per-expert"))
    assert once.same_instance
    assert not each.same_instance
    assert once.placement.inter_node_tokens < each.placement.inter_node_tokens
    even = evaluate(instance, placement, traffic, routing="even")
    own = instance.with_serving("even")
    assert even.placement.total_z == pytest.approx(verify(own, placement, traffic).total_z)


def test_steps_are_simulated_on_request() -> None:
    instance = tiny_instance(**EVEN)
    traffic, told = tiny_traffic(instance, 1), []
    found = evaluate(instance, placed(instance, traffic), traffic, step=True, tell=told.append)
    assert told == ["the placement", "contiguous", "eplb", "greedy"]
    assert found.placement.step_us is not None
    assert found.placement.step_one_batch_us is not None
    told.clear()
    evaluate(instance, placed(instance, traffic), traffic, routing="nearest", tell=told.append)
    assert told == ["the placement", "contiguous", "eplb", "greedy"]
    with pytest.raises(UsageError, match="leave out the step"):
        evaluate(instance, placed(instance, traffic), traffic, routing="optimal", step=True)


@pytest.mark.parametrize(
    ("gpu", "routing", "says"),
    [
        ([[[0], [1], [2], [3]]], None, "a current plan of 1 MoE layers"),
        ([[[0], [1], [2], []]] * 2, "even", "0 replicas of layer 1 expert 3"),
        ([[[0], [1], [2], [3]]] * 2, "group", "one for each DP group"),
        ([[[0], [1], [2], [99]]] * 2, "even", "on GPU 99"),
        ([[[0], [1], [2], [3]]] * 2, "fastest", "one of group, even, nearest"),
    ],
)
def test_what_cannot_serve_is_refused(gpu: Any, routing: str | None, says: str) -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    placement = Placement.model_validate(placement_data(instance, gpu, traffic, []))
    with pytest.raises(InputError, match=says):
        evaluate(instance, placement, traffic, routing=routing)


def test_broken_constraints_are_named_and_evaluated() -> None:
    instance = tiny_instance(**EVEN)
    traffic = tiny_traffic(instance)
    crowded = [[[0, 1], [0, 1], [2, 3], [4, 5]]] * 2
    found: Evaluation = evaluate(
        instance, Placement.model_validate(placement_data(instance, crowded, traffic, [])), traffic
    )
    assert any("[slots]" in text for text in found.breaks)
    assert np.isfinite(found.placement.total_z)


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("solve", TINY, "--no-dag", "-q", "--work", 1, "-o", out).returncode == 0
    other = tmp_path / "other.yaml"
    other.write_text(TINY.read_text().replace("seed: 1", "seed: 2"))
    done = run("evaluate", other, out / "placement.json")
    assert done.returncode == 0, done.stderr
    assert "Made for other traffic." in done.stdout or "Made for another instance" in done.stdout
    assert "lower bound" in done.stdout
    content = json.loads(run("evaluate", other, out / "placement.json", "--json").stdout)
    validate(content, result_schema("evaluate"))
    assert content["same_traffic"] is False
    assert content["costs"]["total_z"] >= content["bound"]
    fails(1, "evaluate", TINY, out / "placement.json", "--routing", "fastest", says="one of group, even, nearest")
