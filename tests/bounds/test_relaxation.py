"""The linear relaxation: what sifting leaves out changes nothing that matters."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.bounds import relaxation
from moe_placer.bounds.bounds import dual_bound
from moe_placer.bounds.relaxation import relax
from moe_placer.problem.compile import compile_problem
from moe_placer.problem.layer import LayerProblem

SHAPES = {
    "single replicas": {
        "model": {"experts": 24},
        "cluster": {"nodes": 12, "gpus_per_node": 2},
        "parallelism": {"dp": 1},
    },
    "spare slots": {"model": {"experts": 14}, "cluster": {"nodes": 12, "gpus_per_node": 2}, "parallelism": {"dp": 1}},
    "groups": {"model": {"experts": 12}, "cluster": {"nodes": 12, "gpus_per_node": 2}, "parallelism": {"dp": 2}},
    "equal replicas": {
        "model": {"experts": 12},
        "cluster": {"nodes": 12, "gpus_per_node": 2},
        "placement": {"replica_routing": "even"},
    },
}


def case(name: str, seed: int) -> LayerProblem:
    instance = tiny_instance(**SHAPES[name])
    return compile_problem(instance, tiny_traffic(instance, seed)).layer(0)


@pytest.mark.parametrize("without_slots", [False, True])
@pytest.mark.parametrize("name", SHAPES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_sifting_finds_the_optimum_of_all_variables(name: str, without_slots: bool, seed: int) -> None:
    layer = case(name, seed)
    whole = relax(layer, any_replicas=without_slots)
    with patch.multiple(relaxation, _AT_ONCE=0, _ADDED=1):
        sifted = relax(layer, any_replicas=without_slots)
    assert whole is not None
    assert sifted is not None
    assert fractional_z(layer, sifted.share) == pytest.approx(fractional_z(layer, whole.share), rel=1e-4)
    assert sifted.share.sum(axis=1) == pytest.approx(np.ones(layer.items))
    if not without_slots:
        assert (sifted.share.sum(axis=0) <= layer.widest + 1e-6).all()
        assert dual_bound(layer, sifted.weights).value == pytest.approx(
            dual_bound(layer, whole.weights).value, rel=1e-4
        )


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_forbidden_gets_no_share(name: str) -> None:
    layer, rng = case(name, 3), np.random.default_rng(3)
    forbidden = rng.random((layer.items, layer.nodes)) < 0.3
    if name == "equal replicas":  # items of one kind are told apart by nothing
        forbidden = forbidden[layer.expert]
    with patch.multiple(relaxation, _AT_ONCE=0, _ADDED=1):
        sifted = relax(layer, forbidden=forbidden)
    assert sifted is not None
    assert (sifted.share[forbidden] == 0).all()


def test_nothing_is_returned_where_everything_is_forbidden() -> None:
    layer = case("groups", 1)
    with patch.multiple(relaxation, _AT_ONCE=0):
        assert relax(layer, forbidden=np.ones((layer.items, layer.nodes), dtype=bool)) is None


def test_nothing_is_returned_when_time_is_up() -> None:
    layer = case("groups", 1)
    with patch.object(relaxation, "minimise") as solve:
        solve.return_value.status = "unknown"  # a limit was reached
        assert relax(layer, 0.001) is None


def fractional_z(layer: LayerProblem, share: np.ndarray) -> float:
    added = np.zeros(layer.links + 1)
    np.add.at(added, layer.affected, np.einsum("in,inm->nm", share, layer.delta))
    return float((layer.base + added[:-1]).max())


@pytest.mark.parametrize("name", ["spare slots", "groups", "equal replicas"])
def test_no_slot_is_worth_more_than_its_price(name: str) -> None:
    layer = case(name, 0)
    slots = np.full(layer.nodes, layer.items / layer.nodes)  # none to spare
    found = relax(layer, slots=slots)
    assert found is not None
    before, gained = fractional_z(layer, found.share), 0.0
    for node in range(layer.nodes):
        more = slots.copy()
        more[node] += 0.25
        better = relax(layer, slots=more)
        assert better is not None
        gain = before - fractional_z(layer, better.share)
        assert gain <= 0.25 * found.slot_prices[node] + 1e-6 * before
        gained = max(gained, gain)
    assert gained > 1e-5 * before
