"""GPUs that fail, drain, come back or are slow: what comes back first, and what the verifier says of the way there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders import level_traffic, tiny_instance, tiny_traffic
from command_line import TINY, fails, run
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.errors import InfeasibleError, InputError, NothingFoundError, UsageError
from moe_placer.instance import Instance, load_instance, make_instance
from moe_placer.instance.writer import dump_instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement, load_placement
from moe_placer.replan.budget import Budget
from moe_placer.replan.change import Change
from moe_placer.replan.fresh_plan import measure
from moe_placer.replan.replan import Replanned, replan
from moe_placer.solve.solve import solve
from moe_placer.traffic import Traffic
from moe_placer.verifier import verify
from moe_placer.verifier.migration import check_migration
from moe_placer.verifier.transfer_file import ReloadRecord

QUICK = Limits(time_s=60.0, work=0.05)
CASES: dict[str, dict[str, Any]] = {
    "groups": {"cluster": {"gpus_per_node": 4}},
    "two slots": {"placement": {"slots_per_gpu": 2}},
    "replicas are a choice": {"placement": {"replica_routing": "even", "replicas": {"redundant_slots": 4}}},
    "shared budget": {"placement": {"replica_routing": "even", "replicas": {"redundant_slots_in_all": 6}}},
    "apart": {"cluster": {"gpus_per_node": 3}, "placement": {"replicas_apart": "node"}},
    "experts' GPUs receive": {
        "cluster": {"gpus_per_node": 4, "nics": {"per_node": 4, "gb_per_s": 100.0, "receive": "destination-gpu"}}
    },
}


def planned(instance: Instance) -> Placement:
    return solve(instance, tiny_traffic(instance, 0), solver="greedy", limits=Limits(time_s=5.0)).placement


def replanned(case: str, change: Change, **options: Any) -> tuple[Placement, Replanned]:
    instance = tiny_instance(**CASES[case])
    current, now = planned(instance), change.applied_to(instance)
    return current, replan(instance, current, tiny_traffic(now, 1), change=change, limits=QUICK, **options)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=5)
@given(seed=st.integers(0, 10_000))
def test_what_is_left_is_restored_or_the_capacity_that_is_missing_is_named(case: str, seed: int) -> None:
    """The verifier has checked constraints, moves and the way there; here: nothing sits on GPUs out of service."""
    rng = np.random.default_rng(seed)
    gpus = rng.choice(tiny_instance(**CASES[case]).gpus, 3, replace=False).tolist()
    change = Change(failed=(gpus[0],), drained=(gpus[1],), slow={gpus[2]: 1.5})
    try:
        current, found = replanned(case, change)
    except (InfeasibleError, NothingFoundError) as error:
        told = str(error)
        if "hold" not in told and "no place beside what is left" not in told:
            raise
        return
    assert found.verification is not None
    assert found.verification.ok
    assert {gpu for row in found.placement.gpu for expert in row for gpu in expert}.isdisjoint(gpus[:2])
    assert found.loss is None or found.before.moves >= found.loss.restored
    slowness = change.slowness(found.instance.gpus)
    measured = measure(found.instance, current, found.placement, found.traffic, found.minimise, slowness)
    assert measured.moves == found.after.moves
    assert measured.busiest_gpu == pytest.approx(found.after.busiest_gpu)
    assert measured.total_z == pytest.approx(found.after.total_z)


EVEN = {"replica_routing": "even"}
PLAIN: dict[str, Any] = {  # one layer of 4 experts on 2 nodes of 2 GPUs
    "model": {"layers": 1, "dense_layers": []},
    "cluster": {"nodes": 2, "gpus_per_node": 2, "fabric": {"nodes_per_leaf": 1}},
    "parallelism": {"dp": 1},
}


def even_load(instance: Instance) -> Traffic:
    return level_traffic(instance, [[4.0, 3.0, 2.0, 1.0]], 5.0)


def by_hand() -> tuple[Instance, Placement]:
    """One layer of 4 experts with 2 redundant replicas on 4 GPUs in 2 nodes, two slots each; GPU 3 has one left."""
    instance = tiny_instance(
        model={"layers": 1, "dense_layers": []},
        cluster={"nodes": 2, "gpus_per_node": 2, "fabric": {"nodes_per_leaf": 1}},
        parallelism={"dp": 1},
        placement={"replica_routing": "even", "replicas": {"redundant_slots": 3}, "slots_per_gpu": 2},
    )
    current = planned(instance)
    return instance, current.model_copy(update={"gpu": (((0, 2), (0, 3), (1,), (1, 2)),)})


def test_by_hand_an_expert_that_is_gone_comes_back_before_all_others() -> None:
    """GPU 1 dies with the only replica of expert 2; 6 slots are left for 7 replicas, so expert 3 keeps one."""
    instance, current = by_hand()
    found = replan(instance, current, even_load(instance), change=Change(failed=(1,)), limits=QUICK)
    assert found.loss is not None
    assert found.loss.gone == ((0, 2),)
    assert (found.loss.replicas, found.loss.restored, found.loss.dropped) == (2, 1, 0)
    assert found.instance.redundant_slots == 2
    assert len(found.placement.gpu[0][2]) == 1
    assert [(one.layer, one.expert) for one in found.transfers.reloads] == [(0, 2)]
    assert found.transfers.lost_gpus == (1,)


def test_by_hand_what_is_drained_sends_before_it_goes() -> None:
    instance, current = by_hand()
    found = replan(instance, current, even_load(instance), change=Change(drained=(1,)), limits=QUICK)
    assert found.loss is not None
    assert found.loss.gone == ()
    assert found.transfers.reloads == ()
    (sent,) = [one for one in found.transfers.transfers if one.expert == 2]
    assert sent.source == 1
    after = found.instance
    assert (after.placement.failed_gpus, after.placement.drained_gpus) == ((1,), (1,))
    assert check_migration(after, current, found.placement, found.transfers) == []
    dead = after.with_hardware(0, (1,))
    wrong = check_migration(dead, current, found.placement, found.transfers)
    assert any("sent from GPU 1, which failed and is not drained" in str(one) for one in wrong)
    again = Change(failed=(1,)).applied_to(after)
    assert again.placement.drained_gpus == ()
    with pytest.raises(InputError, match=r"placement\.failed_gpus lists, too"):
        tiny_instance(placement={"drained_gpus": [0]})


def test_what_came_back_is_filled_again() -> None:
    instance, current = by_hand()
    change = Change(failed=(1,))
    without = replan(instance, current, even_load(instance), change=change, limits=QUICK).placement
    again = replan(instance, without, even_load(instance), limits=QUICK)
    assert again.loss is not None
    assert (again.loss.replicas, again.loss.restored) == (0, 1)
    assert sum(map(len, again.placement.gpu[0])) == 7


def test_more_has_to_come_back_than_the_budget_allows() -> None:
    instance, current = by_hand()
    with pytest.raises(InfeasibleError, match=r"1 replicas have to come back .* only 0 moves"):
        replan(instance, current, even_load(instance), change=Change(failed=(1,)), budget=Budget(moves=0))
    drained, short = Change(drained=(1,)), Budget(seconds=1e-12)
    with pytest.raises(NothingFoundError, match="longer than the budget"):
        replan(instance, current, even_load(instance), change=drained, budget=short, limits=QUICK)
    with pytest.raises(NothingFoundError, match="moves inside nodes cannot do"):
        replan(instance, current, even_load(instance), change=Change(failed=(1,)), inside_nodes=True)


def test_by_hand_what_is_left_is_the_second_replica_of_each_and_no_slot_is_redundant() -> None:
    """GPU 3 and GPU 1 hold the first replicas of all, and fail; 4 slots are left for 4 experts."""
    instance = tiny_instance(**{**PLAIN, "placement": {**EVEN, "replicas": {"redundant_slots": 4}, "slots_per_gpu": 2}})
    current = planned(instance).model_copy(update={"gpu": (((1, 0), (1, 0), (3, 2), (3, 2)),)})
    found = replan(instance, current, even_load(instance), change=Change(failed=(1, 3)), limits=QUICK)
    assert found.loss is not None
    assert (found.loss.replicas, found.loss.restored, found.instance.redundant_slots) == (4, 0, 0)
    assert found.verification is not None
    assert found.verification.ok
    assert found.before.moves == 0


@pytest.mark.parametrize(("moves", "replicas"), [(1, 5), (2, 6), (None, 6)])
def test_by_hand_replicas_that_layers_share_come_back_as_far_as_moves_go(moves: int | None, replicas: int) -> None:
    """GPU 3 held the only replica of expert 3, and a second one of expert 0."""
    shared = {"replicas": {"redundant_slots_in_all": 2}, "slots_per_gpu": 4}
    instance = tiny_instance(**{**PLAIN, "placement": {**EVEN, **shared}})
    current = planned(instance).model_copy(update={"gpu": (((0, 3), (0, 2), (1,), (3,)),)})
    change, budget = Change(failed=(3,)), Budget(moves=moves)
    found = replan(instance, current, even_load(instance), change=change, budget=budget, limits=QUICK)
    assert found.loss is not None
    assert found.loss.restored == replicas - 4
    assert sum(map(len, found.placement.gpu[0])) == replicas
    with pytest.raises(InfeasibleError, match="1 replicas have to come back"):
        replan(instance, current, even_load(instance), change=change, budget=Budget(moves=0), limits=QUICK)


def test_nodes_that_come_are_used_and_a_slow_gpu_gets_less_to_do() -> None:
    instance, current = by_hand()
    change = Change(added_nodes=2, slow={0: 3.0})
    found = replan(instance, current, even_load(change.applied_to(instance)), change=change, limits=QUICK)
    assert found.instance.cluster.nodes == 4
    assert {gpu // 2 for row in found.placement.gpu for expert in row for gpu in expert} & {2, 3}
    load = np.zeros(8)
    for expert in found.placement.gpu[0]:
        load[list(expert)] += 1 / len(expert)
    assert load[0] < load.max()


def test_the_verifier_notices_lies_about_what_is_lost() -> None:
    instance, current = by_hand()
    found = replan(instance, current, even_load(instance), change=Change(failed=(1,)), limits=QUICK)
    file, after = found.transfers, found.instance
    assert check_migration(after, current, found.placement, file) == []
    (reload,) = file.reloads
    lies = {
        "it works, and is said to have lost": {"lost_gpus": (*file.lost_gpus, 0)},
        "at the end it is not as in the plan": {"reloads": ()},
        "although a GPU has it": {"reloads": (reload, ReloadRecord(layer=0, expert=0, gpu=3))},
        "read by GPU 1, which is not there": {"reloads": (ReloadRecord(layer=0, expert=2, gpu=1),)},
    }
    for message, lie in lies.items():
        wrong = check_migration(after, current, found.placement, file.model_copy(update=lie))
        assert any(message.strip() in str(one) for one in wrong), message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Change(failed=(8,)), "there is no GPU 8"),
        (Change(failed_nodes=(4,)), "there is no node 4"),
        (Change(failed=(1,), drained_nodes=(0,)), "to fail and to be drained"),
        (Change(slow={0: 0.5}), "expected 1 or more"),
        (Change(failed=(0,), slow={0: 2.0}), "slow and out of service"),
        (Change(added_nodes=-1), "expected 0 or more"),
        (Change(added_nodes=3000), "expected at most 2,048"),
    ],
)
def test_changes_that_cannot_be_are_refused(change: Change, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        change.applied_to(tiny_instance())


def test_a_mix_of_new_nodes_is_the_mean_of_the_others() -> None:
    mix = [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.5, 0.5]]
    traffic = {"kind": "load", "tokens_per_gpu": 100.0, "files": ["a.npz", "b.npz"], "mix": mix}
    after = Change(added_nodes=2).applied_to(tiny_instance(traffic=traffic))
    assert after.traffic.mix == (*map(tuple, mix), (0.5, 0.5), (0.5, 0.5))  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"divisor of cluster\.nodes"):
        Change(added_nodes=1).applied_to(tiny_instance())


def test_the_command_names_what_is_lost_first_and_writes_the_instance_without_it(tmp_path: Path) -> None:
    instance = by_hand()[0]
    file, plan = tmp_path / "instance.yaml", tmp_path / "plan"
    file.write_text(dump_instance(instance).replace("kind: load", "kind: synthetic"))
    assert run("solve", file, "--solver", "greedy", "--no-dag", "-o", plan).returncode == 0
    options = ("--work", 0.05, "--fresh-time", 0)
    done = run("replan", file, plan / "placement.json", "--failed-nodes", 1, "-o", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Out of service: ")
    assert "2 GPUs failed" in lines[0]
    after = load_instance(tmp_path / "out" / "instance.yaml")
    assert after.placement.failed_gpus == (2, 3)
    current, placement = load_placement(plan / "placement.json"), load_placement(tmp_path / "out" / "placement.json")
    assert verify(after, placement, current=current).ok
    again = run("replan", file, plan / "placement.json", "--drain", 1, "--json", "-o", tmp_path / "out", *options)
    assert json.loads(again.stdout)["loss"]["drained_gpus"] == [2, 3]
    named = ("replan", file, plan / "placement.json", "-o", tmp_path / "none")
    fails(3, *named, "--failed-gpus", "0-2", says="hold")
    fails(2, *named, "--failed-gpus", "0-", says="expected ids and ranges")
    fails(2, *named, "--drain", "1,1", says="names 1 twice")
    assert not (tmp_path / "none").exists()


def test_instances_are_written_as_they_are() -> None:
    for path in sorted(TINY.parent.glob("*.yaml")):
        instance = load_instance(path)
        assert make_instance(**yaml.safe_load(dump_instance(instance))).sha256 == instance.sha256


def test_by_hand_what_makes_room_counts_as_a_move_of_the_budget() -> None:
    """GPU 4 dies with the second replica of expert 3; the only free slot is beside the first: another moves there."""
    instance = tiny_instance(
        model={"layers": 1, "dense_layers": []},
        cluster={"nodes": 5, "gpus_per_node": 1},
        placement={"replica_routing": "even", "slots_per_gpu": 2},
    )
    current = planned(instance).model_copy(update={"gpu": (((0, 1), (0, 2), (1, 2), (3, 4)),)})
    change, traffic = Change(failed=(4,)), even_load(instance)
    with pytest.raises(NothingFoundError, match="takes 2 moves, with those that make room"):
        replan(instance, current, traffic, change=change, budget=Budget(moves=1), limits=QUICK)
    found = replan(instance, current, traffic, change=change, budget=Budget(moves=2), limits=QUICK)
    assert found.loss is not None
    assert (found.loss.restored, found.after.moves) == (1, 2)


def test_an_engine_s_rule_on_slots_holds_for_the_nodes_that_are_left() -> None:
    slots = {"slots_per_gpu": 2, "replica_routing": "even", "replicas": {"redundant_slots": 12}}
    instance = tiny_instance(engine="vllm", placement=slots)
    after = Change(failed_nodes=(1,)).applied_to(instance)
    assert (after.engine, after.placement.failed_gpus) == ("vllm", (2, 3))
    assert after.placement.replicas.redundant_slots == 8  # type: ignore[union-attr]
    with pytest.raises(InputError, match="1 of the 2 GPUs of node 1, expected all GPUs of a node, or none"):
        Change(failed=(2,)).applied_to(instance)
