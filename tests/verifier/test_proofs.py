"""False proofs that once passed, and what is said of what nobody has checked."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from builders import MESH, honest, in_order, level_traffic, merged, recomputed, rules_of, tiny_instance, tiny_traffic
from click.testing import CliRunner

from moe_placer.cli.commands import cli
from moe_placer.instance import Instance, load_instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement, load_placement
from moe_placer.solve.solve import solve
from moe_placer.traffic import load_traffic
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier import derive, verify

CASES = Path(__file__).parents[1] / "cases"
INSTANCES = Path(__file__).parents[2] / "instances"


def ran(*arguments: Any) -> tuple[int, str]:
    """Return exit code and standard output."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)
    assert done.exception is None
    return int(done.return_value), done.stdout


def told(instance: Path, placement: Path) -> dict[str, Any]:
    return dict(json.loads(ran("verify", instance, placement, "--no-dag", "--json")[1]))


# Forged prices of memory


def test_prices_that_cancel_are_refused() -> None:
    code, text = ran("verify", INSTANCES / "h100-128.yaml", CASES / "h-forged.json", "--no-dag")
    assert code == 5
    assert "[proof] a price of memory of 3.33333333e+17" in text
    assert "no placement has less" not in text


def two_layers() -> tuple[Instance, Traffic, dict[str, Any]]:
    """Two layers of experts that draw 75 and 25 of a node's 100 tokens; all on node 1 but one: z is 100 and 75."""
    instance = tiny_instance(
        model={"layers": 2, "dense_layers": [], "experts": 2, "top_k": 1},
        cluster={"nodes": 2, "gpus_per_node": 1, "fabric": MESH},
        parallelism={"dp": 1},
        placement={"slots_per_gpu": 2},
    )
    traffic = level_traffic(instance, [[3, 1], [3, 1]], 4)
    data = honest(instance, traffic, [[[1], [1]], [[0], [1]]])
    for record in data["layers"]:
        record |= {"bound": 0.0, "weights": {"node0->node1": 0.5, "node1->node0": 0.5}}
    return instance, traffic, data


@pytest.mark.parametrize("price", [0.0, 1e-300, 5e-324, 1.0, 50.0, 3e7])
def test_prices_in_range_prove_what_they_prove(price: float) -> None:
    # Each layer's items cost 37.5 and 12.5 on either node, 100 in all; room is for all 4 items on either node. An equal
    # price on both nodes is paid 4 times and given back 8 times.
    instance, traffic, data = two_layers()
    data["memory"] = {"bound": 0.0, "room_prices": [price, price]}
    found = verify(instance, Placement.model_validate(data), traffic)
    assert found.ok
    assert found.memory_bound == pytest.approx(max(0.0, 100 - 4 * price), rel=1e-9)
    assert found.memory_bound <= 100


@pytest.mark.parametrize("price", [float("nan"), float("inf"), -1.0, -5e-324, 4e7, 1e300])
def test_prices_out_of_range_are_refused(price: float) -> None:
    instance, traffic, data = two_layers()
    data["memory"] = {"bound": 0.0, "room_prices": [0.0, 0.0]}
    placement = Placement.model_validate(data)
    assert placement.memory is not None
    memory = placement.memory.model_copy(update={"room_prices": (0.0, price)})
    found = verify(instance, placement.model_copy(update={"memory": memory}), traffic)
    assert [violation.rule for violation in found.violations] == ["proof"]
    assert found.memory_bound == 0


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1e-9, 1.1])
def test_weights_out_of_range_are_refused(weight: float) -> None:
    instance, traffic, data = two_layers()
    good = Placement.model_validate(data)
    weights = {"node0->node1": weight, "node1->node0": 1 - weight}
    records = tuple(record.model_copy(update={"weights": weights}) for record in good.layers)
    found = verify(instance, good.model_copy(update={"layers": records}), traffic)
    assert {violation.rule for violation in found.violations} == {"weights"}
    assert found.total_bound == 0


def test_the_bound_that_counts_memory_is_held_against_costs_not_tokens() -> None:
    # Spine links at a quarter of a node's speed: costs are four times the tokens there, and z is a cost.
    instance = tiny_instance(cluster={"fabric": {"oversubscription": 4.0}}, parallelism={"dp": 1})
    traffic = tiny_traffic(instance, seed=3)
    gpu = [[[0], [1], [2], [3]]] * 2  # all on one leaf: what the other leaf's nodes send crosses the spines
    data = honest(instance, traffic, gpu)
    found = verify(instance, Placement.model_validate(data), traffic)
    assert all("spine" in check.worst_link for check in found.layers)
    assert found.total_z == pytest.approx(4 * sum(check.worst_link_tokens for check in found.layers))
    data["memory"] = {"bound": 0.0, "room_prices": [0.0] * 4}
    derived = verify(instance, Placement.model_validate(data), traffic).memory_bound
    assert derived == pytest.approx(found.total_bound)
    above_tokens = found.total_z * 0.75  # more than the tokens of busiest links, less than their costs
    for stated, texts in (
        (derived, []),
        (above_tokens, ["that weights and prices of memory give"]),
        (found.total_z * 1.01, ["that weights and prices of memory give", "of the sum of busiest links"]),
    ):
        data["memory"]["bound"] = stated
        violations = verify(instance, Placement.model_validate(data), traffic).violations
        assert [violation.message.endswith(text) for violation, text in zip(violations, texts, strict=True)] == [
            True for _ in texts
        ]


