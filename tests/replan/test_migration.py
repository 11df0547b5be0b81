"""Transfers in time: by hand, at random, and replayed by the verifier, which also notices every lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.errors import InputError, NothingFoundError
from moe_placer.instance import Instance
from moe_placer.instance.sizes import expert_bytes, memory_parts
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.replan.budget import Budget
from moe_placer.replan.edge_colouring import colour_edges, relieve
from moe_placer.replan.migration import Migration, migrate
from moe_placer.replan.migration import _extra as count_extra
from moe_placer.replan.replan import replan
from moe_placer.replan.timetable import Drop, Timed
from moe_placer.replan.transfers import Transfer
from moe_placer.solve.solve import solve
from moe_placer.verifier.migration import check_migration
from moe_placer.verifier.transfer_file import Transfers, load_transfers

Rows = list[list[list[int]]]


def placed(rows: Rows) -> Placement:
    """Build a placement of which only the GPUs count."""
    key = {"name": "tiny", "sha256": "", "traffic_sha256": ""}
    solver = {"name": "none", "version": "0", "seed": 0}
    content = {"schema": "moe-placer/placement/1", "instance": key, "solver": solver, "layers": ()}
    return Placement.model_validate({**content, "gpu": rows})


def with_memory(experts: float, **changes: Any) -> Instance:
    """Build an instance whose GPUs have memory for so many experts beside what is resident."""
    instance = tiny_instance(**changes)
    size = memory_parts(instance).total + experts * expert_bytes(instance)
    cluster = {**changes.pop("cluster", {}), "gpu": {"memory_gb": size / 1e9}}
    return tiny_instance(cluster=cluster, **changes)


def replayed(instance: Instance, before: Rows, after: Rows, by_layer: bool = False) -> tuple[Migration, Transfers]:
    """Plan the transfers, and have the verifier replay them."""
    current, placement = placed(before), placed(after)
    found = migrate(instance, current, placement, by_layer)
    file = found.to_file(instance, current, placement, 2.0)
    assert check_migration(instance, current, placement, file) == []
    return found, file


FOUR = {"model": {"layers": 1, "dense_layers": []}, "parallelism": {"dp": 1}, "cluster": {"gpus_per_node": 1}}


def test_by_hand_two_experts_change_places_at_once() -> None:
    """Nodes 0 and 1 on one leaf: both send at once, each at its NICs' speed, into the memory of one more expert."""
    instance = with_memory(2, **FOUR)
    found, file = replayed(instance, [[[0], [1], [2], [3]]], [[[1], [0], [2], [3]]])
    alone = 1e6 * 2 * 64 * 32 * 2 / (400e9 * 0.8)
    assert found.us == pytest.approx(alone)
    assert found.bound_us == pytest.approx(alone)
    assert found.extra == {0: 1, 1: 1}
    assert {(d.gpu, d.at) for d in found.drops} == {(0, found.us), (1, found.us)}
    assert file.link_bytes == {f"node{a}->leaf0": 8192.0 for a in (0, 1)} | {f"leaf0->node{a}": 8192.0 for a in (0, 1)}
    assert file.break_even_paused_steps == np.ceil(alone / 2.0)


def test_by_hand_the_nearest_replica_sends() -> None:
    instance = with_memory(4, parallelism={"dp": 2}, model={"layers": 1, "dense_layers": []})
    before = [[[0, 4], [1, 5], [2, 6], [3, 7]]]
    # Expert 0 comes to GPU 1, whose node has it on GPU 0, and expert 1 to GPU 2, whose leaf has it on GPU 1.
    after = [[[1, 4], [2, 5], [0, 6], [3, 7]]]
    found, _ = replayed(instance, before, after)
    sources = {(one.transfer.expert, one.transfer.target): one.transfer.source for one in found.timed}
    assert sources == {(0, 1): 0, (1, 2): 1, (2, 0): 2}
    inside = next(one for one in found.timed if one.transfer.expert == 0)
    assert inside.end - inside.start == pytest.approx(1e6 * 8192 / (450e9 * 0.8))


