"""A plan in the slots that ranks have now: what stays on a rank keeps its slot, and nothing is written there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["in_old_slots", "rows_in_old_slots"]

Ints = npt.NDArray[np.int64]


def rows_in_old_slots(rows: Sequence[Sequence[int]], layers: int, ranks: int, old: Ints | None) -> Ints:
    """Return rows of a file as a plan for all layers [layers, slots], in old slots where these are of that many.

    Parameters
    ----------
    rows : sequence of sequences
        One for all MoE layers, or one for each.
    layers, ranks : int
    old : int array [layers, slots] or None
        What runs.
    """
    plan = np.array(rows if len(rows) == layers else list(rows) * layers, dtype=np.int64)
    return plan if old is None or old.shape != plan.shape else in_old_slots(plan, ranks, old)


def in_old_slots(rows: Ints, ranks: int, old: Ints) -> Ints:
    """Return a plan [layers, slots] in which every expert that a rank has now keeps its slot there.

    Parameters
    ----------
    rows : int array [layers, slots]
        The plan; the order of a rank's experts does not count.
    ranks : int
        Of equally many slots each.
    old : int array [layers, slots]
        What runs.
    """
    found = np.array(old, dtype=np.int64)
    each = rows.shape[1] // ranks
    per_rank = zip(rows.reshape(-1, each).tolist(), found.reshape(-1, each), strict=True)  # the second one is a view
    for wanted, slots in per_rank:
        free = []
        for at, expert in enumerate(slots.tolist()):
            if expert in wanted:
                wanted.remove(expert)
            else:
                free.append(at)
        slots[free] = wanted
    return found
