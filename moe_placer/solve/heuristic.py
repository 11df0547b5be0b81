"""The bases of methods that make one pass over a layer and prove nothing."""

from __future__ import annotations

import heapq
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import best_bound
from moe_placer.limits import Limits
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.result import LayerResult, Report, Stop
from moe_placer.search.moves import repair
from moe_placer.solve.base import Solver, Start
from moe_placer.solve.layerwise import LayerSolver, LayerTask

__all__ = [
    "EngineRule",
    "Heuristic",
    "OnePass",
    "ep_groups",
    "even_slots",
    "gpu_result",
    "heuristic_result",
    "lightest_first",
    "pack_in_groups",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Heuristic(LayerSolver):
    """A one-pass method: says where it would put each item; slots, replicas apart and pins are then seen to."""

    quick = True

    @abstractmethod
    def place(self, layer: LayerProblem, rng: np.random.Generator) -> Ints:
        """Return the node of each item [I]."""

    def solve_layer(self, task: LayerTask) -> LayerResult:
        """Place one layer in one pass; limits and start do not matter."""
        return heuristic_result(task.layer, self.place(task.layer, task.rng), task.rng)


class OnePass(Solver):
    """A one-pass method that looks at more than a layer's links: at its GPUs, hops, or the number of replicas."""

    def place_quickly(self, problem: Problem, index: int, seed: int) -> LayerResult:
        """Place the index-th MoE layer, as `solve` does."""
        return self.place_layer(problem, index, np.random.default_rng((seed, index)))

    @abstractmethod
    def place_layer(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place the index-th MoE layer."""

    def solve(
        self, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
    ) -> list[LayerResult]:
        """Place all layers, one pass each; limits and start do not matter.

        Parameters as of `Solver.solve`.
        """
        del limits, start
        results = []
        for index in range(len(problem)):
            results.append(self.place_quickly(problem, index, seed))
            report(index, results[-1])
        return results


class EngineRule(OnePass):
    """A rule that an engine applies inside each EP group.

    With ``group`` routing every DP group is one, and keeps its replicas on its own nodes. What these have no slots for
    goes to other nodes, and counts as repaired: no engine would serve it.
    """

    @abstractmethod
    def place_in_groups(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place the index-th MoE layer, as `pack_in_groups` does."""

    def place_layer(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place one layer, and count the replicas that are on another group's nodes."""
        result = self.place_in_groups(problem, index, rng)
        if not problem.groups or result.node is None:
            return result
        layer = problem.rules(index, result.replicas)
        strays = (problem.group_of_node[result.node] != layer.replica) & (layer.pinned < 0)
        return replace(result, repaired=result.repaired + int(strays.sum()))


def ep_groups(problem: Problem, layer: LayerProblem) -> list[tuple[Ints, Ints]]:
    """List the items and the nodes of each EP group: of each DP group with `group` routing, else one of everything."""
    if not problem.groups:
        return [(np.arange(layer.items), np.arange(layer.nodes))]
    group = problem.group_of_node
    return [(np.flatnonzero(layer.replica == r), np.flatnonzero(group == r)) for r in range(problem.groups)]


def pack_in_groups(problem: Problem, layer: LayerProblem, slots: Ints, pack: Callable[[Ints, Ints], Ints]) -> Ints:
    """Pack each EP group's items into its own places; the coolest items that find no slot there, wherever one is left.

    Parameters
    ----------
    problem : Problem
        The compiled instance.
    layer : LayerProblem
        One MoE layer.
    slots : int array [G]
        Slots of each place: all GPUs, or all nodes.
    pack : callable
        From items and slots [G], which suffice for them, to the place of each item.

    Returns
    -------
    int array [I]
        Place of each item.
    """
    home = np.arange(len(slots)) // (len(slots) // layer.nodes)
    place, rest = np.zeros(layer.items, dtype=np.int64), np.zeros(0, dtype=np.int64)
    left = slots.copy()
    for items, nodes in ep_groups(problem, layer):
        here = np.where(np.isin(home, nodes), slots, 0)
        hottest = items[np.argsort(-layer.load[items], kind="stable")]
        rest = np.append(rest, hottest[here.sum() :])
        fitting = items[~np.isin(items, rest)]
        place[fitting] = pack(fitting, here)
        left -= np.bincount(place[fitting], minlength=len(slots))
    if len(rest):
        place[rest] = pack(rest, np.maximum(left, 0))
    return place


def even_slots(slots: Ints, items: int) -> Ints:
    """Return how many items each place [G] gets where engines deal them evenly: numbers differ by one at most.

    Where slots are spare, some places get one less: these are spread evenly too. A place with fewer slots is full.
    """
    level = 0
    while np.minimum(slots, level).sum() < items and level < slots.max(initial=0):
        level += 1
    share = np.minimum(slots, level - 1) if level else np.zeros_like(slots)
    more = np.flatnonzero(slots >= level) if level else np.zeros(0, dtype=np.int64)
    left = min(items - int(share.sum()), len(more))
    share[more[np.arange(left) * len(more) // max(1, left)]] += 1
    return share


def heuristic_result(
    layer: LayerProblem,
    node: Ints,
    rng: np.random.Generator,
    gpu: Ints | None = None,
    replicas: Ints | None = None,
    repaired: int = 0,
) -> LayerResult:
    """Repair a method's placement, and return its result; its GPUs are kept only if no replica had to move.

    ``repaired`` counts what the method mended before.

    Parameters
    ----------
    layer : LayerProblem
        One MoE layer.
    node : int array
        Node of each item [items], where the method puts it.
    rng : Generator
        Source of everything random.
    gpu : int array [items] or None
        GPU of each item; None: the method does not say.
    replicas : int array or None
        Replicas of each expert [experts]; None: the problem's own.
    repaired : int
        Items that have been moved already.
    """
    mended = repair(layer, node, rng)
    bound = best_bound(layer)
    if mended is None:
        return LayerResult(None, np.inf, bound, Stop.FINISHED)
    moved = int((mended != node).sum())
    return LayerResult(
        mended,
        layer.z(mended),
        bound,
        Stop.FINISHED,
        gpu=gpu if not moved else None,
        replicas=replicas,
        repaired=moved + repaired,
    )


def gpu_result(
    problem: Problem, layer: LayerProblem, gpu: Ints, rng: np.random.Generator, replicas: Ints | None = None
) -> LayerResult:
    """Return the result of a method's GPUs [I], once replicas of one expert on one GPU have been moved apart.

    Parameters
    ----------
    problem : Problem
        The compiled instance.
    layer : LayerProblem
        One MoE layer.
    gpu : int array [items]
        GPU of each item.
    rng : Generator
        Source of everything random.
    replicas : int array or None
        Replicas of each expert [experts]; None: the problem's own.
    """
    gpu, moved = _apart_on_gpus(layer, gpu, problem.gpus_per_node)
    doubled = len(gpu) - len(np.unique(gpu * (layer.expert.max() + 1) + layer.expert))
    keep = None if doubled or problem.pinned else gpu  # else GPUs are chosen last, evenly by memory
    return heuristic_result(layer, gpu // problem.gpus_per_node, rng, keep, replicas, repaired=moved + doubled)


def _apart_on_gpus(layer: LayerProblem, gpu: Ints, gpus_per_node: int) -> tuple[Ints, int]:
    """Trade the second replica of an expert on a GPU for the most similar item, of its own node where there is one."""
    gpu = gpu.copy()
    held = np.zeros((int(layer.expert.max()) + 1, int(gpu.max()) + 1), dtype=np.int64)
    np.add.at(held, (layer.expert, gpu), 1)
    moved = 0
    for i in np.flatnonzero(held[layer.expert, gpu] > 1).tolist():
        here, expert = gpu[i], layer.expert[i]
        partners = np.flatnonzero((held[expert, gpu] == 0) & (held[layer.expert, here] == 0))
        if held[expert, here] < 2 or not len(partners):
            continue
        away = gpu[partners] // gpus_per_node != here // gpus_per_node
        j = int(partners[np.lexsort((np.abs(layer.load[partners] - layer.load[i]), away))[0]])
        np.add.at(
            held, ([expert, expert, layer.expert[j], layer.expert[j]], [here, gpu[j], gpu[j], here]), [-1, 1, -1, 1]
        )
        gpu[[i, j]] = gpu[[j, i]]
        moved += 1
    return gpu, moved


def lightest_first(load: Floats, slots: Ints) -> Ints:
    """Put the heaviest item first, each into the lightest pack with a slot left; return the pack of each item.

    Of equally heavy items, and of equally light packs, the first is taken.
    """
    packs = [(0.0, pack) for pack in np.flatnonzero(slots > 0).tolist()]
    heapq.heapify(packs)
    left = slots.copy()
    result = np.zeros(len(load), dtype=np.int64)
    for item in np.argsort(-load, kind="stable").tolist():
        weight, pack = heapq.heappop(packs)
        result[item] = pack
        left[pack] -= 1
        if left[pack] > 0:
            heapq.heappush(packs, (weight + float(load[item]), pack))
    return result
