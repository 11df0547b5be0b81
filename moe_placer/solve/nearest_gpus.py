"""GPUs for the replicas of a layer whose nodes were chosen so that their GPUs cannot take them, with few moved.

minimise  replicas on other nodes than chosen
sum over GPUs of y[i, g]                      = shards of a replica
sum over the items i of expert e of y[i, g]  <= 1, and over the GPUs of a node <= shards where nodes are apart
sum_i y[i, g]                                <= slots[g]
sum over a node's GPUs of y[i, g]             = shards * x[i, n]
y[i, g]                                       = 1 where item i is pinned to GPU g
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.errors import NothingFoundError
from moe_placer.problem.compile import Problem

__all__ = ["nearest_gpus"]

Ints = npt.NDArray[np.int64]

_SECONDS = 60.0


def nearest_gpus(problem: Problem, index: int, node: Ints, replicas: Ints | None) -> list[tuple[int, ...]]:
    """Return the GPUs of each item of a layer, with the fewest on other nodes than ``node`` [I].

    Parameters
    ----------
    problem : Problem
        The compiled instance.
    index : int
        The MoE layer, counted among MoE layers.
    node : int array
        Node of each item [items] that is wished for.
    replicas : int array or None
        Replicas of each expert [experts]; None: the problem's own.

    Raises
    ------
    NothingFoundError
        None were found: there are none for these ``replicas``, or a minute did not suffice.
    """
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp  # only where packing failed

    expert, replica = problem.items(index, replicas)
    gpus, per_node, shards = len(problem.capacity.memory_slots), problem.gpus_per_node, problem.shards
    item, gpu = np.divmod(np.arange(len(expert) * gpus), gpus)
    place = item * problem.nodes + gpu // per_node  # of x, after all y
    y, x = len(item), len(expert) * problem.nodes
    rows: list[tuple[Any, Any]] = [  # (left side over y and x, its largest value)
        (_sums(expert[item] * gpus + gpu, y, x), 1),
        (_sums(gpu, y, x), problem.capacity.slots[index]),
    ]
    if problem.capacity.apart:
        rows.append((_sums(expert[item] * problem.nodes + gpu // per_node, y, x), shards))
    on_nodes = _sums(place, y, x) - sparse.hstack([sparse.csr_array((x, y)), shards * sparse.eye_array(x)])
    equal = sparse.vstack([_sums(item, y, x), on_nodes])
    least = np.zeros(y + x)
    for i, (e, r) in enumerate(zip(expert.tolist(), replica.tolist(), strict=True)):
        pin = problem.pinned.get((index, e, r))
        if pin is not None:
            least[i * gpus + pin] = 1.0
    chosen = np.arange(len(expert)) * problem.nodes + node
    moved = np.concatenate([np.zeros(y), np.ones(x)])
    moved[y + chosen] = 0.0
    whole = np.append(np.full(len(expert), float(shards)), np.zeros(x))
    constraints = [LinearConstraint(left, -np.inf, most) for left, most in rows]
    constraints.append(LinearConstraint(equal, whole, whole))
    solved = milp(
        moved,
        integrality=np.ones(y + x),
        bounds=Bounds(least, np.ones(y + x)),
        constraints=constraints,
        options={"time_limit": _SECONDS},
    )
    if solved.x is None:
        raise NothingFoundError(f"the GPUs of no nodes take the expert replicas of layer {problem.moe_layers[index]}")
    taken = np.rint(solved.x[:y]).reshape(len(expert), gpus) > 0
    return [tuple(np.flatnonzero(row).tolist()) for row in taken]


def _sums(row: Ints, y: int, x: int) -> Any:
    """Return the matrix that sums y over equal ``row`` [y]; x does not count."""
    from scipy import sparse

    return sparse.csr_array((np.ones(y), (row, np.arange(y))), shape=(int(row.max()) + 1, y + x))
