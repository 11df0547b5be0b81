"""Layers judged by the worst of several recordings: counted twice, solved against brute force, else refused."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders import in_order, placement_data, recomputed, rules_of, tiny_instance, tiny_tokens, tiny_traffic
from command_line import run
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.errors import InputError, NothingFoundError, UsageError
from moe_placer.instance import Instance
from moe_placer.instance.writer import dump_instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import compile_problem
from moe_placer.problem.scenarios import Judge
from moe_placer.search.moves import repair
from moe_placer.solve.solve import solve
from moe_placer.traffic import cut_in_windows
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier import verify
from moe_placer.verifier.scenarios import lawful_weights

WORST = {"objective": {"scenarios": "recordings"}}
CASES: dict[str, dict[str, Any]] = {
    "group": {},
    "even": {"placement": {"replica_routing": "even"}},
    "budget": {"placement": {"replica_routing": "even", "replicas": {"redundant_slots": 3}}},
    "rails": {"cluster": {"nics": {"per_node": 2, "gb_per_s": 200.0, "receive": "source-rail"}}},
    "sharded": {"parallelism": {"dp": 1, "expert_tp": 2}},
    "spare slots": {"cluster": {"gpus_per_node": 3}},
    "tokens": {"objective": {"metric": "tokens"}},
}


def case(name: str, scenarios: str = "recordings") -> Instance:
    changes = CASES[name]
    objective = {**changes.get("objective", {}), "scenarios": scenarios}
    return tiny_instance(**{**changes, "objective": objective})


def alone(instance: Instance, traffic: Traffic, index: int) -> Traffic:
    return Traffic((traffic.recordings[index],), np.ones((instance.cluster.nodes, 1)))


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_link_costs_what_it_costs_with_each_recording_alone(name: str, seed: int) -> None:
    instance, mixed = case(name), case(name, "mix")
    traffic = tiny_traffic(instance, seed, recordings=3)
    layer, rng = compile_problem(instance, traffic).layer(0), np.random.default_rng(seed)
    node = repair(layer, rng.permutation(np.repeat(np.arange(layer.nodes), layer.slots))[: layer.items], rng)
    assert node is not None
    own = compile_problem(mixed, traffic)
    each = []
    for index in range(3):
        one = compile_problem(mixed, alone(instance, traffic, index))
        each.append(one.layer(0, own.replicas[0]).cost(node))
    assert layer.cost(node) == pytest.approx(np.concatenate(each))
    assert layer.z(node) == pytest.approx(max(cost.max() for cost in each))


@pytest.mark.parametrize("name", ["group", "budget", "rails"])
def test_the_verifier_counts_the_same_and_derives_what_solvers_prove(name: str) -> None:
    instance = case(name)
    traffic = tiny_traffic(instance, 4, recordings=3)
    solution = solve(instance, traffic, limits=Limits(time_s=240.0, work=0.02))
    checked = solution.verification
    assert checked.ok
    gpu = [[list(replicas) for replicas in row] for row in solution.placement.gpu]
    z = [
        [check.z for check in recomputed(case(name, "mix"), gpu, alone(instance, traffic, index)).layers]
        for index in range(3)
    ]
    assert [check.z for check in checked.layers] == pytest.approx(np.max(z, axis=0).tolist())
    assert all(0 < check.bound <= check.z * (1 + 1e-9) for check in checked.layers)
    assert {check.worst_link.partition("@")[2] for check in checked.layers} <= {"0", "1", "2"}
    assert checked.busiest_gpu == pytest.approx(recomputed(case(name, "mix"), gpu, traffic).busiest_gpu)


@pytest.mark.parametrize("seed", range(2))
def test_no_placement_of_a_small_layer_is_better(seed: int) -> None:
    instance = tiny_instance(
        model={"layers": 1, "dense_layers": []}, cluster={"gpus_per_node": 1}, parallelism={"dp": 1}, **WORST
    )
    traffic = tiny_traffic(instance, seed, recordings=3)
    layer = compile_problem(instance, traffic).layer(0)
    best = min(layer.z(np.array(node)) for node in permutations(range(4)))
    for method in ("auto", "cpsat"):
        solution = solve(instance, traffic, solver=method, limits=Limits(time_s=240.0, work=0.1, gap=0.0))
        assert solution.objective == pytest.approx(best, rel=1e-6)
        assert solution.bound <= best * (1 + 1e-9)


MEANS = [{"take": "mean"}, {"take": "mean", "sigmas": 0.7}, {"take": "mean", "sigmas": 3.0}]


def judged_by_hand(instance: Instance, each: list[float]) -> float:
    mean = sum(each) / len(each)
    deviation = (sum((one - mean) ** 2 for one in each) / len(each)) ** 0.5
    return float(mean + instance.objective.sigmas * deviation)


@pytest.mark.parametrize("take", MEANS)
def test_the_mean_and_deviations_against_every_placement(take: dict[str, Any]) -> None:
    shape = {"model": {"layers": 1, "dense_layers": []}, "cluster": {"gpus_per_node": 1}, "parallelism": {"dp": 1}}
    instance = tiny_instance(**shape, objective={"scenarios": "recordings", **take})
    traffic = tiny_traffic(instance, 2, recordings=3)
    parts = [compile_problem(instance.on_the_mix(), alone(instance, traffic, index)).layer(0) for index in range(3)]
    values = [judged_by_hand(instance, [part.z(np.array(node)) for part in parts]) for node in permutations(range(4))]
    layer = compile_problem(instance, traffic).layer(0)
    assert [layer.z(np.array(node)) for node in permutations(range(4))] == pytest.approx(values)
    solution = solve(instance, traffic, limits=Limits(time_s=240.0, work=0.05, gap=0.0))
    assert solution.objective == pytest.approx(min(values), rel=0.02)
    assert 0 < solution.bound <= min(values) * (1 + 1e-9)


@pytest.mark.parametrize("take", MEANS)
@pytest.mark.parametrize("name", ["group", "budget"])
def test_means_are_verified_anew(take: dict[str, Any], name: str) -> None:
    changes = {key: value for key, value in CASES[name].items() if key != "objective"}
    instance = tiny_instance(**changes, objective={"scenarios": "recordings", **take})
    traffic = tiny_traffic(instance, 5, recordings=3)
    solution = solve(instance, traffic, limits=Limits(time_s=240.0, work=0.01))
    assert solution.verification.ok
    gpu = [[list(replicas) for replicas in row] for row in solution.placement.gpu]
    each = [
        [check.z for check in recomputed(instance.on_the_mix(), gpu, alone(instance, traffic, index)).layers]
        for index in range(3)
    ]
    expected = [judged_by_hand(instance, list(zs)) for zs in zip(*each, strict=True)]
    assert [check.z for check in solution.verification.layers] == pytest.approx(expected)
    assert [record.z for record in solution.placement.layers] == pytest.approx(expected)
    assert all(0 < check.bound <= check.z * (1 + 1e-9) for check in solution.verification.layers)


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.floats(0, 1), min_size=6, max_size=6),
    cost=st.lists(st.floats(0, 100), min_size=6, max_size=6),
    sigmas=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_no_weights_prove_more_than_there_is(weights: list[float], cost: list[float], sigmas: float) -> None:
    judge, costs = Judge(3, sigmas), np.array(cost)
    fitted = judge.fitted(np.array(weights))
    assert fitted @ costs <= judge.value(costs) * (1 + 1e-9) + 1e-9
    instance = tiny_instance(objective={"scenarios": "recordings", "take": "mean", "sigmas": sigmas})
    links = [f"{name}@{scenario}" for scenario in range(3) for name in "ab"]
    lawful = lawful_weights(instance, links, dict(zip(links, weights, strict=True)))
    theirs = np.array([lawful.get(link, 0.0) for link in links])
    assert theirs.sum() == pytest.approx(1)
    assert theirs @ costs <= judge.value(costs) * (1 + 1e-9) + 1e-9
    assert theirs == pytest.approx(fitted, abs=1e-9)
    at = judge.steepest(judge.each(costs))
    assert at @ judge.each(costs) == pytest.approx(judge.value(costs))


def test_means_are_of_scenarios_and_only_auto_has_them() -> None:
    for objective, says in (
        ({"take": "mean"}, "scenarios: recordings beside it"),
        ({"scenarios": "recordings", "sigmas": 1.0}, "take: mean"),
    ):
        with pytest.raises(Exception, match=says):
            tiny_instance(objective=objective)
    instance = tiny_instance(objective={"scenarios": "recordings", "take": "mean"})
    traffic = tiny_traffic(instance)
    with pytest.raises(NothingFoundError, match="every scenario"):
        solve(instance, traffic, solver="cpsat")
    with pytest.raises(UsageError, match="cooling"):
        solve(instance, traffic, cool_gpus=True)
    data = solve(instance, traffic, solver="contiguous", limits=Limits(time_s=240.0)).placement
    assert {record.proof for record in data.layers} == {"dual"}
    lie = data.model_copy(update={"layers": tuple(r.model_copy(update={"proof": "threshold"}) for r in data.layers)})
    assert "proof" in {violation.rule for violation in verify(instance, lie, traffic).violations}


@pytest.mark.parametrize("take", ["worst", "mean"])
def test_commands_print_what_scenarios_come_to(take: str, tmp_path: Path) -> None:
    objective = {"scenarios": "recordings", "take": take}
    instance = tiny_instance(traffic={"kind": "synthetic", "tokens_per_gpu": 10.0}, objective=objective)
    file, out = tmp_path / "tiny.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(instance.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    for words, says in (
        (["solve", file, "-o", out, "--work", "0.01", "--gap", "0", "--quiet", "--no-dag"], "above the gap"),
        (["verify", file, out / "placement.json"], "@"),
        (["evaluate", file, out / "placement.json"], "lower bound"),
        (["gate", file, out / "placement.json", "--max-gap", "900%"], "holds"),
    ):
        done = run(*words)
        assert done.returncode == 0, done.stderr
        assert says in done.stdout, done.stdout


def test_one_recording_is_the_mix() -> None:
    found = []
    for scenarios in ("mix", "recordings"):
        instance = tiny_instance(objective={"scenarios": scenarios})
        traffic = alone(instance, tiny_traffic(instance, 2), 0)
        found.append(solve(instance, traffic, limits=Limits(time_s=240.0, work=0.02)).objective)
    assert found[0] == pytest.approx(found[1])


def test_lies_are_told() -> None:
    instance = tiny_instance(**WORST)
    traffic = tiny_traffic(instance, 1)
    placement = solve(instance, traffic, solver="greedy", limits=Limits(time_s=240.0, work=0.1)).placement
    data = placement.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert rules_of(instance, data, traffic) == []
    for key, value, rule in (
        ("z", data["layers"][0]["z"] * 0.99, "z"),
        ("worst_link", data["layers"][0]["worst_link"].partition("@")[0], "worst-link"),
        ("weights", {"node0->leaf0": 1.0}, "weights"),
        ("bound", data["layers"][0]["z"] * 1.01, "bound"),
    ):
        layers = [{**data["layers"][0], key: value}, *data["layers"][1:]]
        assert rule in rules_of(instance, {**data, "layers": layers}, traffic)
    assert {"instance", "z"} <= set(rules_of(tiny_instance(), data, traffic))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"placement": {"dispatch": "per-node"}}, "dispatch: per-expert"),
        ({"objective": {"minimise": "aggregate"}}, "minimise: layers"),
        ({"cluster": {"nics": {"per_node": 2, "gb_per_s": 200.0, "receive": "destination-gpu"}}}, "source-rail"),
    ],
)
def test_what_is_not_linear_is_refused(changes: dict[str, Any], says: str) -> None:
    objective = {**changes.get("objective", {}), "scenarios": "recordings"}
    with pytest.raises(Exception, match=says):
        tiny_instance(**{**changes, "objective": objective})


def test_replanning_refuses() -> None:
    from moe_placer.replan.replan import replan

    instance = tiny_instance(**WORST)
    traffic = tiny_traffic(instance)
    current = Placement.model_validate(placement_data(instance, in_order(instance), traffic, []))
    with pytest.raises((NothingFoundError, InputError), match="all recordings at once"):
        replan(instance, current, traffic)


def windowed(count: int = 3, **changes: Any) -> Instance:
    """Build an instance judged on windows of its recordings."""
    traffic = {"kind": "trace", "tokens_per_gpu": 100.0}
    return tiny_instance(objective={"scenarios": "windows", "windows": count}, traffic=traffic, **changes)


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_windows_cost_what_each_of_them_costs_alone_and_the_verifier_counts_the_same(seed: int) -> None:
    instance, mixed = windowed(), windowed().on_the_mix()
    traffic = tiny_tokens(instance, seed)
    own = compile_problem(instance, traffic)
    gpu = in_order(instance)
    checked = recomputed(instance, gpu, traffic)
    each = np.array([[one.z for one in recomputed(mixed, gpu, part).layers] for part in cut_in_windows(traffic, 3)])
    assert [one.z for one in checked.layers] == pytest.approx(each.max(axis=0).tolist())
    assert len(own.links) == len(own.scenarios[0].links) * 3
    expert, replica = own.items(0)
    node = np.array([gpu[0][e][r] for e, r in zip(expert.tolist(), replica.tolist(), strict=True)]) // 2
    assert own.layer(0).z(node) == pytest.approx(each[:, 0].max())


def test_windows_are_solved_proved_and_verified() -> None:
    instance = windowed(2)
    traffic = tiny_tokens(instance, 1)
    solution = solve(instance, traffic, limits=Limits(time_s=240.0, work=0.02))
    assert solution.verification.ok
    assert 0 < solution.verification.total_bound <= solution.verification.total_z
    again = verify(instance, solution.placement, traffic)
    assert again.ok
    assert not verify(windowed(3), solution.placement, traffic).ok


@pytest.mark.parametrize(
    ("objective", "traffic", "said"),
    [
        ({"scenarios": "windows"}, "trace", "none"),
        ({"windows": 3}, "trace", "3 with scenarios: mix"),
        ({"scenarios": "windows", "windows": 3}, "load", "windows, with traffic.kind: load"),
        ({"scenarios": "windows", "windows": 3, "minimise": "layer-time"}, "trace", "windows, with objective.minimise"),
    ],
)
def test_windows_that_cannot_be_are_refused(objective: dict[str, Any], traffic: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        tiny_instance(objective=objective, traffic={"kind": traffic, "tokens_per_gpu": 100.0})


def test_too_few_tokens_for_windows_are_said() -> None:
    instance = windowed(20)
    traffic = tiny_tokens(instance, 0)
    with pytest.raises(InputError, match="17 tokens"):
        compile_problem(instance, traffic)
    with pytest.raises(InputError, match="17 tokens"):
        recomputed(instance, in_order(instance.on_the_mix()), traffic)


def test_windows_change_no_hash_of_other_instances() -> None:
    assert case("group").sha256 != windowed().sha256
    assert "windows" not in str(tiny_instance().model_dump(exclude_defaults=True))
    assert windowed(2).sha256 != windowed(3).sha256
    assert windowed(2).on_the_mix().sha256 == tiny_instance(traffic={"kind": "trace", "tokens_per_gpu": 100.0}).sha256


def test_the_command_places_for_windows_and_names_what_to_ask_next(tmp_path: Path) -> None:
    instance = tiny_instance(traffic={"kind": "trace", "tokens_per_gpu": 100.0})
    file, trace, out = tmp_path / "instance.yaml", tmp_path / "day.npz", tmp_path / "out"
    file.write_text(dump_instance(instance))
    np.savez(trace, topk=tiny_tokens(instance, 2, (90,)).recordings[0].topk)
    asked = ["solve", file, "--trace", trace, "--windows", 3, "--work", 0.01, "--no-dag", "-q", "-o", out]
    done = json.loads(run(*asked, "--json").stdout)
    assert len(done["scenario_z"]) == 3
    assert max(done["scenario_z"]) <= done["total_z"] <= sum(done["scenario_z"])
    assert sorted(Path(name).name for name in done["files"]) == ["placement.json", "windows-instance.yaml"]
    text = run(*asked).stdout
    assert f"moe-placer follow {file} {out / 'placement.json'} --trace {trace} --windows 3" in text
    assert run("verify", out / "windows-instance.yaml", out / "placement.json").returncode == 0
    assert run("verify", file, out / "placement.json", "--trace", trace).returncode == 5
    plain = json.loads(run(*asked[:4], *asked[6:], "--json").stdout)
    assert plain["scenario_z"] is None
    assert not (out / "windows-instance.yaml").exists()