def test_without_memory_a_cycle_goes_through_a_spare_slot() -> None:
    """GPUs take one expert; three are full, and the last one is the only way out."""
    changes = {**FOUR, "model": {**FOUR["model"], "experts": 3}}
    found, _ = replayed(with_memory(1, **changes), [[[0], [1], [2]]], [[[1], [0], [2]]])
    assert len(found.timed) == 3
    assert found.timed[0].transfer.target == 3
    assert found.extra == {3: 1}
    roomy, _ = replayed(with_memory(2, **changes), [[[0], [1], [2]]], [[[1], [0], [2]]])
    assert len(roomy.timed) == 2


def test_without_memory_a_chain_waits_until_there_is_room() -> None:
    changes = {**FOUR, "model": {**FOUR["model"], "experts": 3}}
    found, _ = replayed(with_memory(1, **changes), [[[0], [1], [2]]], [[[1], [2], [3]]])
    assert [one.transfer.target for one in found.timed] == [3, 2, 1]
    assert found.extra == {}
    assert found.us > found.bound_us


def test_where_nobody_has_memory_that_is_said() -> None:
    instance = with_memory(1, **FOUR)
    with pytest.raises(NothingFoundError, match="memory for one more expert"):
        migrate(instance, placed([[[0], [1], [2], [3]]]), placed([[[1], [0], [2], [3]]]))


def random_case(rng: np.random.Generator, largest: int) -> tuple[Instance, Rows, Rows]:
    """Draw a cluster, a placement on it, and another one that differs in some experts of some layers."""
    nodes, per_node = int(rng.integers(2, largest + 1)), int(rng.choice([1, 2, 4, 8]))
    gpus, layers, slots = nodes * per_node, int(rng.integers(1, largest + 1)), int(rng.integers(1, 3))
    experts = max(2, int(gpus * slots * rng.uniform(0.5, 1.0)))
    fabric = {
        "nodes_per_leaf": int(rng.integers(1, nodes + 1)),
        "spines": int(rng.integers(1, 4)),
        "oversubscription": float(rng.choice([1, 2, 4])),
    }
    changes: dict[str, Any] = {
        "model": {"layers": layers, "dense_layers": [], "experts": experts},
        "cluster": {"nodes": nodes, "gpus_per_node": per_node, "fabric": fabric},
        "parallelism": {"dp": 1},
        "placement": {"slots_per_gpu": slots},
    }
    instance = with_memory(layers * slots + int(rng.integers(1, 4)), **changes)
    before, after = [], []
    for _ in range(layers):
        places = rng.permutation(np.repeat(np.arange(gpus), slots))
        moved = np.flatnonzero(rng.uniform(size=len(places)) < rng.uniform(0, 0.6))
        then = places.copy()
        then[moved] = places[rng.permutation(moved)]
        before.append([[int(gpu)] for gpu in places[:experts]])
        after.append([[int(gpu)] for gpu in then[:experts]])
    return instance, before, after


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), by_layer=st.booleans())
def test_random_migrations_can_be_replayed(seed: int, by_layer: bool) -> None:
    instance, before, after = random_case(np.random.default_rng(seed), 4)
    found, _ = replayed(instance, before, after, by_layer)
    assert found.us >= found.bound_us * (1 - 1e-9)


@pytest.mark.slow
def test_99_of_100_random_migrations_take_at_most_5_percent_more_than_their_bound() -> None:
    rng = np.random.default_rng(0)
    close = [found.us <= 1.05 * found.bound_us for found, _ in (replayed(*random_case(rng, 12)) for _ in range(1000))]
    assert np.mean(close) >= 0.99


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30), st.integers(0, 3))
def test_as_many_colours_as_the_largest_degree_suffice(edges: list[tuple[int, int]], more: int) -> None:
    degree = max([sum(e[side] == v for e in edges) for side in (0, 1) for v in range(6)], default=0)
    use = np.array([[0.4 * (a < 3), 0.7 * (b < 2)] for a, b in edges]).reshape(-1, 2)
    colours = max(1, degree + more)
    colour = colour_edges(edges, colours, use)
    relieved = relieve(edges, colour, colours, use)
    for some in (colour, relieved):
        for side in (0, 1):
            ends = {(e[side], c) for e, c in zip(edges, some.tolist(), strict=True)}
            assert len(ends) == len(edges)
        assert ((some >= 0) & (some < colours)).all()

    def length(some: Any) -> float:
        load = np.zeros((colours, 2))
        np.add.at(load, some, use)
        return float(np.maximum(1.0, load.max(axis=1)).sum())

    assert length(relieved) <= length(colour) + 0.05 * colours


