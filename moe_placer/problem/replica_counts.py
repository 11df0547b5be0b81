"""How many replicas each expert gets where their number is free."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["copies_by_load"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def copies_by_load(load: Floats, replicas: int, most: int, fits: Callable[[Ints], bool] | None = None) -> Ints:
    """Give each expert one copy, then each further one to the expert with the most load per copy, up to ``most`` each.

    Greedy marginal allocation minimises the largest load per copy (the first step of the public EPLB heuristic). Where
    the result does not fit, a copy goes to the next expert with which it fits; which choices fit is a polymatroid, so
    that greedy is still the best (Federgruen, Groenevelt: The Greedy Procedure for Resource Allocation Problems,
    Operations Research 34, 1986).

    Parameters
    ----------
    load : float array [experts]
        Tokens.
    replicas : int
        Copies in all; fewer where no more fit.
    fits : callable, optional
        Whether copies [experts] have places; one of each expert must.
    """
    copies = np.ones(len(load), dtype=np.int64)
    for _ in range(replicas - len(load)):
        per_copy = np.where(copies < most, load / copies, -1.0)
        copies[int(per_copy.argmax())] += 1
    if fits is None or fits(copies):
        return copies
    copies, open_ = np.ones(len(load), dtype=np.int64), np.ones(len(load), dtype=bool)
    while copies.sum() < replicas and open_.any():
        expert = int(np.where(open_, load / copies, -1.0).argmax())
        copies[expert] += 1
        if not fits(copies):  # nor will it with more copies of others
            copies[expert] -= 1
            open_[expert] = False
    return copies
