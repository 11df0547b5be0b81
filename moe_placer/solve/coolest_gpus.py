"""Among placements whose busiest links are within the gap, one with a cooler busiest GPU: a step after the search."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe_placer.limits import Deadline, Limits
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.result import OPTIMAL_GAP, LayerResult, Stop, gap
from moe_placer.search.cooling import cool
from moe_placer.solve.by_nearness import busiest_as_served, cool_as_served
from moe_placer.solve.gpu_assignment import pack
from moe_placer.solve.numbered import in_gpu_order

__all__ = ["Cooling", "busiest_gpus", "can_cool", "cool_busiest", "cool_gpus", "cool_within"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Of this process, not of the clock: it takes some 15 ms a layer, after a search that may have used up the time.
_LEAST_S, _SHARE = 10.0, 0.25  # seconds of CPU time, and share of the time limit


@dataclass(frozen=True)
class Cooling:
    """What trading replicas between GPUs changed, summed over layers.

    Attributes
    ----------
    busiest_before, busiest_after : float
        Tokens per step of the busiest GPU of each layer.
    z_before, z_after : float
        Costs of the busiest links (tokens at node-link speed).
    """

    busiest_before: float
    busiest_after: float
    z_before: float
    z_after: float


def cool_busiest(
    problem: Problem, results: Sequence[LayerResult], limits: Limits
) -> tuple[list[LayerResult], Cooling | None]:
    """Cool the busiest GPUs within the gap, and say what that changed; None where there is nothing to trade.

    The search may have used up the time: this takes at most 10 s of CPU time, or a quarter of the time limit, more.
    """
    if problem.near is None and not can_cool(problem):
        return list(results), None
    more = max(_LEAST_S, _SHARE * limits.time_s)
    end, interrupted = time.process_time() + more, limits.deadline.interrupted
    deadline = Deadline(interrupted=lambda: interrupted() or time.process_time() > end)
    if problem.near is not None:
        cooled = cool_as_served(problem, results, limits.gap, deadline)
        before, after = (float(busiest_as_served(problem, some).sum()) for some in (results, cooled))
        return cooled, Cooling(before, after, *(float(sum(one.z for one in some)) for some in (results, cooled)))
    cooled = cool_gpus(problem, results, limits.gap, deadline)
    if problem.shares is not None:
        cooled = _numbered(problem, results, cooled, limits.gap)
    before, after = (float(busiest_gpus(problem, some).sum()) for some in (results, cooled))
    return cooled, Cooling(before, after, *(float(sum(one.z for one in some)) for some in (results, cooled)))


def _numbered(
    problem: Problem, results: Sequence[LayerResult], cooled: Sequence[LayerResult], within: float
) -> list[LayerResult]:
    """Return layers with replicas numbered by their new GPUs, where that is within the gap and cooler."""
    found = [in_gpu_order(problem, index, one) for index, one in enumerate(cooled)]
    cooler = busiest_gpus(problem, found) < busiest_gpus(problem, results)
    allowed = [max(one.z, one.bound.value * (1 + within)) for one in results]
    trios = zip(cooler, allowed, found, results, strict=True)
    return [one if cool and one.z <= most else before for cool, most, one, before in trios]


def can_cool(problem: Problem) -> bool:
    """Whether replicas can trade GPUs: with one slot each it changes nothing, and shards of an expert are not moved."""
    partners = problem.gpus_per_node > 1 or not _stays_inside(problem)
    return problem.capacity.per_gpu > 1 and problem.shards == 1 and partners


def _stays_inside(problem: Problem) -> bool:
    """Whether trades between nodes are ruled out: costs of links are no sums, or those of one layer do not count."""
    return bool(problem.coverage) or problem.minimise == "aggregate"


def busiest_gpus(problem: Problem, results: Sequence[LayerResult]) -> Floats:
    """Return the tokens of each layer's busiest GPU [MoE layers], with the GPUs that `pack` chooses."""
    found = np.zeros(len(problem))
    for index, gpus in enumerate(pack(problem, results)):
        load = problem.rules(index, results[index].replicas).load / problem.shards
        tokens = np.zeros(len(problem.capacity.memory_slots))
        for item, own in enumerate(gpus):
            tokens[list(own)] += load[item]
        found[index] = tokens.max(initial=0.0)
    return found


