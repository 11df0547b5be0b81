"""Where a mean over recordings counts, no proof may rest on the dearest recording alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import MESH, honest, tiny_instance

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
