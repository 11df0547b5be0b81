"""How many replicas fit the GPUs of a node: against every way to put them there, and against the verifier."""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

import numpy as np
import pytest
from builders import tiny_instance
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.instance.sizes import GB, expert_bytes, memory_parts
from moe_placer.problem.capacity import find_capacity, why_infeasible
from moe_placer.problem.node_limits import most_of_experts, most_replicas, most_together
from moe_placer.problem.openings import Asked, open_gpus
from moe_placer.problem.pins import fits_pins
from moe_placer.verifier import capacity as verifier

Slots = tuple[int, ...]


@cache
def fits(slots: Slots, shards: int, replicas: tuple[int, ...]) -> bool:
    """Whether so many replicas of each expert fit: no GPU has two shards of one expert, nor more than its slots."""
    if not replicas:
        return True
    every = combinations([gpu for gpu, left in enumerate(slots) if left], shards * replicas[0])
    return any(
        fits(tuple(left - (gpu in own) for gpu, left in enumerate(slots)), shards, replicas[1:]) for own in every
    )


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_most_replicas_and_how_many_of_one_expert(slots: list[int], shards: int) -> None:
    own, table = tuple(sorted(slots, reverse=True)), np.array([slots])
    most = int(most_replicas(table, shards)[0])
    assert fits(own, shards, (1,) * most)
    assert not fits(own, shards, (1,) * (most + 1))
    together = int(most_together(table, shards)[0])

    def safe(limit: int) -> bool:
        """Whether whatever has at most so many of each expert, and ``most`` in all, fits."""
        every = product(range(limit, -1, -1), repeat=min(4, most))
        return all(fits(own, shards, replicas) for replicas in every if sum(replicas) <= most)

    if most <= 4:  # as many experts as there can be replicas
        assert safe(together)
        assert not safe(together + 1) or together + 1 > most
    assert most_replicas(table, 1)[0] == sum(slots)


@pytest.mark.parametrize("working", range(5))
@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_with_equal_gpus_it_is_a_quotient(working: int, slots: int, shards: int) -> None:
    table = np.array([[slots] * working + [0] * (4 - working)])
    assert most_replicas(table, shards)[0] == (working * slots // shards if working >= shards else 0)
    assert most_together(table, shards)[0] == working // shards


def test_most_of_experts_by_hand() -> None:
    # Nodes of 4, 1 and 0 slots; at most 2, 1 and 0 replicas of one expert there.
    assert most_of_experts(np.array([4, 1, 0]), np.array([2, 1, 0]), 3).tolist() == [3, 5, 5]


@given(
    st.lists(st.integers(0, 2), min_size=2, max_size=4),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.data(),
)
@settings(max_examples=80, deadline=None)
def test_pins_fit_or_do_not(slots: list[int], replicas: list[int], data: st.DataObject) -> None:
    gpus = len(slots)
    per_node = data.draw(st.sampled_from([1, 2])) if gpus % 2 == 0 else 1
    apart = data.draw(st.booleans())
    pair = st.tuples(st.integers(0, len(replicas) - 1), st.integers(0, gpus - 1))
    pins = data.draw(st.lists(pair, max_size=2, unique=True))

    def placed(left: tuple[int, ...], expert: int) -> bool:
        """Whether experts from this one on find GPUs."""
        if expert == len(replicas):
            return True
        own = {gpu for e, gpu in pins if e == expert}
        for chosen in combinations(range(gpus), replicas[expert]):
            nodes = {gpu // per_node for gpu in chosen}
            if own <= set(chosen) and (not apart or len(nodes) == len(chosen)) and all(left[gpu] for gpu in chosen):
                after = tuple(held - (gpu in chosen) for gpu, held in enumerate(left))
                if placed(after, expert + 1):
                    return True
        return False

    found = fits_pins(pins, np.array(replicas), np.array(slots), per_node, apart)
    assert found == placed(tuple(slots), 0)


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_gpus_are_opened_exactly_where_there_is_a_way(seed: int) -> None:
    """Two layers that share the memory of GPUs, against every choice of GPUs for every expert."""
    rng = np.random.default_rng(seed)
    nodes, per_node, experts = 2, int(rng.integers(1, 3)), int(rng.integers(1, 3))
    gpus, shards = nodes * per_node, int(rng.integers(1, per_node + 1))
    dp, apart = int(rng.integers(1, 3)), bool(rng.random() < 0.5)
    slots, held = rng.integers(0, 3, (2, gpus)), rng.integers(0, 4, gpus)
    pins = [[(int(rng.integers(experts)), int(rng.integers(gpus)))] if rng.random() < 0.4 else [] for _ in (0, 1)]
    replicas = np.full(2, experts * dp)
    asked = Asked(experts, shards, per_node, replicas, replicas, 2 * experts * dp, 1, dp, pins, apart, slots, held)

    @cache
    def used(layer: int) -> set[tuple[int, ...]]:
        """What each GPU holds in every way to place a layer."""
        places = [
            tuple(gpu + node * per_node for gpu in own)
            for node in range(nodes)
            for own in combinations(range(per_node), shards)
        ]
        of_expert = []
        for chosen in combinations(places, dp):
            apart_enough = len({place[0] // per_node for place in chosen}) == dp or not apart
            held = [gpu for place in chosen for gpu in place]
            if apart_enough and len(set(held)) == len(held):
                of_expert.append(np.bincount(held, minlength=gpus))
        ways = set()
        for row in product(of_expert, repeat=experts):
            total = np.sum(row, axis=0)
            if (total <= slots[layer]).all() and all(row[e][gpu] for e, gpu in pins[layer]):
                ways.add(tuple(total.tolist()))
        return ways

    feasible = any((np.add(one, other) <= held).all() for one in used(0) for other in used(1))
    opened = open_gpus(asked)
    assert (opened is not None) == feasible
    if opened is not None:
        assert (opened <= slots).all()
        assert (opened.sum(axis=0) <= held).all()


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sets(st.integers(0, 7), max_size=5),
    st.lists(st.integers(0, 7), min_size=8, max_size=8),
)
@settings(max_examples=80, deadline=None)
def test_the_verifier_counts_the_same(
    per_node: int, slots: int, shards: int, failed: set[int], rooms: list[int]
) -> None:
    if shards > per_node:
        return
    changes = {"model": {"experts": 1, "top_k": 1}, "parallelism": {"dp": 1, "expert_tp": shards}}
    size = tiny_instance(**changes, cluster={"nodes": 2, "gpus_per_node": per_node})
    gigabytes = [(memory_parts(size).total + held * expert_bytes(size)) / GB for held in rooms[: size.gpus]]
    instance = tiny_instance(
        **changes,
        cluster={"nodes": 2, "gpus_per_node": per_node, "gpu_memory_gb": dict(enumerate(gigabytes))},
        placement={"slots_per_gpu": slots, "failed_gpus": sorted(gpu for gpu in failed if gpu < size.gpus)},
    )
    if why_infeasible(instance) is None:
        capacity = find_capacity(instance)
        assert capacity.widest.tolist() == verifier.node_slots(instance).tolist()
        assert capacity.node_memory_slots.tolist() == verifier.node_memory_slots(instance).tolist()
        by_gpu = [min(held, slots) * (gpu not in failed) for gpu, held in enumerate(rooms[: size.gpus])]
        assert verifier.gpu_slots(instance).tolist() == by_gpu
