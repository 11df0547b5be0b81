"""The fluid network: by hand, within capacities, conserving bytes, and max-min fair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import MESH, tiny_instance
from hypothesis import given, settings
from hypothesis import strategies as st
from network_flows import FABRICS, NODE_SPEED, drawn, ends_of, sent
from scipy import sparse

from moe_placer.errors import InputError
from moe_placer.schedule.network import Network
from moe_placer.schedule.sharing import Crossings, max_min_rates


def network(fabric: str = "fat tree", **arguments: Any) -> Network:
    return Network(tiny_instance(**FABRICS[fabric]), **arguments)


def bottleneck(net: Network, matrix: np.ndarray) -> float:
    """Return the µs that the busiest link needs for these bytes."""
    matrix = matrix * (1 - np.eye(len(matrix)))
    return float((net.routes.shares @ matrix.ravel() / net.capacity).max())


def alone(net: Network, matrix: np.ndarray) -> float:
    name = net.start(0.0, matrix)
    return ends_of(net)[name]


def rates_of(shares: list[list[float]], capacity: list[float], paths: list[int], **more: Any) -> list[float]:
    crossings = Crossings.compile(sparse.csr_array(np.array(shares)), np.array(capacity))
    return max_min_rates(crossings, np.array(paths), **more).tolist()


def test_one_flow_takes_its_bytes_over_the_links_bandwidth() -> None:
    net = network()
    name = net.start(10.0, sent(net, {(0, 1): 3.2e6, (2, 2): 1e12}))
    assert net.next_end() == (pytest.approx(20.0), name)
    assert net.advance(15.0) == []
    assert net.carried.sum() == pytest.approx(2 * 1.6e6)
    assert net.advance(25.0) == [name]
    assert net.next_end() is None


def test_a_slow_link_slows_what_crosses_it() -> None:
    halved = network(link_factor={"node0->leaf0": 0.5})
    assert alone(halved, sent(halved, {(0, 1): 3.2e6})) == pytest.approx(20.0)
    assert alone(network(), sent(halved, {(1, 0): 3.2e6})) == pytest.approx(10.0)


def test_a_spine_link_that_is_slow_holds_its_share_of_a_pair() -> None:
    # Nodes 0 and 2 are linked over two spines of 200 GB/s; a quarter of that on one of them slows the pair:
    # each spine has half of it, so 2 * 50 GB/s instead of min(400, 2 * 200).
    slow = network(link_factor={"leaf0->spine1": 0.25})
    assert alone(slow, sent(slow, {(0, 2): 3.2e6})) == pytest.approx(40.0)


def test_three_flows_on_two_links_share_as_in_the_textbook() -> None:
    # Links of 1 and 2; path 0 crosses both, paths 1 and 2 one each.
    shares, capacity = [[1, 1, 0], [1, 0, 1]], [1, 2]
    assert rates_of(shares, capacity, [0, 1, 2]) == pytest.approx([1 / 2, 1 / 2, 3 / 2])
    assert rates_of(shares, capacity, [0, 0, 1, 2]) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 4 / 3])
    assert rates_of(shares, capacity, [1]) == pytest.approx([1.0])


def test_a_flow_that_wants_less_leaves_the_rest() -> None:
    shares, capacity = [[1, 1, 0], [1, 0, 1]], [1, 2]
    ceilings = np.array([0.2, np.inf, 1.5])
    assert rates_of(shares, capacity, [0, 1, 2], ceilings=ceilings) == pytest.approx([0.2, 0.8, 1.5])


def test_flows_that_end_leave_their_share_to_others() -> None:
    # Three flows into node 1 share 320,000 bytes/µs. After 15 µs the first is done, after 25 µs the second, and the
    # third, which had 1.6e6 left by then, goes on alone.
    net = network("one leaf")
    speed = NODE_SPEED
    third = sent(net, {(0, 1): 5 * speed, (2, 1): 10 * speed, (3, 1): 20 * speed})
    name = net.start(0.0, third)
    assert net.next_end() == (pytest.approx(35.0), name)
    into = net.routes.links.index("leaf0->node1")
    first = net.routes.links.index("node0->leaf0")
    net.advance(15.0)
    assert net.carried[first] == pytest.approx(5 * speed)
    net.advance(20.0)
    assert net.carried[net.routes.links.index("node2->leaf0")] == pytest.approx(7.5 * speed)
    assert net.carried[into] == pytest.approx(20 * speed)


def test_two_transfers_share_until_one_ends() -> None:
    net = network()
    first = net.start(0.0, sent(net, {(0, 1): 3.2e6}))
    second = net.start(5.0, sent(net, {(0, 1): 3.2e6}))
    # 5 µs alone, then half the speed for 10 µs; the second then has half of its bytes left.
    assert net.next_end() == (pytest.approx(15.0), first)
    assert net.advance(15.0 + 1e-9) == [first]
    assert net.next_end() == (pytest.approx(20.0), second)


def test_a_start_loses_no_end() -> None:
    net = network()
    first = net.start(0.0, sent(net, {(0, 1): 3.2e6}))
    nothing = net.start(12.0, sent(net, {}))
    assert net.next_end() == (12.0, first)
    assert net.advance(12.0) == [first, nothing]
    assert net.advance(13.0) == []


def test_one_node_has_nothing_to_send() -> None:
    alone_here = {"nodes": 1, "gpus_per_node": 8, "fabric": MESH}
    net = Network(tiny_instance(cluster=alone_here, parallelism={"dp": 1}))
    name = net.start(3.0, np.ones((1, 1)))
    assert net.next_end() == (3.0, name)
    assert net.advance(3.0) == [name]
    assert net.carried.shape == (0,)


@pytest.mark.parametrize("tolerance", [-0.1, 0.6, float("nan")])
def test_the_tolerance_has_limits(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        network(tolerance=tolerance)


@pytest.mark.parametrize(
    "bytes_sent", [np.full((4, 4), -1.0), np.full((4, 4), np.nan), np.full((4, 4), np.inf), np.zeros((3, 3))]
)
def test_impossible_bytes_are_refused(bytes_sent: np.ndarray) -> None:
    with pytest.raises(ValueError, match="bytes"):
        network().start(0.0, bytes_sent)


def test_time_runs_forwards() -> None:
    net = network()
    net.advance(5.0)
    for act in (net.advance, lambda now: net.start(now, sent(net, {}))):
        for now in (4.0, float("nan")):
            with pytest.raises(ValueError, match="forwards"):
                act(now)


def test_wrong_link_factors_are_all_named() -> None:
    with pytest.raises(InputError) as caught:
        network(link_factor={"node9->leaf0": 1.0, "node0->leaf0": 0.0, "node1->leaf0": float("nan")})
    assert {mistake.found for mistake in caught.value.mistakes} == {"node9->leaf0", "0.0", "nan"}


@pytest.mark.parametrize("fabric", FABRICS)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.floats(0, 1), max_size=4))
@settings(max_examples=15, deadline=None)
def test_capacities_hold_bytes_are_conserved_and_no_end_beats_the_bottleneck(
    fabric: str, seed: int, cuts: list[float]
) -> None:
    net = network(fabric)
    one, other = drawn(net, seed), drawn(net, seed + 1)
    begin = bottleneck(net, one) * 0.3
    starts = {net.start(0.0, one): 0.0}
    starts[net.start(begin, other)] = begin
    before, since, ends = net.carried, begin, {}
    for cut in [*sorted(cuts), None]:
        now = begin * 10 * cut + begin if cut is not None else 1e12
        while (coming := net.next_end()) is not None and coming[0] <= now:
            ends |= dict.fromkeys(net.advance(coming[0]), coming[0])
            assert (net.carried - before <= net.capacity * (coming[0] - since) * (1 + 1e-9) + 1.0).all()
            before, since = net.carried, coming[0]
        net.advance(now)
        before, since = net.carried, now
    total = (one + other) * (1 - np.eye(len(one)))
    assert net.carried == pytest.approx(net.routes.shares @ total.ravel(), rel=1e-9)
    assert ends[0] >= bottleneck(net, one) * (1 - 1e-9)
    assert ends[1] - begin >= bottleneck(net, other) * (1 - 1e-9)
    assert max(ends.values()) >= bottleneck(net, one + other) * (1 - 1e-9)


@pytest.mark.parametrize("fabric", FABRICS)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.01, 100))
@settings(max_examples=10, deadline=None)
def test_times_scale_with_bytes(fabric: str, seed: int, factor: float) -> None:
    matrix = drawn(network(fabric), seed)
    assert alone(network(fabric), factor * matrix) == pytest.approx(factor * alone(network(fabric), matrix), rel=1e-6)


@pytest.mark.parametrize("fabric", FABRICS)
@given(seed=st.integers(0, 10**6), many=st.integers(1, 60), limited=st.booleans())
@settings(max_examples=15, deadline=None)
def test_rates_are_max_min_fair(fabric: str, seed: int, many: int, limited: bool) -> None:
    # The definition: every flow has all that it wants, or crosses a full link on which no flow is faster.
    net, rng = network(fabric), np.random.default_rng(seed)
    shares = net.routes.shares.toarray()
    paths = rng.choice(np.flatnonzero(shares.any(axis=0)), many)
    ceilings = rng.gamma(1.0, NODE_SPEED / 4, many) if limited else np.full(many, np.inf)
    rates = max_min_rates(Crossings.compile(net.routes.shares, net.capacity), paths, ceilings)
    use = shares[:, paths] / net.capacity[:, None]
    load = use @ rates
    assert (load <= 1 + 1e-9).all()
    assert (rates <= ceilings).all()
    fastest = np.where(use > 0, rates, 0.0).max(axis=1)
    for flow in np.flatnonzero(rates < ceilings):
        full = (use[:, flow] > 0) & (load >= 1 - 1e-9)
        assert (rates[flow] >= fastest[full] * (1 - 1e-9)).any()


@pytest.mark.parametrize("fabric", ["fat tree", "dragonfly"])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_spans_change_little(fabric: str, seed: int) -> None:
    nodes = {"nodes": 12, "fabric": FABRICS[fabric].get("cluster", {}).get("fabric", {})}
    instance = tiny_instance(cluster=nodes)
    exact, default = Network(instance, tolerance=0.0), Network(instance)
    for net in (exact, default):
        net.start(0.0, drawn(net, seed))
        net.start(300.0, drawn(net, seed + 1))
    assert ends_of(default) == pytest.approx(ends_of(exact), rel=0.01)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_asking_for_the_next_end_changes_nothing(seed: int) -> None:
    asked, silent = network(), network()
    rng = np.random.default_rng(seed)
    now = 0.0
    for step in range(4):
        for net in (asked, silent):
            net.start(now, drawn(net, seed + step))
        asked.next_end()
        now += float(rng.gamma(0.5, 500.0))
        assert asked.advance(now) == silent.advance(now)
    assert ends_of(asked) == pytest.approx(ends_of(silent), rel=1e-9)
    assert asked.carried == pytest.approx(silent.carried, rel=1e-9)