# One choice of replicas passed as all


def test_a_bound_for_the_replicas_of_a_file_is_none_of_the_instance() -> None:
    # 10070: certified at 4.0 for its replicas, where others reach 2.074, and our own solver about that.
    code, text = ran("verify", CASES / "10070.yaml", CASES / "10070.json", "--no-dag")
    assert code == 5
    assert "required is 0 or any_copies" in text
    assert "no placement has less" not in text
    instance = load_instance(CASES / "10070.yaml")
    assert solve(instance, limits=Limits(time_s=5, workers=1)).verification.total_z < 2.5


@pytest.mark.parametrize("proof", ["hot-experts", "dual", "threshold"])
def test_a_trap_of_ones_own_is_no_bound_of_the_instance(proof: str, tmp_path: Path) -> None:
    # 10007: each layer's hot expert alone on a node, the redundant replicas wasted on others.
    path = CASES / "10007.yaml"
    instance = load_instance(path)
    traffic = load_traffic(instance)
    best = solve(instance, traffic, limits=Limits(time_s=5, workers=1)).verification.total_z
    assert best < 1.7
    data, links = _trap(instance, traffic), recomputed(instance, in_order(instance), traffic).links
    for row, record in enumerate(data["layers"]):
        heaviest = int(sum(r.load[row] / r.tokens[row] for r in traffic.recordings).argmax())
        record |= {"hot-experts": {"hot": (heaviest, 0)}, "dual": {}, "threshold": {"threshold": record["z"]}}[proof]
        record["proof"] = proof
        if proof != "hot-experts":
            record["weights"] = {record["worst_link"]: 1.0} if proof == "dual" else dict.fromkeys(links, 1 / len(links))
    given = sum(
        layer.bound_given_replicas or 0.0 for layer in verify(instance, Placement.model_validate(data), traffic).layers
    )
    for layer, record in zip(
        verify(instance, Placement.model_validate(data), traffic).layers, data["layers"], strict=True
    ):
        record["bound_given_replicas"] = layer.bound_given_replicas
    assert (given > best) == (proof != "dual")
    file = tmp_path / "placement.json"
    Placement.model_validate(data).write(file)
    code, text = ran("verify", path, file, "--no-dag")
    assert code == 0
    assert "no placement has less" not in text
    assert "for these replicas" in text
    assert "0 of 3 layers" in text
    content = told(path, file)
    assert content["total_bound"] == 0
    assert content["bounds"]["given_replicas_only_layers"] == 3
    assert sum(layer["bound_given_replicas"] for layer in content["layers"]) == pytest.approx(given)
    assert {layer["gap"] for layer in content["layers"]} == {None}
    # Stated as the instance's bound it is refused, and so is more than it proves.
    forged = copy.deepcopy(data)
    for record in forged["layers"]:
        record["bound"] = record.pop("bound_given_replicas")
    if given:
        assert rules_of(instance, forged, traffic) == ["bound"]
    data["layers"][0]["bound_given_replicas"] += 0.01
    assert rules_of(instance, data, traffic) == ["bound"]


def _trap(instance: Instance, traffic: Traffic) -> dict[str, Any]:
    """Place every layer so that its most chosen expert has one replica."""
    gpu: list[list[list[int]]] = []
    for row in range(len(instance.moe_layers)):
        heaviest = int(sum(r.load[row] / r.tokens[row] for r in traffic.recordings).argmax())
        left, replicas = instance.replicas_per_layer - instance.model.experts, []
        for expert in range(instance.model.experts):
            more = 0 if expert == heaviest else min(left, instance.cluster.nodes - 1)
            left -= more
            replicas.append([2 * ((expert + place) % 4) for place in range(1 + more)])
        gpu.append(replicas)
    return honest(instance, traffic, gpu, proof="solver")


def test_no_redundant_slots_are_no_choice() -> None:
    for replicas in ({"redundant_slots": 0}, {"redundant_slots_in_all": 0}):
        instance = tiny_instance(parallelism={"dp": 1}, placement={"replica_routing": "even", "replicas": replicas})
        traffic = tiny_traffic(instance)
        data = honest(instance, traffic, proof="hot-experts")
        assert all(record["bound"] > 0 for record in data["layers"])
        assert rules_of(instance, data, traffic) == []