def test_every_lie_about_a_migration_is_noticed() -> None:
    instance = with_memory(3, parallelism={"dp": 1}, model={"layers": 2, "dense_layers": []})
    before, after = [[[0], [1], [2], [3]], [[0], [1], [2], [3]]], [[[4], [1], [2], [5]], [[1], [0], [2], [3]]]
    current, placement = placed(before), placed(after)
    file = migrate(instance, current, placement).to_file(instance, current, placement)
    assert check_migration(instance, current, placement, file) == []

    def found(**changes: Any) -> str:
        wrong = check_migration(instance, current, placement, file.model_copy(update=changes))
        assert {violation.rule for violation in wrong} <= {"migration"}
        return "\n".join(map(str, wrong))

    first, *others = file.transfers
    assert "begins at a placement" in found(current_sha256="0")
    assert "ends in a placement" in found(placement_sha256="0")
    assert "which is not there" in found(transfers=(first.model_copy(update={"target": 99}), *others))
    assert "takes no time" in found(transfers=(first.model_copy(update={"end_us": first.start_us}), *others))
    assert "sent in" in found(transfers=(first.model_copy(update={"end_us": first.start_us + 1e-3}), *others))
    assert "which has it not" in found(transfers=(first.model_copy(update={"source": 7}), *others))
    assert "not as in the plan" in found(transfers=tuple(others))
    assert "not as in the plan" in found(drops=file.drops[1:])
    early = tuple(drop.model_copy(update={"at_us": 0.0}) for drop in file.drops)
    assert "the last replica" in found(drops=early)
    assert "two experts at once" in found(
        transfers=tuple(one.model_copy(update={"source": 3, "expert": 3, "layer": 0}) for one in file.transfers)
    )
    assert "us, the last transfer ends" in found(us=2 * file.us)
    assert "states a bound" in found(bound_us=2 * file.bound_us)
    assert "bytes for an expert" in found(expert_bytes=1.0)
    assert "other bytes on links" in found(link_bytes={})
    assert "extra experts" in found(extra_experts={"7": 1})
    assert "longest layer" in found(by_layer=True, longest_layer_us=0.0)
    small = with_memory(2, parallelism={"dp": 1}, model={"layers": 2, "dense_layers": []})
    assert "more than its memory takes" in "\n".join(map(str, check_migration(small, current, placement, file)))


def test_a_link_that_carries_too_much_at_once_is_noticed() -> None:
    """Leaves of two nodes, 4:1 oversubscribed: both nodes' transfers to the other leaf at once are too much."""
    changes = {**FOUR, "cluster": {"gpus_per_node": 1, "fabric": {"oversubscription": 2.0}}}
    instance = with_memory(2, **changes)
    rows: tuple[Rows, Rows] = [[[0], [1], [2], [3]]], [[[2], [3], [0], [1]]]
    found, file = replayed(instance, *rows)
    alone = 1e6 * 8192 / (400e9 * 0.8)
    assert found.us == pytest.approx(2 * alone)  # a leaf sends as much as one node
    together = tuple(one.model_copy(update={"start_us": 0.0, "end_us": alone}) for one in file.transfers)
    wrong = check_migration(instance, placed(rows[0]), placed(rows[1]), file.model_copy(update={"transfers": together}))
    assert any("times its bandwidth" in str(violation) for violation in wrong)


def test_budgets_of_time_are_kept() -> None:
    instance = tiny_instance()
    current = solve(instance, tiny_traffic(instance, 4), solver="greedy", limits=Limits(time_s=5.0)).placement
    traffic, limits = tiny_traffic(instance, 9), Limits(time_s=60.0, work=0.02)
    free = replan(instance, current, traffic, limits=limits)
    assert free.after.moves > 2
    half = replan(instance, current, traffic, limits=limits, budget=Budget(seconds=0.6e-6 * free.transfers.us))
    assert 0 <= half.after.moves < free.after.moves
    assert half.transfers.us <= 0.6 * free.transfers.us
    turns = replan(instance, current, traffic, limits=limits, budget=Budget(stall_ms=1e6))
    assert turns.transfers.by_layer
    longest = turns.migration.longest_layer_us
    assert turns.transfers.us == pytest.approx(sum(turns.migration.layer_us.values()))
    short = replan(instance, current, traffic, limits=limits, budget=Budget(stall_ms=0.9e-3 * longest))
    assert short.migration.longest_layer_us <= 0.9 * longest
    nothing = replan(instance, current, traffic, limits=limits, budget=Budget(seconds=0.0))
    assert nothing.after.moves == 0


