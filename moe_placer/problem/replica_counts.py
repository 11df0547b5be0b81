"""How many replicas each expert gets where their number is free, and the order in which they are items."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["replica_order", "replicas_by_load"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def replicas_by_load(
    load: Floats, total: int, most: int, fits: Callable[[Ints], bool] | None = None, least: int = 1
) -> Ints:
    """Give each expert the least number of replicas, and each further one to the expert with the most load per replica.

    Greedy marginal allocation minimises the largest load per replica (the first step of the public EPLB heuristic).
    Where the result does not fit, a replica goes to the next expert with which it fits; which choices fit is a
    polymatroid, so that greedy is still the best (Federgruen, Groenevelt: The Greedy Procedure for Resource Allocation
    Problems, Operations Research 34, 1986).

    Parameters
    ----------
    load : float array [experts]
        Tokens.
    total : int
        Replicas in all; fewer where no more fit.
    most : int
        Replicas that one expert may have.
    fits : callable, optional
        Whether replicas [experts] have places; the least of each expert must.
    least : int
        Replicas that every expert has.

    Examples
    --------
    >>> replicas_by_load(np.array([6.0, 3.0, 1.0]), total=5, most=8).tolist()
    [3, 1, 1]
    >>> replicas_by_load(np.array([6.0, 3.0, 1.0]), total=5, most=2).tolist()
    [2, 2, 1]
    """
    replicas = np.full(len(load), least)
    for _ in range(total - int(replicas.sum())):
        per_replica = np.where(replicas < most, load / replicas, -1.0)
        replicas[int(per_replica.argmax())] += 1
    if fits is None or fits(replicas):
        return replicas
    replicas, open_ = np.full(len(load), least), np.ones(len(load), dtype=bool)
    while replicas.sum() < total and open_.any():
        expert = int(np.where(open_, load / replicas, -1.0).argmax())
        replicas[expert] += 1
        if not fits(replicas):  # nor will it with more replicas of others
            replicas[expert] -= 1
            open_[expert] = False
    return replicas


def replica_order(replicas: Ints) -> tuple[Ints, Ints]:
    """Expert and replica of each item, ordered by replica, then expert, for ``replicas`` [experts]."""
    replica, expert = np.nonzero(replicas > np.arange(int(replicas.max()))[:, None])
    return expert, replica