def test_a_bound_given_replicas_needs_a_choice_of_replicas() -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic)
    data["layers"][0]["bound_given_replicas"] = 0.0
    assert rules_of(instance, data, traffic) == ["proof"]


def test_the_aggregate_needs_a_bound_for_any_replicas_too() -> None:
    budget = {"replica_routing": "even", "replicas": {"redundant_slots": 2}}
    instance = tiny_instance(placement=budget)
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic, proof="solver")
    found = verify(instance, Placement.model_validate(data), traffic)
    weights = dict.fromkeys(found.links, 1 / len(found.links))
    data["aggregate"] = {"value": found.aggregate, "worst_link": found.aggregate_link, "bound": 0.0, "proof": "dual"}
    data["aggregate"]["weights"] = weights
    assert rules_of(instance, data, traffic) == ["proof"]
    data["aggregate"]["any_copies"] = True
    assert rules_of(instance, data, traffic) == []
    assert verify(instance, Placement.model_validate(data), traffic).aggregate_bound > 0


# Slots of nodes


@pytest.mark.parametrize("case", ["tp8", "tp8b", "shard-odd-failures"])
@pytest.mark.parametrize("solver", ["auto", "greedy"])
def test_nodes_with_too_few_gpus_for_all_shards_hold_nothing(case: str, solver: str) -> None:
    instance = load_instance(CASES / f"{case}.yaml")
    solution = solve(instance, solver=solver, limits=Limits(time_s=5, workers=1))
    assert solution.verification.ok
    assert 0 < solution.verification.total_bound <= solution.verification.total_z


# A contradiction


def test_a_bound_above_a_valid_placement_is_a_contradiction(monkeypatch: pytest.MonkeyPatch) -> None:
    # No weights prove so much: what derives it must err.
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic)
    for record in data["layers"]:
        record["bound"] = 0.0
    z = sum(record["z"] for record in data["layers"])
    weights = data["layers"][0]["weights"]
    data["memory"] = {"bound": 0.0, "room_prices": [0.0] * 4}
    plain = verify(instance, Placement.model_validate(data), traffic)
    data["aggregate"] = {
        "value": plain.aggregate,
        "worst_link": plain.aggregate_link,
        "bound": 0.0,
        "proof": "dual",
        "weights": weights,
    }
    placement = Placement.model_validate(data)
    assert verify(instance, placement, traffic).ok
    monkeypatch.setattr(derive, "dual_bound", lambda *_: 2 * z)
    monkeypatch.setattr(derive, "memory_bound", lambda *_: 2 * z)
    found = verify(instance, placement, traffic)
    assert [(violation.rule, violation.layer) for violation in found.violations] == [
        ("contradiction", 1),
        ("contradiction", 2),
        ("contradiction", None),
        ("contradiction", None),
    ]
    assert "one of them is wrong" in str(found.violations[0])
    assert (found.total_bound, found.aggregate_bound, found.memory_bound) == (0, 0, 0)
    # A placement that breaks a constraint may well be below the bound.
    data["gpu"][0][0][0] = data["gpu"][0][1][0]
    rules = {violation.rule for violation in verify(instance, Placement.model_validate(data), traffic).violations}
    assert "slots" in rules
    assert "contradiction" not in rules


# Word against proof


@pytest.fixture(scope="module")
def stated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """Solve the tiny instance; return the files and the placement's content."""
    folder = tmp_path_factory.mktemp("stated")
    instance = tiny_instance(traffic={"kind": "synthetic", "seed": 3, "tokens_per_gpu": 100.0})
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(instance.model_dump(mode="json")))
    placement = folder / "placement.json"
    solve(instance, limits=Limits(time_s=5, workers=1)).placement.write(placement)
    return path, placement, json.loads(placement.read_text())


