"""Search over how many replicas each expert has, for the time of a layer: links and busiest GPU together.

One replica goes, another expert gets one more in its slot or in a free one. The costs of all links and the loads of all
GPUs after each change are exact (`moe_placer.search.replication`); the most promising changes are followed by trades
between GPUs, and the best is made, until none shortens the layer's time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.limits import Deadline
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.replicas import count_replicas, with_replicas
from moe_placer.search.cooling import cool
from moe_placer.search.replication import State

__all__ = ["Timed", "replicate_for_time", "time_of"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_FOLLOWED = 4  # changes that are followed by trades
_MOST = 30  # changes made
_SMALL = 4_000  # items x experts up to which every expert may get a replica; beyond, those of the busiest GPU
_SLACK = (1.0, 1.02, 1.1)  # how far trades may raise the busiest link
_HELPS = 1e-9


@dataclass(frozen=True, eq=False)
class Timed:
    """A layer with its replicas, the GPU of each item [I], and its time as a cost."""

    layer: LayerProblem
    gpu: Ints
    time: float


def time_of(layer: LayerProblem, gpu: Ints, per_node: int) -> float:
    """Time of a layer as a cost: its busiest link, there and back, and its busiest GPU."""
    return float(layer.z(gpu // per_node) + layer.gpu_price * np.bincount(gpu, layer.load).max(initial=0.0))


def replicate_for_time(layer: LayerProblem, gpu: Ints, slots: Ints, deadline: Deadline) -> Timed:
    """Change replicas while that shortens the layer's time.

    Parameters
    ----------
    layer : LayerProblem
        Whose replicas are a choice, with ``even`` routing.
    gpu : int array [I]
    slots : int array [G]
        Replicas that each GPU may hold.
    deadline : Deadline
        When to stop, whatever has been reached.
    """
    per_node = len(slots) // layer.nodes
    best = Timed(layer, gpu, time_of(layer, gpu, per_node))
    for _ in range(_MOST):
        if deadline.over:
            break
        item, expert, to = _candidates(best, slots, per_node)
        tried = [_followed(best, *change, slots, deadline) for change in zip(item, expert, to, strict=True)]
        shortest = min(tried, key=lambda one: one.time, default=best)
        if shortest.time >= best.time * (1 - _HELPS):
            break
        best = shortest
    return best


def _candidates(now: Timed, slots: Ints, per_node: int) -> tuple[list[int], list[int], list[int]]:
    """Find the changes after which the layer's time is shortest, before any trades: item, expert, GPU."""
    layer, gpu = now.layer, now.gpu
    replicas, gpus = count_replicas(layer), len(slots)
    tokens = np.bincount(gpu, layer.load, gpus)
    on_gpu = np.zeros((len(replicas), gpus), dtype=np.int64)
    np.add.at(on_gpu, (layer.expert, gpu), 1)
    goes = np.flatnonzero((replicas[layer.expert] > layer.least_replicas) & (layer.pinned < 0))
    hot = np.unique(layer.expert[gpu == tokens.argmax()])
    more = np.arange(len(replicas)) if layer.items * len(replicas) <= _SMALL else hot
    free = np.flatnonzero(np.bincount(gpu, minlength=gpus) < slots)
    item, expert = (grid.ravel() for grid in np.meshgrid(goes, more, indexing="ij"))
    to = gpu[item]
    if len(free):
        item, expert, to = np.tile(item, 2), np.tile(expert, 2), np.append(to, np.full(len(to), free[0]))
    held = np.zeros((len(replicas), layer.nodes), dtype=np.int64)
    np.add.at(held, (layer.expert, gpu // per_node), 1)
    apart = held[expert, to // per_node] < layer.together[to // per_node]
    able = (layer.expert[item] != expert) & (on_gpu[expert, to] == 0) & apart
    item, expert, to = item[able], expert[able], to[able]
    if not len(item):
        return [], [], []
    cost = State(layer, gpu // per_node).costs(item, expert, to // per_node).max(axis=1, initial=0.0)
    own = np.bincount(layer.expert, layer.load)  # of an expert, over its replicas
    of = layer.expert[item]
    after = tokens + on_gpu[of] * (own[of] * (1 / (replicas[of] - 1) - 1 / replicas[of]))[:, None]
    after += on_gpu[expert] * (own[expert] * (1 / (replicas[expert] + 1) - 1 / replicas[expert]))[:, None]
    rows = np.arange(len(item))
    after[rows, gpu[item]] -= own[of] / (replicas[of] - 1)
    after[rows, to] += own[expert] / (replicas[expert] + 1)
    first = np.argsort(cost + layer.gpu_price * after.max(axis=1), kind="stable")[:_FOLLOWED]
    return item[first].tolist(), expert[first].tolist(), to[first].tolist()


def _followed(now: Timed, item: int, expert: int, to: int, slots: Ints, deadline: Deadline) -> Timed:
    """Make a change, then trades between GPUs."""
    layer, per_node = now.layer, len(slots) // now.layer.nodes
    of_expert: list[list[int]] = [[] for _ in range(int(layer.expert.max()) + 1)]
    for e, g in zip(layer.expert.tolist(), now.gpu.tolist(), strict=True):
        of_expert[e].append(g)
    of_expert[int(layer.expert[item])].pop(int(layer.replica[item]))
    of_expert[expert].append(to)
    changed = with_replicas(layer, np.array([len(own) for own in of_expert], dtype=np.int64))
    pairs = zip(changed.expert.tolist(), changed.replica.tolist(), strict=True)
    gpu = np.array([of_expert[e][r] for e, r in pairs], dtype=np.int64)
    best = Timed(changed, gpu, time_of(changed, gpu, per_node))
    for slack in _SLACK:
        free = np.maximum(0, slots - np.bincount(gpu, minlength=len(slots)))
        gpu = cool(changed, gpu, free, changed.z(gpu // per_node) * slack, deadline).gpu
        time = time_of(changed, gpu, per_node)
        best = Timed(changed, gpu, time) if time < best.time else best
    return best
