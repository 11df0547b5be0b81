"""Where a mean over recordings counts, no proof may rest on the dearest recording alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from builders import MESH, honest, tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.instance import Instance
from moe_placer.placement import MemoryRecord, Placement, ReplanRecord
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.verifier import verify
from moe_placer.verifier.scenarios import most_over_busiest


def two_recordings(**objective: Any) -> tuple[Instance, Traffic]:
    """In the first every expert is chosen by all tokens, in the second by a 40th of them: 4 experts on 2 nodes.

    Each node sends half of its choices to the other: 200 tokens x 4 / 2 = 400 in the first recording, 10 in the second.
    """
    instance = tiny_instance(
        cluster={"nodes": 2, "fabric": MESH},
        parallelism={"dp": 1},
        objective={"scenarios": "recordings", "take": "mean", **objective},
    )
    loads = (np.full((2, 4), 4.0), np.full((2, 4), 0.1))
    recordings = tuple(Recording(f"recording-{i}", load, np.full(2, 4.0)) for i, load in enumerate(loads))
    return instance, Traffic(recordings, np.full((2, 2), 0.5))


def test_by_hand_memory_and_budgets_weigh_recordings_as_the_mean_does() -> None:
    """A layer has (400 + 10) / 2; both links of the first recording prove 400 of that recording, and 205 of both."""
    instance, traffic = two_recordings()
    placement = Placement.model_validate(honest(instance, traffic))
    weights = ({"node0->node1@0": 0.5, "node1->node0@0": 0.5},) * 2
    forged = placement.model_copy(
        update={
            "memory": MemoryRecord(bound=0.0, room_prices=(0.0, 0.0), weights=weights),
            "replan": ReplanRecord(
                current_sha256=placement.gpu_sha256, moves=0, max_moves=9, bound=0.0, price=0.0, weights=weights
            ),
        }
    )
    found = verify(instance, forged, traffic, placement)
    assert found.ok
    assert found.total_z == pytest.approx(410)
    assert found.memory_bound == found.budget_bound <= 410
    assert found.memory_bound >= 400  # of the second recording only the first link has a weight


@pytest.mark.parametrize("sigmas", [0.0, 1.0, 3.0])
def test_by_hand_times_of_layers_are_bounded_without_deviations(sigmas: float) -> None:
    """With costs of 400 and 10 the mean is 205 and the deviation 195; 3 of these more are above 400."""
    instance, traffic = two_recordings(sigmas=sigmas)
    found = verify(instance, Placement.model_validate(honest(instance, traffic)), traffic)
    assert found.total_z == pytest.approx(2 * (205 + sigmas * 195))
    assert 0 < found.layer_us_bound <= found.total_layer_us
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 6)] * 3), axis=-1).reshape(-1, 3)
    most = (grid.mean(axis=1) + sigmas * grid.std(axis=1)).max()
    assert most_over_busiest(instance, 3) == pytest.approx(most)


def least_of_all(instance: Instance, traffic: Traffic) -> list[float]:
    """Return the least z of each layer on a full mesh, where what a node gets from every other is what it holds."""
    nodes, found = instance.cluster.nodes, []
    sent = instance.traffic.tokens_per_gpu * instance.cluster.gpus_per_node
    for row in range(len(instance.moe_layers)):
        chosen = np.array([one.load[row] / one.tokens[row] for one in traffic.recordings])
        best = np.inf
        for at in product(range(nodes), repeat=instance.model.experts):
            if np.bincount(at).max() > instance.cluster.gpus_per_node:
                continue
            z = sent * np.array([[of[np.array(at) == n].sum() for n in range(nodes)] for of in chosen]).max(axis=1)
            worst = instance.objective.take == "worst"
            best = min(best, float(z.max() if worst else z.mean() + instance.objective.sigmas * z.std()))
        found.append(best)
    return found


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), take=st.sampled_from([("worst", 0.0), ("mean", 0.0), ("mean", 0.6), ("mean", 4.0)]))
def test_whatever_weights_links_have_nothing_false_is_derived(seed: int, take: tuple[str, float]) -> None:
    rng = np.random.default_rng(seed)
    instance = tiny_instance(
        cluster={"nodes": int(rng.integers(2, 4)), "fabric": MESH},
        parallelism={"dp": 1},
        objective={"scenarios": "recordings", "take": take[0], "sigmas": take[1]},
    )
    drawn = tiny_traffic(instance, seed, recordings=int(rng.integers(1, 5)))
    factor = 10.0 ** rng.uniform(-1, 1, len(drawn.recordings))
    busy = tuple(replace(one, load=one.load * by) for one, by in zip(drawn.recordings, factor, strict=True))
    traffic = Traffic(busy, drawn.mix)
    placement = Placement.model_validate(honest(instance, traffic))
    links = verify(instance, placement, traffic).links
    of = int(factor.argmax()) if rng.random() < 0.7 else -1  # all weights on links of the dearest recording, or of all
    able = np.array([of < 0 or link.endswith(f"@{of}") for link in links])
    weights = []
    for _ in instance.moe_layers:
        w = (rng.dirichlet(np.full(len(links), 10.0 ** rng.uniform(-1, 3))) + 1e-9) * able
        weights.append(dict(zip(links, (w / w.sum()).tolist(), strict=True)))
    least = least_of_all(instance, traffic)
    pairs = zip(placement.layers, weights, strict=True)
    forged = placement.model_copy(
        update={
            "layers": tuple(record.model_copy(update={"weights": own, "bound": 0.0}) for record, own in pairs),
            "memory": MemoryRecord(bound=0.0, room_prices=(0.0,) * instance.cluster.nodes, weights=tuple(weights)),
            "replan": ReplanRecord(
                current_sha256=placement.gpu_sha256, moves=0, max_moves=99, bound=0.0, price=0.0, weights=tuple(weights)
            ),
        }
    )
    found = verify(instance, forged, traffic, placement)
    assert found.ok
    assert all(check.bound <= one * (1 + 1e-9) for check, one in zip(found.layers, least, strict=True))
    assert max(found.memory_bound, found.budget_bound) <= sum(least) * (1 + 1e-9)
