"""First descents where GPUs count: towards an even load of them, in all layers at once, as far as the budget may go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from moe_placer.limits import Deadline
from moe_placer.replan.curve import TARGETS, Curve, Point
from moe_placer.replan.gpu_descents import GpuDescents
from moe_placer.replan.slot_tables import SlotTable, Snapshot

__all__ = ["can_even_gpus", "even_gpus"]

Ints = npt.NDArray[np.int64]

Wanting = Callable[[Sequence[Curve], Ints], Ints]


def can_even_gpus(curves: Sequence[Curve]) -> bool:
    """Whether GPUs count, and replicas need not be in different failure domains, which these descents do not see to."""
    return curves[0].goal.gpus > 0 and all(curve.start.layer.domain is None for curve in curves)


def even_gpus(curves: Sequence[Curve], reach: Ints, further: Wanting, deadline: Deadline) -> None:
    """Descend towards each target of the load of GPUs, and offer what is met on the way to the curves.

    Parameters
    ----------
    curves : sequence of Curve
        One per MoE layer.
    reach : int array [layers]
        Moves up to which each layer is searched at first.
    further : callable
        Returns how far each layer is worth searching, from the curves and how far they were searched.
    deadline : Deadline
    """
    starts, goal, inside = [curve.start for curve in curves], curves[0].goal, curves[0].inside
    lowest = np.array([start.lowest_gpu for start in starts])
    for share in TARGETS if goal.links == 0 else TARGETS[:1]:  # links ask for other trades, which come later
        if deadline.over:
            return
        table = SlotTable(starts, goal.slowness)
        descents, searched = GpuDescents(table, lowest, share, inside), reach
        while not deadline.over:
            descents.run(searched, deadline)
            _offer(curves, table, descents.snapshots)
            descents.snapshots.clear()
            wanted = np.where(descents.ended, searched, further(curves, searched))
            if (wanted <= searched).all():
                break
            searched = wanted
        for curve, evaluated in zip(curves, descents.evaluated.tolist(), strict=True):
            curve.evaluated += evaluated


def _offer(curves: Sequence[Curve], table: SlotTable, snapshots: Sequence[Snapshot]) -> None:
    """Offer snapshots to the curves; where links do not count, those that no other is better than."""
    goal = curves[0].goal
    kept = snapshots if goal.links else _undominated(snapshots)
    for one, z in zip(kept, table.z(kept).tolist(), strict=True):
        value = goal.links * z + goal.gpus * one.busiest_gpu
        curves[one.row].offer(Point(one.moves, value, z, one.busiest_gpu, partial(table.build, one)))


def _undominated(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Return, of each layer, snapshots whose busiest GPU is below that of all with fewer moves."""
    kept: list[Snapshot] = []
    for one in sorted(snapshots, key=lambda one: (one.row, one.moves, one.busiest_gpu)):
        if not kept or kept[-1].row != one.row or one.busiest_gpu < kept[-1].busiest_gpu:
            kept.append(one)
    return kept
