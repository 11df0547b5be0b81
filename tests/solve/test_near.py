"""Solving under rules that prefer near replicas, against counts token by token and brute force."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from builders import DRAGONFLY, MESH, placement_data, tiny_instance, tiny_tokens
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tokens_by_rule import Tokens, scattered

from moe_placer import Limits, evaluate, solve
from moe_placer.bounds import best_split
from moe_placer.bounds.best_split import even_split_proof, prove_split, value_of_split
from moe_placer.dag.flows import read_flows
from moe_placer.engines.plans.export import export_plan
from moe_placer.engines.plans.to_placement import placement_from_plan
from moe_placer.errors import InputError, NothingFoundError, UsageError
from moe_placer.instance import Instance
from moe_placer.limits import Deadline
from moe_placer.placement import Placement
from moe_placer.problem.compile import compile_problem
from moe_placer.problem.near_replicas import NearLayer
from moe_placer.replan.replan import replan
from moe_placer.schedule.failure import after_failure
from moe_placer.search import near_tables
from moe_placer.search.near_search import cool_near, search_near
from moe_placer.search.near_trades import NearState
from moe_placer.traffic import Traffic
from moe_placer.verifier import verify
from moe_placer.verifier.loads import read_network

RULES = ("nearest", "sglang-static", "sglang-dynamic")
FABRICS: dict[str, dict[str, Any]] = {"tree": {}, "mesh": {"fabric": MESH}, "dragonfly": {"fabric": DRAGONFLY}}
QUICK = Limits(work=0.1, gap=1e-6)


def served(rule: str, *, fabric: str = "tree", nodes: int = 4, extra: int = 3, **sections: Any) -> Instance:
    """5 experts and more replicas on nodes of 2 GPUs with one slot each."""
    base: dict[str, Any] = {
        "model": {"experts": 5},
        "cluster": {"nodes": nodes, "gpus_per_node": 2, **FABRICS[fabric]},
        "parallelism": {"dp": 1},
        "placement": {"replica_routing": rule, "replicas": {"redundant_slots": extra}},
        "traffic": {"kind": "trace", "tokens_per_gpu": 7.0},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section}
    return tiny_instance(**base)


def near_of(instance: Instance, traffic: Traffic, index: int = 0) -> NearLayer:
    near = compile_problem(instance, traffic).layer(index).near
    assert near is not None
    return near


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 10_000), fabric=st.sampled_from(sorted(FABRICS)))
@settings(max_examples=3, deadline=None, phases=[Phase.generate])
def test_costs_are_those_of_tokens_one_by_one(rule: str, seed: int, fabric: str) -> None:
    instance = served(rule, fabric=fabric)
    traffic, gpu = tiny_tokens(instance, seed, (6, 9)), scattered(instance, seed)
    reference, network = Tokens(instance, gpu, traffic, rule), read_network(instance)
    problem, placement = compile_problem(instance, traffic), placement_data(instance, gpu, traffic, [])
    found = verify(instance, Placement.model_validate(placement), traffic)
    flows = read_flows(instance, Placement.model_validate(placement), traffic)  # what DAGs and steps count
    assert problem.near is not None
    items = [np.array([(e, g) for e, own in enumerate(row) for g in own]).T for row in gpu]
    shares = problem.near.exact([(expert, at) for expert, at in items])
    for row, ((expert, at), share) in enumerate(zip(items, shares, strict=True)):
        between, tokens = reference.counted(row, "per-expert")
        cost = (network.load(between) * network.scale)[[network.links.index(name) for name in problem.links]]
        assert found.load[row] == pytest.approx(network.load(between))
        assert found.busiest_gpu[row] == pytest.approx(tokens.max())
        assert flows.layer(row).load == pytest.approx(network.load(between))
        near = near_of(instance, traffic, row)
        assert near.cost_of_shares(expert, at, share) == pytest.approx(cost, abs=1e-9)
        on_gpus = np.bincount(at, (near.tokens[expert] * share.T).sum(axis=1), instance.gpus)
        assert on_gpus == pytest.approx(tokens)
        if rule != "sglang-static":
            state = NearState(near, near.placed(expert, at))
            assert near.cost(expert, at // 2) == pytest.approx(cost, abs=1e-9)
            assert (state.cost, state.load) == (pytest.approx(cost, abs=1e-9), pytest.approx(tokens))


@given(seed=st.integers(0, 10_000), rule=st.sampled_from(RULES), apart=st.sampled_from(["gpu", "node"]))
@settings(max_examples=6, deadline=None, phases=[Phase.generate])
def test_trades_are_exact_and_keep_replicas_apart(seed: int, rule: str, apart: str) -> None:
    instance = served(rule, extra=2, placement={"replicas_apart": apart, "slots_per_gpu": 2})
    traffic, rng = tiny_tokens(instance, seed), np.random.default_rng(seed)
    near = near_of(instance, traffic)
    start = np.zeros((5, 8), dtype=bool)
    start[[0, 1, 2, 3, 4, 0, 1], [0, 2, 4, 6, 1, 3, 5]] = True
    state = NearState(near, start)
    for _ in range(3):
        trades = state.trades(np.arange(5), None, rng)
        cost, load = state.after(trades)
        ranked = state.savings(trades, np.ones(len(near.base)))
        assert ranked == pytest.approx((cost - state.cost).sum(axis=1), abs=1e-6)
        at = int(rng.integers(len(trades)))
        state.make(trades, at)
        fresh = NearState(near, state.on)
        assert fresh.cost == pytest.approx(cost[at])
        assert fresh.load == pytest.approx(load[at])
        assert (state.on.sum(axis=1) > 0).all()
        assert state.on.sum() == 7
        assert (state.on.sum(axis=0) <= near.slots).all()
        assert apart == "gpu" or near.by_node(state.on).max() == 1


def test_large_layers_rank_what_leaves_and_what_comes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    near, rng = near_of(served("nearest"), tiny_tokens(served("nearest"), 1)), np.random.default_rng(1)
    held = rng.integers(0, 3, (5, 4))
    held[:, 0] += 1
    price = rng.random((4, 4)) * (1 - np.eye(4))
    exact = near_tables.move_table(near, held, near.tokens, price)
    monkeypatch.setattr(near_tables, "_EXACT", 0)
    ranked = near_tables.move_table(near, held, near.tokens, price)
    assert ranked[:, 4] == pytest.approx(exact[:, 4])  # only comes
    there = (held > 0) & (held.sum(axis=1, keepdims=True) > 1)
    assert ranked[:, :4, 4][there] == pytest.approx(exact[:, :4, 4][there])  # only leaves


def least(near: NearLayer, replicas: int) -> float:
    """Cost of the busiest link of the best placement of one slot per GPU, GPUs alone in their nodes."""
    best = np.inf
    for way in product(range(len(near.tokens)), repeat=replicas):
        on = np.zeros((len(near.tokens), len(near.slots)), dtype=np.int64)
        on[list(way), np.arange(replicas) % len(near.slots)] += 1
        if (on.sum(axis=1) > 0).all() and on.max() == 1 and on.sum() == replicas:
            best = min(best, float((near.base + near.links(on, near.tokens).sum(axis=0)).max()))
    return best


def tiny(rule: str) -> Instance:
    """3 experts and 3 more replicas on 3 nodes of one GPU with two slots each."""
    model = {"experts": 3, "layers": 1, "dense_layers": []}
    cluster = {"nodes": 3, "gpus_per_node": 1, "fabric": {"nodes_per_leaf": 2}}
    placement = {"slots_per_gpu": 2}
    full = served(rule, model=model, cluster=cluster)
    return full._changed(placement=full.placement.model_copy(update=placement))


@pytest.mark.parametrize("rule", RULES)
def test_the_search_finds_the_best_placement_and_none_is_below_the_bound(rule: str) -> None:
    instance = tiny(rule)
    traffic = tiny_tokens(instance, 3)
    found, best = solve(instance, traffic, limits=QUICK), least(near_of(instance, traffic), 6)
    check = found.verification.layers[0]
    assert 0 < check.bound <= best * (1 + 1e-9)
    if rule != "sglang-static":  # ranks of single GPUs draw one replica each: luck may beat the average
        assert check.z == pytest.approx(best)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=5, deadline=None, phases=[Phase.generate])
def test_any_numbers_prove_something_and_larger_layers_are_bounded(seed: int) -> None:
    instance, rng = tiny("nearest"), np.random.default_rng(seed)
    near = near_of(instance, tiny_tokens(instance, seed))
    best = least(near, 6)
    proof = prove_split(near)
    assert proof is not None
    assert 0.2 * best < proof.value <= best * (1 + 1e-9)
    weights = rng.dirichlet(np.ones(len(near.base)))
    for scale in (0.0, 0.1, 1.0, 10.0):
        numbers = proof.slot_prices * scale * rng.random(3), proof.paid * scale * rng.random(proof.paid.shape)
        assert value_of_split(near, weights, *numbers) <= best * (1 + 1e-9)
    first = even_split_proof(near, proof.weights)
    assert 0 <= first.value <= proof.value * (1 + 1e-6)


def test_a_layer_too_large_for_one_program_still_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = tiny("nearest")
    traffic = tiny_tokens(instance, 1)
    whole = solve(instance, traffic, limits=QUICK).verification.layers[0]
    monkeypatch.setattr(best_split, "_AT_ONCE", 0)
    check = solve(instance, traffic, limits=QUICK).verification.layers[0]
    assert 0 < check.bound <= whole.bound * (1 + 1e-6)
    assert check.proof == "best-split"


def test_by_hand_every_node_holds_both_experts_and_nothing_is_sent() -> None:
    sections: dict[str, Any] = {
        "model": {"experts": 2, "layers": 1, "dense_layers": []},
        "cluster": {"nodes": 2, "fabric": {"nodes_per_leaf": 2}},
    }
    for rule in RULES:
        instance = served(rule, extra=2, **sections)
        found = solve(instance, tiny_tokens(instance, 0), limits=QUICK)
        assert found.verification.total_z == 0
        assert found.placement.layers[0].worst_link == ""


@pytest.mark.parametrize("rule", RULES)
def test_what_is_solved_is_verified_evaluated_and_simulated(rule: str) -> None:
    instance = served(rule, placement={"slots_per_gpu": 2})
    traffic = tiny_tokens(instance, 4)
    found, limits = solve(instance, traffic, limits=QUICK), Limits(work=0.1)
    assert 0 < found.bound <= found.objective <= min(v for v in found.baselines.values() if isinstance(v, float))
    gpu = [[[shards[0] for shards in found.placement.shards(row, e)] for e in range(5)] for row in range(2)]
    reference, network = Tokens(instance, gpu, traffic, rule), read_network(instance)
    for row, check in enumerate(found.verification.layers):
        between, tokens = reference.counted(row, "per-expert")
        assert check.z == pytest.approx(float((network.load(between) * network.scale).max()))
        assert found.verification.busiest_gpu[row] == pytest.approx(tokens.max())
        assert found.placement.layers[row].z == pytest.approx(check.z)
    named = evaluate(instance.with_serving("even"), found.placement, traffic, routing=rule, step=True, limits=limits)
    assert named.placement.total_z == pytest.approx(found.verification.total_z)
    assert named.bound is not None
    assert 0 < named.bound <= named.placement.total_z
    assert named.placement.step_us is not None
    assert named.same_instance
    again = solve(instance, traffic, limits=QUICK, start=found.placement)
    assert again.objective <= found.objective * (1 + 1e-9)


def test_the_search_ends_and_cooling_keeps_links() -> None:
    instance = served("sglang-dynamic", placement={"slots_per_gpu": 2}, model={"experts": 8})
    traffic = tiny_tokens(instance, 5)
    near, rng = near_of(instance, traffic), np.random.default_rng(0)
    start = np.zeros((8, 8), dtype=bool)
    start[np.arange(8), np.arange(8)] = True
    start[[0, 1, 2], [3, 4, 5]] = True
    begun = NearState(near, start)
    best, tired = search_near(begun, rng, 1e9, 0.0, Deadline())
    cooled = cool_near(best, rng, 0.0, Deadline())
    assert tired
    assert best.z < begun.z
    assert cooled.z <= best.z * (1 + 1e-9)
    assert cooled.busiest < best.busiest
    limited, _ = search_near(begun, rng, 1e9, begun.z, Deadline())
    assert limited.spent < best.spent
    late, _ = search_near(begun, rng, 1e9, 0.0, Deadline(at=0.0))
    assert (late.on == begun.on).all()


def test_verify_holds_a_best_split_to_its_numbers() -> None:
    instance = tiny("sglang-dynamic")
    traffic = tiny_tokens(instance, 3)
    plan = solve(instance, traffic, limits=QUICK).placement
    record = plan.layers[0].model_dump()
    assert record["proof"] == "best-split"

    def broken(**changes: Any) -> set[str]:
        data = plan.model_dump(by_alias=True)
        data["layers"] = [{**record, **changes}]
        return {one.rule for one in verify(instance, Placement.model_validate(data), traffic).violations}

    split = record["split"]
    assert broken() == set()
    assert broken(bound=record["bound"] * 1.01) == {"bound"}
    for scale in (0.5, 2.0, 1e30):
        paid = [[scale * value for value in row] for row in split["paid"]]
        assert broken(split={**split, "paid": paid}) == {"bound"}
    assert broken(split={**split, "slot_prices": [10 * one for one in split["slot_prices"]]}) == {"bound"}
    assert broken(split={**split, "slot_prices": split["slot_prices"][1:]}) == {"proof"}
    assert broken(split={**split, "paid": [[0.0]] * 3}) == {"proof"}
    assert broken(split=None) == {"proof"}
    assert broken(any_copies=None) == {"proof", "facts"}
    assert broken(proof="dual", split=None, any_copies=None) == {"proof", "facts"}
    assert broken(z=record["z"] * 1.1) == {"z"}


def test_verify_takes_no_figures_of_a_plan_that_lacks_a_layer() -> None:
    instance = served("sglang-static")
    traffic = tiny_tokens(instance, 2)
    plan = solve(instance, traffic, solver="greedy", limits=QUICK).placement
    broken = plan.model_copy(update={"gpu": ((*plan.gpu[0][:4], ()), plan.gpu[1])})
    found = verify(instance, broken, traffic)
    assert not found.ok
    assert found.total_z == 0  # draws of the layer that is whole depend on the other


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"parallelism": {"expert_tp": 2}}, "ranks hold whole experts"),
    ({"placement": {"failed_gpus": [0]}}, "counts ranks of whole nodes"),
    ({"placement": {"dispatch": "per-node"}}, "not solved for under this rule"),
    ({"cluster": {"nics": {"per_node": 2, "gb_per_s": 200, "receive": "source-rail"}}}, "do not send alike"),
    ({"placement": {"pinned": [{"layer": 1, "expert": 0, "gpu": 0}]}}, "trade places together"),
    ({"placement": {"survives": "gpu"}}, "survives: none"),
    ({"placement": {"replicas_apart": "none"}}, "would count twice"),
    ({"placement": {"replicas": {"redundant_slots_in_all": 3}}}, "layers are searched apart"),
    ({"objective": {"minimise": "layer-time"}}, "minimise: layers"),
    ({"objective": {"scenarios": "recordings"}}, "scenarios: mix"),
)


@pytest.mark.parametrize(("sections", "why"), REFUSED)
def test_what_is_refused_says_why(sections: dict[str, Any], why: str) -> None:
    placement = {"replicas": {"redundant_slots": 3}, **sections.get("placement", {})}
    with pytest.raises(InputError) as caught:
        served("nearest", **{**sections, "placement": {"replica_routing": "nearest", **placement}})
    assert any(why in str(one.expected) for one in caught.value.mistakes)


def test_replan_and_failures_say_that_they_do_not_know_the_rule() -> None:
    instance = served("sglang-dynamic")
    traffic = tiny_tokens(instance, 0)
    plan: Placement = solve(instance, traffic, solver="greedy", limits=QUICK).placement
    with pytest.raises(NothingFoundError, match="depends on where the others are"):
        replan(instance, plan, traffic)
    with pytest.raises(UsageError, match="a failed GPU has none"):
        after_failure(instance, plan, [0])


@pytest.mark.parametrize(("rule", "algorithm"), [("sglang-dynamic", "dynamic"), ("sglang-static", "static")])
def test_sglang_is_started_with_the_rule_that_was_planned_for(rule: str, algorithm: str) -> None:
    instance = served(rule)
    traffic = tiny_tokens(instance, 0)
    plan = solve(instance, traffic, solver="greedy", limits=QUICK).placement
    told = export_plan(instance, plan, "sglang", "plan.json")
    assert f"--ep-dispatch-algorithm {algorithm}" in told.start.flags
    assert not [one for one in told.warnings if "picks a replica" in one]
    assert told.plan is not None
    back, check = placement_from_plan(instance, traffic, told.plan, told.deployment, "sglang", told.content)
    assert check.ok
    assert [one.z for one in back.layers] == pytest.approx([one.z for one in plan.layers])
    assert sum(one.bound for one in back.layers) > 0
    other = instance.with_serving("nearest")
    near = solve(other, traffic, solver="greedy", limits=QUICK).placement
    assert [one for one in export_plan(other, near, "sglang", "plan.json").warnings if "picks a replica" in one]


@pytest.mark.parametrize("rule", RULES)
def test_slots_may_stay_empty(rule: str) -> None:
    """Then replicas may only move, one expert at a time; and SGLang's map of dense layers goes beyond the last GPU."""
    instance = served(rule, nodes=2, extra=0, cluster={"gpus_per_node": 1}, placement={"slots_per_gpu": 4})
    traffic, network = tiny_tokens(instance, 3, (6, 9)), read_network(instance)
    found = solve(instance, traffic, limits=Limits(work=0.01)).placement
    tokens = Tokens(instance, [[[*own] for own in row] for row in found.gpu], traffic, rule)
    for row, record in enumerate(found.layers):
        between, _ = tokens.counted(row, "per-expert")
        assert record.z == pytest.approx((network.load(between) * network.scale).max(), abs=1e-9)