def test_what_only_the_solver_says_is_said_so(stated: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    instance, placement, data = stated
    assert "re-derived          2 of 2 layers" in ran("verify", instance, placement)[1]
    data = copy.deepcopy(data)
    first, second = data["layers"]
    for key in ("weights", "threshold", "hot", "solver_bound"):
        first.pop(key, None)
    first |= {"proof": "solver", "bound": first["z"]}
    second["solver_bound"] = second["z"]
    file = tmp_path / "placement.json"
    file.write_text(json.dumps(data))
    code, text = ran("verify", instance, file)
    assert code == 0
    assert "re-derived          1 of 2 layers" in text
    assert f"claimed by the solver only, not checked: 1 layer, bounds of {first['z']:,.1f} in all" in text
    assert f"claimed by the solver only, not checked: higher bounds of 1 layer, {second['z']:,.1f} in all" in text
    assert "gap                 not known" in text
    content = told(instance, file)
    assert content["bounds"] == {
        "rederived_layers": 1,
        "given_replicas_only_layers": 0,
        "claimed_only_layers": 1,
        "claimed_higher_layers": 1,
    }
    assert [layer["rederived"] for layer in content["layers"]] == [False, True]
    assert [layer["claimed_bound"] for layer in content["layers"]] == [first["z"], second["z"]]
    assert content["layers"][0]["bound"] == 0
    assert content["total_bound"] == pytest.approx(second["bound"], rel=1e-9)


def test_facts_beside_a_placement_are_checked_or_said_not_to_be(stated: tuple[Path, Path, dict[str, Any]]) -> None:
    instance, placement, _ = stated
    facts = told(instance, placement)["facts"]
    assert {"traffic.kind", "traffic.tokens_per_gpu", "traffic.recordings", "traffic.mix"} <= set(facts["checked"])
    assert {"fabric.kind", "fabric.node_gb_per_s", "fabric.metric", "fabric.links"} <= set(facts["checked"])
    assert {"replicas.per_layer", "replicas.copies", "replicas.bound_covers_choice_of_copies"} <= set(facts["checked"])
    assert set(facts["not_checked"]) == {"solver", "versions", "traffic.recordings.name"}


FALSE_FACTS: list[tuple[str, dict[str, Any]]] = [
    ("traffic", {"kind": "trace"}),
    ("traffic", {"tokens_per_gpu": 200.0}),
    ("traffic", {"recordings": []}),
    ("traffic", {"recordings": "many"}),
    ("traffic", {"mix": [[1.0]]}),
    ("traffic", {"mix": None}),
    ("fabric", {"kind": "full-mesh"}),
    ("fabric", {"node_gb_per_s": 401.0}),
    ("fabric", {"metric": "tokens"}),
    ("fabric", {"links": {"node->leaf": {"links": 4, "gb_per_s": 400.0}}}),
    ("replicas", {"per_layer": 9}),
    ("replicas", {"per_layer": True}),
    ("replicas", {"copies": "chosen by load"}),
    ("replicas", {"bound_covers_choice_of_copies": False}),
]


@pytest.mark.parametrize(("block", "change"), FALSE_FACTS)
def test_a_false_fact_is_reported(
    block: str, change: dict[str, Any], stated: tuple[Path, Path, dict[str, Any]]
) -> None:
    instance, _, data = stated
    data = merged(data, {})
    data[block] = data[block] | change
    opened = load_instance(instance)
    (violation,) = verify(opened, Placement.model_validate(data)).violations
    assert violation.rule == "facts"
    assert f"{block}.{next(iter(change))}" in violation.message


def test_facts_that_nobody_knows_are_not_checked(stated: tuple[Path, Path, dict[str, Any]]) -> None:
    instance, placement, _ = stated
    read = load_placement(placement)
    found = verify(load_instance(instance), read.model_copy(update={"fabric": {**read.fabric, "colour": "green"}}))
    assert found.ok
    assert "fabric.colour" in found.facts_not_checked


def test_facts_of_a_dragonfly_tell_local_links_from_global_ones() -> None:
    fabric = {"kind": "dragonfly", "nodes_per_router": 1, "routers_per_group": 2, "global_gb_per_s": 100.0}
    instance = tiny_instance(cluster={"nodes": 6, "fabric": fabric})
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic)
    # Six nodes on as many routers in three groups of two; each pair of groups has one link.
    links = {
        "node->router": {"links": 6, "gb_per_s": 400.0},
        "router->node": {"links": 6, "gb_per_s": 400.0},
        "router->router (local)": {"links": 6, "gb_per_s": 400.0},
        "router->router (global)": {"links": 6, "gb_per_s": 100.0},
    }
    data["fabric"] = {"links": links}
    assert rules_of(instance, data, traffic) == []
    data["fabric"]["links"]["router->router (global)"]["gb_per_s"] = 400.0
    assert rules_of(instance, data, traffic) == ["facts"]


def test_facts_of_a_shared_budget_are_counted() -> None:
    budget = {"replica_routing": "even", "replicas": {"redundant_slots_in_all": 6}}
    instance = tiny_instance(placement=budget)
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic, proof="solver")
    used = sum(len(replicas) - 1 for row in data["gpu"] for replicas in row)
    data["replicas"] = {"redundant_in_all": used, "redundant_slots_in_all": 6, "bound_covers_choice_of_copies": False}
    assert rules_of(instance, data, traffic) == []
    for key, value in (("redundant_in_all", used + 1), ("bound_covers_choice_of_copies", True)):
        assert rules_of(instance, {**data, "replicas": {**data["replicas"], key: value}}, traffic) == ["facts"]
