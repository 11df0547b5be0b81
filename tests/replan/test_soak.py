"""Replan after replan on drifting traffic, with GPUs that fail and come back: nothing invalid, no budget broken."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic

from moe_placer.errors import InfeasibleError, NothingFoundError
from moe_placer.limits import Limits
from moe_placer.replan.budget import Budget
from moe_placer.replan.change import Change
from moe_placer.replan.replan import replan
from moe_placer.solve.solve import solve
from moe_placer.traffic import make_traffic

PLACEMENT = {"slots_per_gpu": 3, "replica_routing": "even", "replicas": {"redundant_slots": 8}}
SOAKED: dict[str, Any] = {"model": {"experts": 12, "top_k": 2}, "placement": PLACEMENT}
EFFORT = Limits(time_s=60.0, work=0.002)
WARM = 50  # replans after which memory is no longer expected to grow
FLAT = 1.05


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def soak(replans: int, seed: int) -> tuple[int, int, list[int]]:
    """Return how often GPUs failed, how often a budget was too small for what had to come back, and memory on the way.

    The verifier checks every placement, its moves against the budget, and the transfers: a violation raises.
    """
    rng = np.random.default_rng(seed)
    instance = tiny_instance(**SOAKED)
    load = rng.dirichlet(np.full(12, 0.5), size=2) * 1e5 + 1
    first = tiny_traffic(instance, seed)
    current = solve(instance, first, solver="greedy", limits=Limits(time_s=5.0)).placement
    failed: set[int] = set()
    failures, refused, memory = 0, 0, []
    for step in range(replans):
        load = np.clip(load * np.exp(0.3 * rng.standard_normal(load.shape)), 1, 1e9)
        if failed and rng.random() < 0.4:
            failed.discard(min(failed))
        elif len(failed) < 3 and rng.random() < 0.4:  # 5 GPUs of 3 slots hold 12 experts
            failed.add(int(rng.integers(instance.gpus)))
            failures += 1
        change, traffic = Change(failed=tuple(sorted(failed))), make_traffic(instance, load=[load])
        most = int(rng.integers(0, 12))
        with suppress(InfeasibleError, NothingFoundError):  # more has to come back than the budget has moves
            found = replan(
                instance, current, traffic, change=change, budget=Budget(moves=most), limits=EFFORT, seed=step
            )
            assert found.after.moves <= most
            most = -1
        if most >= 0:
            refused += 1
            found = replan(instance, current, traffic, change=change, limits=EFFORT, seed=step)
            assert found.loss is not None
            assert found.before.moves > most
        assert found.verification is not None
        assert found.verification.ok
        assert failed.isdisjoint(gpu for row in found.placement.gpu for own in row for gpu in own)
        assert found.after.value <= found.before.value
        current = found.placement
        memory.append(resident())
    return failures, refused, memory


def test_replans_in_a_row_stay_valid() -> None:
    failures, _, _ = soak(8, seed=3)
    assert failures > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_replans_stay_valid_and_memory_stays_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    failures, refused, memory = soak(1000, seed=1)
    assert failures > 100
    assert refused > 10
    assert max(memory[-WARM:]) <= FLAT * max(memory[WARM : 2 * WARM])
    assert list(tmp_path.iterdir()) == []
