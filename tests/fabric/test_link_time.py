"""Loads become costs and times in one place, and every command says the same."""

from __future__ import annotations

import numpy as np
import pytest
from builders import VARIANTS, honest, in_order, merged, recomputed, rules_of, tiny_instance, tiny_traffic

from moe_placer.cli.plans import measure_plans
from moe_placer.experiments.compare.metrics import metrics
from moe_placer.experiments.sweep.sweep import make_plan
from moe_placer.fabric import dispatch_us, link_bandwidths, link_us, token_cost
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.solve.solve import solve
from moe_placer.verifier import verify

METRICS = ("time", "tokens")


def test_times_known_by_hand() -> None:
    # 64 values of 2 bytes a token; 400 GB/s of which 0.8 is reached: 128 B / 320 GB/s = 0.4 ns on a node's link. Two
    # nodes of 400 GB/s share a leaf with 2:1 oversubscription and 2 spines: 200 GB/s each, 0.8 ns.
    for metric, leaf_cost in (("time", 2.0), ("tokens", 1.0)):
        instance = tiny_instance(objective={"metric": metric})
        gb_per_s = link_bandwidths(instance, ["node0->leaf0", "leaf0->spine1"])
        assert gb_per_s.tolist() == [400.0, 200.0]
        assert token_cost(instance, gb_per_s).tolist() == [1.0, leaf_cost]
        # The metric says what counts, not how fast a link is.
        assert link_us(instance, gb_per_s, np.array([1000.0, 1000.0])) == pytest.approx([0.4, 0.8])
        load = np.array([[1000.0, 400.0], [100.0, 300.0]])
        assert dispatch_us(instance, gb_per_s, load) == pytest.approx(0.4 + 0.24)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_verifier_agrees_though_it_computes_alone(variant: str, metric: str) -> None:
    instance = tiny_instance(**merged(VARIANTS[variant], {"objective": {"metric": metric}}))
    traffic = tiny_traffic(instance, 5)
    found = recomputed(instance, in_order(instance), traffic)
    gb_per_s = link_bandwidths(instance, found.links)
    assert found.us == pytest.approx(link_us(instance, gb_per_s, found.load), rel=1e-12)
    assert found.cost == pytest.approx(found.load * token_cost(instance, gb_per_s), rel=1e-12)
    assert found.dispatch_us == pytest.approx(dispatch_us(instance, gb_per_s, found.load), rel=1e-12)
    assert found.dispatch_us > 0
    for index, check in enumerate(found.layers):
        at = found.links.index(check.worst_link)
        assert (check.worst_link_tokens, check.worst_link_us) == (found.load[index, at], found.us[index, at])
        assert check.z == found.cost[index, at]


@pytest.mark.parametrize("metric", METRICS)
def test_solve_verify_compare_and_sweep_say_the_same(metric: str) -> None:
    instance = tiny_instance(objective={"metric": metric})
    traffic = tiny_traffic(instance, 3)
    solution = solve(instance, traffic, limits=Limits(time_s=240.0, work=1.0))
    checked = verify(instance, solution.placement, traffic)
    compared = metrics(instance, solution.placement, traffic)
    assert compared["communication_us"] == pytest.approx(checked.dispatch_us, rel=1e-9)
    assert measure_plans(instance, solution)["auto"].wire_us == pytest.approx(checked.dispatch_us, rel=1e-9)
    assert make_plan(instance, solution.placement, traffic).dispatch_us == pytest.approx(checked.dispatch_us, rel=1e-9)
    for record, check in zip(solution.placement.layers, checked.layers, strict=True):
        at = checked.links.index(record.worst_link)
        assert record.worst_link_tokens == pytest.approx(checked.load[check.layer - 1, at])
    assert solution.placement.aggregate is not None
    assert solution.placement.aggregate.worst_link_tokens == pytest.approx(checked.aggregate_tokens)


def stated(tokens: float | None) -> list[str]:
    """Name the rules that a placement breaks which states so many tokens of its busiest link."""
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic)
    true = verify(instance, Placement.model_validate(data), traffic).layers[1].worst_link_tokens
    if tokens is not None:
        data["layers"][1]["worst_link_tokens"] = true * tokens
    return rules_of(instance, data, traffic)


def test_tokens_of_the_worst_link_are_checked_where_they_are_stated() -> None:
    assert stated(None) == []  # files of older versions
    assert stated(1.0) == []
    assert stated(1.001) == ["worst-link"]
    assert stated(0.0) == ["worst-link"]


def test_tokens_without_a_link_are_refused() -> None:
    instance = tiny_instance(cluster={"nodes": 1, "gpus_per_node": 4}, parallelism={"dp": 1})
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic, proof="solver")
    assert rules_of(instance, data, traffic) == []
    data["layers"][0]["worst_link_tokens"] = 7.0
    assert rules_of(instance, data, traffic) == ["worst-link"]
