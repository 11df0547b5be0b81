"""The time of a layer, links and busiest GPU together, and what no placement is below."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.instance.schema import RedundantSlots, SharedSlots
from moe_placer.placement import LayerTimeRecord
from moe_placer.verifier.model_sizes import peak_of
from moe_placer.verifier.placed_layers import PlacedLayer
from moe_placer.verifier.rules import Replica
from moe_placer.verifier.verification import Verification, Violation

__all__ = ["busiest_gpu", "check_layer_time", "expert_token_us", "least_busiest"]

Ints = npt.NDArray[np.int64]

TOLERANCE = 1e-6  # relative, of a stated time
ROUNDING = 1e-9
BOUND_ROUNDING = 4 * ROUNDING  # relative, of a stated bound: its parts are each derived within 1e-9, and rounded down


def expert_token_us(instance: Instance) -> float:
    """Microseconds of one token of one expert on one of its GPUs: 2 FLOPs for every weight there."""
    model = instance.model
    weights = model.expert_matrices * model.hidden_size * model.expert_hidden_size / instance.parallelism.expert_tp
    return 1e6 * 2 * weights / (peak_of(instance, "experts") * 1e12 * instance.cluster.gpu.mfu)


def busiest_gpu(layer: PlacedLayer, replicas: Sequence[Replica], slow: Mapping[int, float] | None = None) -> float:
    """Tokens per step of the GPU with most, each of an expert that it holds or shares; 0 where that is not known.

    Parameters
    ----------
    replicas : sequence of Replica
        Those of the layer, expert by expert.
    slow : mapping, optional
        GPU to how many times as long it takes: each of its tokens counts as so many.
    """
    if layer.replicas is None:
        return 0.0
    tokens: Counter[int] = Counter()
    for replica, own in zip(replicas, layer.received.tolist(), strict=True):
        for gpu in replica.gpus:
            tokens[gpu] += own * (slow or {}).get(gpu, 1.0)
    return float(max(tokens.values(), default=0.0))


def least_busiest(instance: Instance, layer: PlacedLayer, slots: Ints) -> float:
    """Tokens that no placement's busiest GPU is below: the mean of GPUs that work, and those of the hottest replica.

    Where how many replicas each expert has is a choice, the hottest replica of the choice in which it has fewest.
    ``slots`` [GPUs] are replicas of one layer that each GPU can hold.
    """
    if layer.replicas is None:
        return 0.0
    tokens, works = layer.received, int((slots > 0).sum())
    hottest, budget = float(tokens.max(initial=0.0)), instance.placement.replicas
    if instance.placement.prefers_near and len(tokens):  # replicas get unlike shares, which other places would change
        starts = np.cumsum(layer.replicas) - layer.replicas
        hottest = float((np.add.reduceat(tokens, starts) / layer.replicas).max())
    if isinstance(budget, RedundantSlots | SharedSlots):
        extra = budget.redundant_slots if isinstance(budget, RedundantSlots) else budget.redundant_slots_in_all
        room = min(extra, int(slots.sum()) - instance.model.experts)
        first = np.cumsum(layer.replicas) - layer.replicas
        load = np.add.reduceat(tokens, first).tolist()
        hottest = _coolest_choice(load, max(0, room), _most_of_one(instance, slots))
    mean = float(tokens.sum()) * instance.parallelism.expert_tp / max(1, works)
    return max(hottest, mean) * (1 - ROUNDING)


def _most_of_one(instance: Instance, slots: Ints) -> int:
    """Count the GPUs, or where replicas are apart by node the nodes, that can hold anything."""
    able = slots.reshape(instance.cluster.nodes, -1) > 0
    return int(able.any(axis=1).sum() if instance.placement.replicas_apart == "node" else able.sum())


def _coolest_choice(load: Sequence[float], extra: int, most: int) -> float:
    """Return the load per replica of the hottest expert, once each of ``extra`` replicas went to the hottest one."""
    heap = [(-own, 1, own) for own in load]
    heapq.heapify(heap)
    for _ in range(extra):
        _, count, own = heap[0]
        if count >= most:
            break  # the hottest cannot have more
        heapq.heapreplace(heap, (-own / (count + 1), count + 1, own))
    return -heap[0][0]


def check_layer_time(record: LayerTimeRecord | None, found: Verification, derived: bool) -> Iterator[Violation]:
    """Rule ``layer-time``: the stated time is as recomputed, and the stated bound is what bounds derived anew give.

    Where none were ``derived``, it is at most the time.
    """
    if record is None:
        return
    value = found.total_layer_us
    bound = found.layer_us_bound if derived else value
    if not math.isclose(record.value_us, value, rel_tol=TOLERANCE, abs_tol=ROUNDING):
        message = f"states layer times of {record.value_us:.9g} µs in all, required are {value:.9g} µs, as recomputed"
        yield Violation("layer-time", message)
    if record.bound_us > min(bound, value) * (1 + BOUND_ROUNDING) + ROUNDING:
        required = f"required are at most the {min(bound, value):.9g} µs that its proofs and loads give"
        yield Violation("layer-time", f"states a bound on layer times of {record.bound_us:.9g} µs, {required}")
