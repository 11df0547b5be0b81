"""Moves within a budget: what trades do, what is found on tiny instances, and what the command says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from builders import level_traffic, tiny_instance, tiny_tokens, tiny_traffic
from command_line import TINY, fails, run
from hypothesis import given, settings
from hypothesis import strategies as st

import moe_placer
from moe_placer.errors import InputError, NothingFoundError, UsageError
from moe_placer.instance import Instance
from moe_placer.instance.sizes import expert_bytes
from moe_placer.limits import Limits
from moe_placer.placement import Placement, load_placement
from moe_placer.problem.compile import compile_problem
from moe_placer.replan.allocation import allocate
from moe_placer.replan.budget import Budget
from moe_placer.replan.change import Change
from moe_placer.replan.current import read_current
from moe_placer.replan.fresh_plan import measure
from moe_placer.replan.replan import replan
from moe_placer.replan.replica_changes import best_change, changed
from moe_placer.replan.task import goal_of
from moe_placer.replan.trades import Goal, LayerState
from moe_placer.solve.solve import solve
from moe_placer.traffic import Traffic

QUICK = Limits(time_s=60.0, work=0.05)
EVEN = {"replica_routing": "even", "replicas": {"redundant_slots": 4}}
CASES: dict[str, dict[str, Any]] = {
    "groups": {},
    "spare": {"cluster": {"gpus_per_node": 3}},
    "replicas are a choice": {"placement": EVEN},
    "shared budget": {"placement": {"replica_routing": "even", "replicas": {"redundant_slots_in_all": 6}}},
    "two slots": {"placement": {"slots_per_gpu": 2}},
    "two slots, replicas a choice": {"placement": {**EVEN, "slots_per_gpu": 2}},
    "mesh": {"cluster": {"fabric": {"kind": "full-mesh"}}},
    "pinned": {"placement": {"pinned": [{"layer": 1, "expert": 0, "gpu": 0}, {"layer": 2, "expert": 3, "gpu": 5}]}},
    "apart": {"placement": {"replicas_apart": "node"}},
    "experts' GPUs receive": {"cluster": {"nics": {"per_node": 2, "gb_per_s": 200.0, "receive": "destination-gpu"}}},
    "failed": {"cluster": {"gpus_per_node": 3}, "placement": {"failed_gpus": [0, 4]}},
}


def planned(instance: Instance, seed: int, traffic: Callable[..., Traffic] = tiny_traffic) -> Placement:
    """Plan for some traffic, by a heuristic that knows nothing of the traffic that is replanned for."""
    return solve(instance, traffic(instance, seed), solver="greedy", limits=Limits(time_s=5.0)).placement


def moved(current: Placement, new: Placement) -> int:
    """Count (layer, expert, GPU) of the new placement that the current one does not have."""
    pairs = zip(current.gpu, new.gpu, strict=True)
    return sum(len(set(after) - set(before)) for old, row in pairs for before, after in zip(old, row, strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("most", [0, 3, None])
def test_what_is_found_is_valid_within_the_budget_and_never_worse(case: str, most: int | None) -> None:
    instance = tiny_instance(**CASES[case])
    current, traffic = planned(instance, 0), tiny_traffic(instance, 1)
    found = replan(instance, current, traffic, budget=Budget(moves=most), limits=QUICK)
    assert found.verification is not None
    assert found.verification.ok
    assert found.after.moves == moved(current, found.placement) <= (np.inf if most is None else most)
    assert found.after.value <= found.before.value
    assert found.verification.total_z == pytest.approx(found.after.total_z)
    for placement, figures in ((current, found.before), (found.placement, found.after)):
        again = measure(instance, current, placement, traffic, found.minimise)
        assert vars(again) == pytest.approx(vars(figures))
    assert [one.moves for one in found.curve] == sorted({one.moves for one in found.curve})
    values = [one.value for one in found.curve]
    assert values == sorted(values, reverse=True)
    assert found.after.bytes == found.after.moves * expert_bytes(instance)


def brute_force(instance: Instance, current: Placement, traffic: Any, most: int) -> list[float]:
    """Return the least sum of z over all assignments to nodes, for every number of moves that is allowed."""
    problem = compile_problem(instance, traffic)
    now = read_current(problem, current)
    best = [0.0] * (most + 1)
    for index in range(len(problem)):
        layer = problem.layer(index)
        held, least = now.held(index, problem.gpus_per_node), [np.inf] * (most + 1)
        for node in set(itertools.permutations(np.repeat(np.arange(layer.nodes), problem.gpus_per_node).tolist())):
            on = np.zeros_like(held)
            np.add.at(on, (layer.expert, np.array(node)), 1)
            moves = int(np.maximum(0, on - held).sum())
            if moves <= most and layer.valid(np.array(node)):
                least[moves] = min(least[moves], layer.z(np.array(node)))
        best = [min(best[b - m] + least[m] for m in range(b + 1)) for b in range(most + 1)]
        best = list(itertools.accumulate(best, min))
    return best


def test_no_placement_within_the_budget_is_better_than_what_is_found_on_a_tiny_instance() -> None:
    instance = tiny_instance(
        cluster={"nodes": 3, "fabric": {"nodes_per_leaf": 3}}, parallelism={"dp": 1}, model={"experts": 6}
    )
    reached = 0
    for seed in range(3):
        current, traffic = planned(instance, seed), tiny_traffic(instance, seed + 10)
        for most, best in enumerate(brute_force(instance, current, traffic, 6)):
            found = replan(instance, current, traffic, budget=Budget(moves=most), limits=QUICK)
            assert found.after.total_z >= best * (1 - 1e-9)
            reached += found.after.total_z <= best * (1 + 1e-9)
    assert reached >= 18  # of 21


def test_tokens_that_go_once_per_node_are_followed_as_well_as_enumeration_can() -> None:
    """Three nodes of two GPUs: every assignment is enumerated, by the exact count of tokens."""
    instance = tiny_instance(
        cluster={"nodes": 3, "fabric": {"nodes_per_leaf": 3}},
        parallelism={"dp": 1},
        model={"experts": 6},
        placement={"dispatch": "per-node"},
    )
    current, traffic = planned(instance, 1, tiny_tokens), tiny_tokens(instance, 11)
    reached = 0
    for most, best in enumerate(brute_force(instance, current, traffic, 6)):
        found = replan(instance, current, traffic, budget=Budget(moves=most), limits=QUICK)
        assert found.verification is not None
        assert found.bound is None  # what is linear bounds nothing here
        assert found.after.moves == moved(current, found.placement) <= most
        assert found.after.total_z >= best * (1 - 1e-9)
        reached += found.after.total_z <= best * (1 + 1e-9)
    assert reached >= 6  # of 7
    without = replan(instance, current, traffic, inside_nodes=True, minimise="links", limits=QUICK)
    assert without.after.moves == 0
    with pytest.raises(NothingFoundError, match=r"take placement\.dispatch: per-expert"):
        replan(instance, current, traffic, minimise="time")


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), case=st.sampled_from(sorted(CASES)))
def test_a_trade_does_what_it_says(seed: int, case: str) -> None:
    instance = tiny_instance(**CASES[case])
    rng = np.random.default_rng(seed)
    problem = compile_problem(instance, tiny_traffic(instance, seed))
    now = read_current(problem, planned(instance, seed % 7))
    layer = now.problem.layer(0)
    slots = problem.capacity.slots[0]
    state = LayerState(layer, now.gpu[0], now.held(0), slots, Goal(1.0, 0.7))
    for _ in range(4):
        targets = (0.8 * state.links.z, 0.8 * state.busiest_gpu)
        trades = state.best_trades(np.arange(layer.items), *targets, inside=bool(rng.integers(2)))
        if not trades:
            break
        trade = trades[0]
        before, moves = state.excess(*targets), state.moves
        state.apply(trade)
        assert state.excess(*targets) - before == pytest.approx(trade.change, abs=1e-6 * before)
        assert state.moves - moves == trade.moves
        assert (np.bincount(state.place, minlength=len(slots)) <= slots).all()
        assert layer.valid(state.node)
        if (other := state.random_trade(int(rng.integers(layer.items)), rng, inside=False)) is not None:
            state.apply(other)
            assert layer.valid(state.node)


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), slots=st.sampled_from([1, 2]), links=st.sampled_from([0.0, 1.0]))
def test_a_change_of_replicas_does_what_it_says(seed: int, slots: int, links: float) -> None:
    instance = tiny_instance(placement={**EVEN, "slots_per_gpu": slots})
    problem = compile_problem(instance, tiny_traffic(instance, seed))
    now = read_current(problem, planned(instance, seed % 7))
    state = LayerState(now.problem.layer(0), now.gpu[0], now.held(0), problem.capacity.slots[0], Goal(links, 0.7))
    for _ in range(3):
        targets = (0.8 * state.links.z, 0.8 * state.busiest_gpu)
        change = best_change(state, *targets, inside=False)
        if change is None:
            break
        before, moves = state.excess(*targets), state.moves
        state = changed(state, change)
        assert state.excess(*targets) - before == pytest.approx(change.change, abs=1e-6 * before)
        assert state.moves - moves == change.moves
        assert state.layer.valid(state.node)


@settings(max_examples=50)
@given(st.data())
def test_the_budget_is_divided_in_the_best_way(data: st.DataObject) -> None:
    points = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9)), max_size=3)
    rows = [[(0, 10), *sorted(data.draw(points))] for _ in range(3)]
    budget = data.draw(st.integers(0, 12))
    found = allocate(
        [np.array([w for w, _ in row]) for row in rows], [np.array([float(v) for _, v in row]) for row in rows], budget
    )
    ways = [(sum(w for w, _ in way), sum(v for _, v in way)) for way in itertools.product(*rows)]
    best = min((value, weight) for weight, value in ways if weight <= budget)
    chosen = [row[at] for row, at in zip(rows, found.choose(budget), strict=True)]
    assert (sum(v for _, v in chosen), sum(w for w, _ in chosen)) == best == (found.value[budget], best[1])


def test_by_hand_one_swap_of_the_hot_experts_is_all_it_takes() -> None:
    """Two nodes of two GPUs. Both hot experts are on node 0: one must go, a cold one comes, and the other two stay."""
    instance = tiny_instance(
        model={"layers": 1, "dense_layers": []},
        cluster={"nodes": 2, "fabric": {"nodes_per_leaf": 2}},
        parallelism={"dp": 1},
    )
    traffic = level_traffic(instance, [[50.0, 50.0, 1.0, 1.0]], 51.0)
    current = solve(instance, level_traffic(instance, [[1.0, 1.0, 1.0, 1.0]], 2.0), solver="contiguous").placement
    assert current.gpu == (((0,), (1,), (2,), (3,)),)
    found = replan(instance, current, traffic, limits=QUICK)
    assert found.after.moves == 2
    stayed = [e for e in range(4) if found.placement.gpu[0][e] == current.gpu[0][e]]
    assert len(stayed) == 2
    assert found.before.total_z == pytest.approx(200 * 100 / 51)  # each node sends what it has for both hot experts
    assert found.after.total_z == pytest.approx(200 * 51 / 51)
    assert replan(instance, current, traffic, budget=Budget(moves=1), limits=QUICK).placement.gpu == current.gpu


def test_replicas_of_one_expert_change_roles_without_a_move() -> None:
    instance = tiny_instance(cluster={"fabric": {"nodes_per_leaf": 4}})
    current = planned(instance, 0)
    rows = tuple(tuple(gpus[::-1] for gpus in row) for row in current.gpu)  # every DP group uses the other's replica
    found = replan(
        instance,
        current.model_copy(update={"gpu": rows}),
        tiny_traffic(instance, 0),
        budget=Budget(moves=0),
        limits=QUICK,
    )
    assert found.after.moves == 0
    assert found.after.total_z <= found.before.total_z


@pytest.mark.parametrize("case", ["plain", "experts' GPUs receive"])
def test_inside_nodes_nothing_leaves_its_node(case: str) -> None:
    cluster = CASES[case]["cluster"] if case != "plain" else {}
    instance = tiny_instance(placement={"slots_per_gpu": 2}, model={"experts": 8}, cluster=cluster)
    current = planned(instance, 3)
    found = replan(instance, current, tiny_traffic(instance, 4), inside_nodes=True, limits=QUICK)
    for before, after in zip(current.gpu, found.placement.gpu, strict=True):
        assert np.array_equal(np.array(before) // 2, np.array(after) // 2)
    assert found.after.busiest_gpu < found.before.busiest_gpu
    if case == "plain":  # else NICs of GPUs are links
        assert found.after.total_z == pytest.approx(found.before.total_z)


def test_the_same_effort_gives_the_same_placement() -> None:
    instance = tiny_instance(placement={**EVEN, "slots_per_gpu": 2})
    current, traffic = planned(instance, 0), tiny_traffic(instance, 1)
    first, second = (replan(instance, current, traffic, limits=QUICK, seed=3) for _ in range(2))
    assert first.placement == second.placement


def test_what_is_wrong_with_a_current_placement_is_said() -> None:
    instance = tiny_instance()
    current, traffic = planned(instance, 0), tiny_traffic(instance, 0)

    def broken(change: Any) -> Placement:
        rows = [[list(gpus) for gpus in row] for row in current.gpu]
        change(rows)
        return current.model_copy(update={"gpu": tuple(tuple(map(tuple, row)) for row in rows)})

    wrong = {
        "1 MoE layers": lambda rows: rows.pop(),
        "3 experts in layer 1": lambda rows: rows[0].pop(),
        "no replica of expert 2": lambda rows: rows[0][2].clear(),
        "other numbers of replicas": lambda rows: rows[0][2].pop(),
        "GPU 99 in layer 1": lambda rows: rows[0][2].__setitem__(0, 99),
        "2 experts on GPU": lambda rows: rows[0][2].__setitem__(0, rows[0][1][0]),
    }
    for text, change in wrong.items():
        with pytest.raises(InputError, match=text):
            replan(instance, broken(change), traffic, limits=QUICK)


def test_kinds_of_instances_that_trades_do_not_know_are_refused() -> None:
    for changes, text in (
        ({"parallelism": {"dp": 1, "expert_tp": 2}}, "take parallelism.expert_tp: 1, or plan anew"),
        ({"objective": {"minimise": "aggregate"}}, "take objective.minimise: layers"),
    ):
        instance = tiny_instance(**changes)
        current = solve(instance, tiny_traffic(instance), limits=Limits(time_s=5.0, work=0.1)).placement
        with pytest.raises(NothingFoundError, match=text):
            replan(instance, current, tiny_traffic(instance), limits=QUICK)
    with pytest.raises(UsageError, match="budget of moves is -1"):
        Budget(moves=-1)
    with pytest.raises(UsageError, match="seed is -1"):
        replan(tiny_instance(), planned(tiny_instance(), 0), tiny_traffic(tiny_instance()), seed=-1)


def test_plain_tokens_are_not_added_to_the_time_of_gpus() -> None:
    instance = tiny_instance(objective={"metric": "tokens"}, placement={"slots_per_gpu": 2})
    current, traffic = planned(instance, 0), tiny_traffic(instance, 1)
    with pytest.raises(UsageError, match="minimise links or gpus, or take metric: time"):
        replan(instance, current, traffic, minimise="time", limits=QUICK)
    assert replan(instance, current, traffic, limits=QUICK).minimise == "links"
    slow = replan(instance, current, traffic, change=Change(slow={1: 3.0}), limits=QUICK)
    assert slow.minimise == "gpus"


def test_the_budget_in_bytes_counts_whole_experts() -> None:
    instance = tiny_instance()
    assert Budget(bytes=2.5 * expert_bytes(instance)).most_moves(instance) == 2
    assert Budget(moves=1, bytes=2.5 * expert_bytes(instance)).most_moves(instance) == 1
    assert Budget().most_moves(instance) is None


def test_time_is_links_and_gpus_together() -> None:
    problem = compile_problem(tiny_instance(), tiny_traffic(tiny_instance()))
    both = goal_of(problem, "time")
    assert (both.links, both.gpus) == (1.0, problem.gpu_price)
    assert goal_of(problem, "links") == Goal(1.0, 0.0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a folder with a plan by experts in order for instances/tiny.yaml."""
    folder = tmp_path_factory.mktemp("replan")
    assert run("solve", TINY, "--solver", "contiguous", "--no-dag", "-q", "-o", folder / "now").returncode == 0
    return folder, folder / "now" / "placement.json"


