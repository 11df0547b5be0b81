"""No placement makes the verifier raise."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
from builders import (
    VARIANTS,
    honest,
    placement_data,
    tiny_instance,
    tiny_traffic,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier import RULES, Verification, verify

ids = st.one_of(st.integers(0, 12), st.sampled_from([10**9, 2**63, 10**30, 10**4400]))
replicas_of = st.one_of(st.lists(ids, max_size=4), st.lists(st.lists(ids, max_size=3), max_size=3))
figures = st.one_of(st.floats(0, 1e6), st.sampled_from([0.0, 1e-320, 1e308]))
names = st.one_of(st.sampled_from(["node0->leaf0", "leaf0->spine1", "", "?" * 300]), st.text(max_size=5))
garbage_records = st.fixed_dictionaries(
    {
        "layer": ids,
        "z": figures,
        "bound": figures,
        "proof": st.sampled_from(["dual", "hot-experts", "threshold", "solver"]),
        "weights": st.none() | st.dictionaries(names, figures, max_size=4) | st.just({"node0->leaf0": 1.0}),
        "threshold": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "hot": st.none() | st.tuples(st.integers(-2, 5), st.integers(-2, 3)),
        "worst_link": names,
        "solver_bound": st.none() | figures,
    }
)
one_row = st.lists(replicas_of, max_size=6) | st.lists(st.lists(ids, min_size=2, max_size=2), min_size=4, max_size=4)


@cache
def variant_of(name: str) -> tuple[Instance, Traffic]:
    instance = tiny_instance(**VARIANTS[name])
    return instance, tiny_traffic(instance)


@cache
def good_placement(proof: str) -> tuple[Instance, Traffic, dict[str, Any]]:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    return instance, traffic, honest(instance, traffic, proof=proof)


@settings(max_examples=300, deadline=None)
@given(
    gpu=st.lists(one_row, max_size=4),
    records=st.lists(garbage_records, max_size=4),
    name=st.text(max_size=5),
    variant=st.sampled_from(sorted(VARIANTS)),
)
def test_garbage_never_raises(gpu: Any, records: list[dict[str, Any]], name: str, variant: str) -> None:
    instance, traffic = variant_of(variant)
    data = placement_data(instance, gpu, traffic, records)
    data["instance"]["name"] = name
    check_survives(instance, data, traffic)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), proof=st.sampled_from(["dual", "threshold", "hot-experts"]))
def test_garbage_in_a_good_placement_never_raises(data: Any, proof: str) -> None:
    instance, traffic, good = good_placement(proof)
    content = deepcopy(good)
    for _ in range(data.draw(st.integers(1, 3))):
        row = data.draw(st.integers(0, 1))
        if data.draw(st.booleans()):
            record = data.draw(garbage_records)
            key = data.draw(st.sampled_from(sorted(record)))
            content["layers"][row][key] = record[key]
        else:
            content["gpu"][row][data.draw(st.integers(0, 3))] = data.draw(replicas_of)
    check_survives(instance, content, traffic)


def check_survives(instance: Instance, data: dict[str, Any], traffic: Traffic) -> Verification:
    """Verify, print every violation, and find shapes and numbers in order."""
    found = verify(instance, Placement.model_validate(data), traffic)
    assert all(violation.rule in RULES and str(violation) for violation in found.violations)
    assert found.cost.shape == found.load.shape == (2, len(found.links))
    assert len(found.layers) == len(found.worst_pair) == 2
    assert len(found.memory) == instance.gpus
    assert np.isfinite([found.total_z, found.max_z, found.total_bound, found.aggregate]).all()
    return found