def test_a_file_of_transfers_is_read_back(tmp_path: Any) -> None:
    instance = with_memory(2, **FOUR)
    _, file = replayed(instance, [[[0], [1], [2], [3]]], [[[1], [0], [2], [3]]])
    path = tmp_path / "transfers.json"
    path.write_text(file.to_json())
    assert load_transfers(path) == file
    path.write_text(file.to_json().replace('"source": 0', '"source": -1'))
    with pytest.raises(InputError, match=r"transfers\.\d\.source"):
        load_transfers(path)


def test_an_overlap_of_a_ten_millionth_is_noticed_and_rounding_is_not() -> None:
    """GPU 0 sends two experts one after the other; the second is moved forward a little, and takes as long."""
    changes = {**FOUR, "placement": {"slots_per_gpu": 2}}
    before, after = [[[0], [0], [2], [3]]], [[[1], [2], [2], [3]]]
    instance = with_memory(4, **changes)
    _, file = replayed(instance, before, after)
    first, second = file.transfers
    assert second.start_us == pytest.approx(first.end_us)
    for share, noticed in ((1e-7, True), (1e-9, False)):
        moved = second.model_copy(
            update={"start_us": second.start_us - share * file.us, "end_us": second.end_us - share * file.us}
        )
        earlier = file.model_copy(update={"us": file.us * (1 - share), "transfers": (first, moved)})
        found = check_migration(instance, placed(before), placed(after), earlier)
        assert bool(found) is noticed, [str(one) for one in found]


def test_a_duration_that_is_drawn_out_hides_no_overlap() -> None:
    """With one transfer that takes a billion times as long, rounding relative to all is as much as another takes."""
    instance = with_memory(4, **{**FOUR, "placement": {"slots_per_gpu": 2}})
    before, after = [[[0], [0], [2], [3]]], [[[1], [2], [2], [3]]]
    _, file = replayed(instance, before, after)
    first, second = file.transfers
    long = 1e9 * first.end_us
    drawn = (
        first.model_copy(update={"end_us": 1e-3}),
        second.model_copy(update={"start_us": 0.0, "end_us": long}),
    )
    drops = tuple(drop.model_copy(update={"at_us": long}) for drop in file.drops)
    forged = file.model_copy(update={"us": long, "transfers": drawn, "drops": drops})
    found = "\n".join(map(str, check_migration(instance, placed(before), placed(after), forged)))
    assert "sent in" in found
    assert "sends two experts at once" in found


def test_nothing_is_sent_to_a_gpu_out_of_service() -> None:
    """Expert 0 goes from GPU 0 to GPU 1 by way of GPU 3, which failed."""
    instance = with_memory(4, **{**FOUR, "placement": {"slots_per_gpu": 2, "failed_gpus": [3]}})
    before, after = [[[0], [0], [2], [2]]], [[[1], [0], [2], [2]]]
    _, file = replayed(instance, before, after)
    (straight,) = file.transfers
    halfway = straight.model_copy(update={"target": 3})
    onward = straight.model_copy(
        update={"source": 3, "start_us": straight.end_us, "end_us": 2 * straight.end_us, "target": 1}
    )
    drops = (*file.drops, file.drops[0].model_copy(update={"gpu": 3, "at_us": 2 * straight.end_us}))
    forged = file.model_copy(update={"transfers": (halfway, onward), "drops": drops, "us": onward.end_us})
    found = check_migration(instance, placed(before), placed(after), forged)
    assert any("sent to GPU 3, which is out of service" in str(one) for one in found)


def test_what_leaves_when_something_comes_makes_room_for_it_up_to_rounding() -> None:
    """Expert 0 leaves GPU 1 0.1 ps after expert 1 begins to come, of two seconds: at one moment."""
    timed, drops = [Timed(Transfer(0, 1, 0, 1), 1e6, 2e6)], [Drop(0, 0, 1, 1e6 + 1e-7)]
    now, then = {(0, 0, 1), (0, 1, 0)}, {(0, 1, 0), (0, 1, 1)}
    assert count_extra(timed, drops, now, then, (), 2e-3) == {}
    assert count_extra(timed, drops, now, then, (), 0.0) == {1: 1}