def test_the_command_writes_a_verified_placement_and_says_what_it_gains(runs: tuple[Path, Path]) -> None:
    folder, current = runs
    arguments = ("replan", TINY, current, "--max-moves", 4, "--fresh-time", 2, "--work", 0.05, "--curve")
    done = run(*arguments, "-o", folder / "next")
    assert done.returncode == 0, done.stderr
    assert "at most 4 moves, minimising busiest links" in done.stdout
    assert "No placement within the budget has less than" in done.stdout
    assert "of the fresh plan's gain with" in done.stdout
    assert "that is won back after" in done.stdout
    placement = load_placement(folder / "next" / "placement.json")
    assert moved(load_placement(current), placement) <= 4
    again = run("verify", TINY, folder / "next" / "placement.json", "--current", current)
    assert again.returncode == 0
    assert "no placement within its budget of moves has less" in again.stdout
    way = folder / "next" / "transfers.json"
    replay = ("verify", TINY, folder / "next" / "placement.json", "--current", current, "--transfers", way)
    assert run(*replay).returncode == 0
    way.write_text(way.read_text().replace('"bound_us": ', '"bound_us": 9'))
    lies = run(*replay)
    assert lies.returncode == 5
    assert "[migration] states a bound" in lies.stdout
    other = run("verify", TINY, folder / "next" / "placement.json", "--current", folder / "next" / "placement.json")
    assert other.returncode == 5
    assert "[current] made from a placement with SHA-256" in other.stdout
    told = json.loads(run(*arguments, "--fresh-time", 0, "--json", "-o", folder / "next").stdout)
    jsonschema.validate(told, moe_placer.result_schema("replan"))
    assert told["gains"]
    assert told["verified"]
    assert told["within_budget"]["total_z"] < told["current"]["total_z"]
    curve = json.loads((folder / "next" / "curve.json").read_text())
    assert curve["points"][0]["moves"] == 0
    assert curve["points"] == told["curve"]
    for point in curve["points"]:
        assert point["layer_time_us"] > 0
        assert point["step_us"] is None
    assert curve["points"][-1]["layer_time_us"] < curve["points"][0]["layer_time_us"]
    assert (folder / "next" / "curve.svg").read_text().startswith("<svg")