def cool_gpus(problem: Problem, results: Sequence[LayerResult], within: float, deadline: Deadline) -> list[LayerResult]:
    """Trade items between GPUs of all nodes so that the busiest GPU of each layer gets cooler.

    A layer's z never rises above ``max(z, bound * (1 + within))``, and only where its time, links and busiest GPU
    together, falls. Where the cost of a link is no sum over items (dispatch once per node), or no layer's z is what is
    minimised (``aggregate``), items trade GPUs inside their nodes only, which changes no link.

    Parameters
    ----------
    problem : Problem
        The compiled instance.
    results : sequence of LayerResult
        One per MoE layer, each with its nodes.
    within : float
        The gap to each layer's re-checkable bound that is allowed: 0.001 is 0.1%.
    deadline : Deadline
        When to stop, whatever has been reached.

    Raises
    ------
    NothingFoundError
        The replicas of a node do not go on its GPUs.
    """
    if not can_cool(problem):
        return list(results)
    cooled = []
    for index, (result, gpus) in enumerate(zip(results, pack(problem, results), strict=True)):
        gpu = np.array([own[0] for own in gpus], dtype=np.int64)
        cooled.append(_cool_layer(problem, index, replace(result, gpu=gpu), within, deadline))
    return cooled


def _cool_layer(problem: Problem, index: int, result: LayerResult, within: float, deadline: Deadline) -> LayerResult:
    kept = cool_within(problem, index, result, None if _stays_inside(problem) else result.z, deadline)
    allowed = result.bound.value * (1 + within) if result.bound.proof != "solver" else 0.0
    if _stays_inside(problem) or allowed <= result.z:
        return kept
    # A higher z within the gap is taken only where that saves time: links cost, too.
    layer = problem.layer(index, result.replicas)
    further = cool_within(problem, index, kept, allowed, deadline)
    best = min(kept, further, key=lambda one: _time(layer, one))
    return replace(best, stop=_stop(result, best.z))


def cool_within(
    problem: Problem, index: int, result: LayerResult, limit: float | None, deadline: Deadline
) -> LayerResult:
    """Cool the busiest GPU of one layer, whose items have GPUs; ``limit`` is what no link may cost, or that of before.

    None: items stay on their nodes.

    Parameters
    ----------
    problem : Problem
        The compiled instance.
    index : int
        The MoE layer, counted among MoE layers.
    result : LayerResult
        The layer as it is placed.
    limit : float or None
        What no link may cost, tokens at node-link speed; None: items stay on their nodes.
    deadline : Deadline
        When to stop, whatever has been reached.
    """
    assert result.gpu is not None
    layer = problem.layer(index, result.replicas)
    found = cool(layer, result.gpu, _free_slots(problem, index, result.gpu), limit, deadline)
    z = result.z if limit is None else found.z
    return replace(result, node=found.gpu // problem.gpus_per_node, gpu=found.gpu, z=z, stop=_stop(result, z))


def _time(layer: LayerProblem, result: LayerResult) -> float:
    """Time of the layer as a cost: its busiest link, there and back, and its busiest GPU."""
    assert result.gpu is not None
    return result.z + layer.gpu_price * float(np.bincount(result.gpu, layer.load).max())


def _free_slots(problem: Problem, index: int, gpu: Ints) -> Ints:
    """Slots that are free on each GPU [G]; none where layers share what memory leaves."""
    slots = problem.capacity.slots[index]
    if problem.capacity.binds:
        return np.zeros_like(slots)
    return np.asarray(np.maximum(0, slots - np.bincount(gpu, minlength=len(slots))))


def _stop(result: LayerResult, z: float) -> Stop:
    """Return why the search stopped: a z that is optimal no more is one within the gap."""
    return Stop.GAP if result.stop is Stop.PROVED and gap(z, result.best_bound) > OPTIMAL_GAP else result.stop
