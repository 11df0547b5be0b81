"""Links shared out in coarse spans: by hand, conserving bytes, close to fine ones, and asked for without effect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import tiny_instance
from dag_examples import example
from hypothesis import given, settings
from hypothesis import strategies as st
from network_flows import FABRICS, NODE_SPEED, drawn, ends_of, sent

from moe_placer.cli import log
from moe_placer.cli.step_progress import telling_progress
from moe_placer.schedule.coarse_network import CoarseNetwork
from moe_placer.schedule.network import Network
from moe_placer.schedule.program import compile_program
from moe_placer.schedule.simulate import simulate
from moe_placer.schedule.workload import Workload


def network(fabric: str = "fat tree", **arguments: Any) -> CoarseNetwork:
    return CoarseNetwork(tiny_instance(**FABRICS[fabric]), **arguments)


def test_a_flow_alone_takes_its_bytes_over_the_links_bandwidth() -> None:
    net = network()
    name = net.start(10.0, sent(net, {(0, 1): 10 * NODE_SPEED, (2, 2): 1e12}))
    assert net.next_end() == (pytest.approx(20.0), name)
    assert net.advance(15.0) == []
    assert net.carried.sum() == pytest.approx(2 * 5 * NODE_SPEED)
    assert net.advance(25.0) == [name]
    assert net.next_end() is None


def test_what_starts_together_shares_links_at_once() -> None:
    net = network("one leaf")
    names = [net.start(0.0, sent(net, {(node, 1): 5 * NODE_SPEED})) for node in (0, 2, 3)]
    assert ends_of(net) == {name: pytest.approx(15.0) for name in names}


def test_what_starts_within_a_span_shares_links_soon_after() -> None:
    # The link into node 3 has two flows from 1 µs to 3 µs, when the first transfer's is done: the second has half of it
    # until then, and all of it from then on, to 12 µs. The first transfer leaves node 0 at full speed all the time.
    net = network("one leaf")
    long = net.start(0.0, sent(net, {(0, 1): 100 * NODE_SPEED, (0, 3): 1.5 * NODE_SPEED}))
    net.next_end()
    short = net.start(1.0, sent(net, {(2, 3): 10 * NODE_SPEED}))
    ends = ends_of(net)
    assert ends[short] == pytest.approx(12.0, rel=0.1)
    assert ends[long] == pytest.approx(101.5, rel=0.02)


def test_transfers_without_bytes_end_at_once() -> None:
    net = network()
    first = net.start(0.0, sent(net, {(0, 1): 10 * NODE_SPEED}))
    nothing = net.start(2.0, sent(net, {}))
    assert net.next_end() == (2.0, nothing)
    assert net.advance(2.0) == [nothing]
    assert ends_of(net) == {first: pytest.approx(10.0)}


@pytest.mark.parametrize("grain", [0.0, -0.1, 0.2, float("nan")])
def test_the_grain_has_limits(grain: float) -> None:
    with pytest.raises(ValueError, match="grain"):
        network(grain=grain)


def test_time_runs_forwards() -> None:
    net = network()
    net.advance(5.0)
    for act in (net.advance, lambda now: net.start(now, sent(net, {}))):
        with pytest.raises(ValueError, match="forwards"):
            act(4.0)


@pytest.mark.parametrize("fabric", ["fat tree", "one leaf", "dragonfly"])
@given(seed=st.integers(0, 10**6), gap=st.floats(0, 300), grain=st.sampled_from([0.01, 0.03, 0.1]))
@settings(max_examples=12, deadline=None)
def test_bytes_are_conserved_and_ends_are_within_some_spans_of_fine_ones(
    fabric: str, seed: int, gap: float, grain: float
) -> None:
    coarse, fine = network(fabric, grain=grain), Network(tiny_instance(**FABRICS[fabric]))
    total = np.zeros(coarse.routes.hops.shape)
    for net in (coarse, fine):
        for turn in range(3):
            net.start(turn * gap, drawn(net, seed + turn))
    for turn in range(3):
        total += drawn(coarse, seed + turn)
    total *= 1 - np.eye(len(total))
    begun, ends = {turn: turn * gap for turn in range(3)}, ends_of(fine)
    mean = np.mean([ends[name] - begun[name] for name in ends])
    found = ends_of(coarse)
    assert set(found) == set(ends)
    assert all(abs(found[name] - ends[name]) <= 4 * grain * mean + 0.02 * ends[name] for name in ends)
    assert coarse.carried == pytest.approx(coarse.routes.shares @ total.ravel(), rel=1e-9)


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
        asked.carried  # noqa: B018 - a property that looks on
        now += float(rng.gamma(0.5, 500.0))
        assert asked.advance(now) == silent.advance(now)
    assert ends_of(asked) == ends_of(silent)
    assert asked.carried == pytest.approx(silent.carried, rel=1e-12)


@pytest.mark.parametrize("name", ["small", "redundant", "once-per-node", "one-node"])
def test_a_step_with_coarse_spans_runs_all_of_it_in_about_the_time(name: str) -> None:
    program = compile_program(*example(name))
    workload = Workload(tokens_per_gpu=3e5, context=10.0)
    told: list[float] = []
    fine, coarse = simulate(program, workload), simulate(program, workload, sharing="coarse", tell=told.append)
    assert (fine.sharing, coarse.sharing) == ("fine", "coarse")
    assert np.isfinite(coarse.end).sum() == np.isfinite(fine.end).sum()
    assert coarse.network.carried == pytest.approx(fine.network.carried)
    assert coarse.makespan == pytest.approx(fine.makespan, rel=0.03)
    assert all(0 < share <= 1 for share in told)


def test_exact_sharing_has_an_end_for_every_flow() -> None:
    program = compile_program(*example("small"))
    exact, fine = (simulate(program, Workload(context=10.0), sharing=how).makespan for how in ("exact", "fine"))
    assert exact == pytest.approx(fine, rel=0.01)


def test_progress_is_told_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    log.use_json(False, "schedule")  # whatever tests before have asked for
    times = iter([0.0, 4.0, 5.0, 14.0, 15.5])
    tell = telling_progress(False, lambda: next(times))
    assert tell is not None
    for share in (0.1, 0.2, 0.3, 0.4):
        tell(share)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("%")[0] for line in lines] == ["20", "40"]
    assert telling_progress(True) is None
