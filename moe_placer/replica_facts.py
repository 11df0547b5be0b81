"""What a placement file says of its copies: how many, who chose them, and what that does to the hottest copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe_placer.problem import Problem
from moe_placer.result import LayerResult

__all__ = ["replica_facts"]


def replica_facts(
    problem: Problem, by_load: npt.NDArray[np.int64], method: str, results: Sequence[LayerResult]
) -> dict[str, object]:
    """Return the ``replicas`` block of a placement file (docs/files.md).

    Parameters
    ----------
    by_load : int array [MoE layers, experts]
        Copies by load, with an equal share of the budget in every layer: what other choices are compared with.
    method : str
        Name of the solver.
    """
    chosen = zip(results, problem.copies, strict=True)
    copies = np.stack([own if result.copies is None else result.copies for result, own in chosen])
    each = copies.sum(axis=1)
    facts: dict[str, object] = {"per_layer": int(each[0]) if (each == each[0]).all() else each.tolist()}
    if problem.redundant_in_all is not None:
        facts |= {"redundant_in_all": int((copies - 1).sum()), "redundant_slots_in_all": problem.redundant_in_all}
    if not problem.copies_are_free:
        return facts | {"copies": "given by the instance", "bound_covers_choice_of_copies": True}
    others = (copies != by_load).any(axis=1)
    facts["copies"] = "chosen by load"
    if others.any():
        load = problem.demand.sum(axis=1)
        hottest, usual = (load / copies).max(axis=1), (load / by_load).max(axis=1)
        growth = np.where(usual > 0, hottest / np.where(usual > 0, usual, 1.0), 1.0)
        facts["copies"] = f"chosen by {method}, other than by load in {others.sum()} of {len(others)} MoE layers"
        facts["hottest_copy_over_by_load"] = {"mean": float(growth.mean()), "most": float(growth.max())}
    return facts | {"bound_covers_choice_of_copies": all(result.bound.any_copies for result in results)}