def test_where_nothing_is_gained_nothing_moves(runs: tuple[Path, Path]) -> None:
    folder, current = runs
    done = run("replan", TINY, current, "--max-moves", 0, "--fresh-time", 0, "--work", 0, "-o", folder / "same")
    assert done.returncode == 0
    assert "Nothing to gain within the budget: nothing moves." in done.stdout
    assert load_placement(folder / "same" / "placement.json").gpu == load_placement(current).gpu


def test_bad_calls_say_what_to_change(runs: tuple[Path, Path]) -> None:
    _, current = runs
    fails(1, "replan", TINY, current.parent / "absent.json", says="absent.json")
    fails(2, "replan", TINY, current, "--max-bytes", -5, says="the budget of bytes is -5")
    fails(2, "replan", TINY, current, "--fresh-time", -1, says="--fresh-time is -1 s")
    fails(2, "replan", TINY, current, "--step", says="give --curve, too")
    fails(2, "replan", TINY, current, "--max-stall", -1, says="the budget of stall_ms is -1")
    fails(2, "verify", TINY, current, "--transfers", current, says="need --current FILE")
    fails(1, "verify", TINY, current, "--current", current, "--transfers", current, says="transfers")


def test_the_function_is_public() -> None:
    assert moe_placer.replan is replan
    assert moe_placer.Budget is Budget
