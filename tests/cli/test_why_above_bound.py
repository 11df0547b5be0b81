"""Why a layer stays above its bound is said with figures that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from builders import tiny_instance, tiny_tokens, tiny_traffic

from moe_placer.cli.why_above_bound import shares_of_worst_link, why_above_bound
from moe_placer.limits import Limits
from moe_placer.solve.solve import solve


def test_a_link_of_a_full_mesh_carries_what_its_source_sends_to_the_replicas_at_its_end() -> None:
    instance = tiny_instance(cluster={"fabric": {"kind": "full-mesh"}}, parallelism={"dp": 1})
    solution = solve(instance, tiny_traffic(instance), solver="contiguous")
    check = solution.verification.layers[0]
    source, target = (int(name.removeprefix("node")) for name in check.worst_link.split("->"))
    per_node = instance.cluster.gpus_per_node
    there = [e for e, row in enumerate(solution.placement.gpu[0]) if row[0] // per_node == target]
    traffic = solution.traffic
    load = sum(
        traffic.mix[source, f] * recording.load[0] / recording.tokens[0]
        for f, recording in enumerate(traffic.recordings)
    )
    expected = np.asarray(load)[there]
    shares = shares_of_worst_link(instance, solution, 0)
    assert sorted(shares) == pytest.approx(sorted(expected[expected > 0] / expected.sum()))


def test_the_furthest_layer_is_explained() -> None:
    instance = tiny_instance()
    solution = solve(instance, tiny_traffic(instance), solver="contiguous")
    text = why_above_bound(instance, solution)
    assert text is not None
    worst = solution.verification.layers[int(solution.gaps.argmax())]
    assert f"furthest is layer {worst.layer}, {solution.gaps.max():.2%} above its bound" in text
    assert worst.worst_link in text


def test_where_tokens_go_once_to_a_node_companions_are_what_the_bound_foresees() -> None:
    instance = tiny_instance(placement={"dispatch": "per-node"})
    text = why_above_bound(instance, solve(instance, tiny_tokens(instance, 1), solver="contiguous"))
    assert text is not None
    assert "; the bound may give every expert its best companions, a placement cannot." in text
    assert "divide" not in text


def test_nothing_is_explained_where_every_layer_is_within_the_gap() -> None:
    instance = tiny_instance()
    solution = solve(instance, tiny_traffic(instance), limits=Limits(gap=1e6))
    assert why_above_bound(instance, solution) is None
