"""The plan that each way of following traffic has for the next window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.replan.budget import Budget
from moe_placer.replan.flashlb import FlashLB
from moe_placer.replan.replan import replan
from moe_placer.replan.task import Minimise, default_goal
from moe_placer.solve.assemble import bare_placement
from moe_placer.solve.gpu_assignment import fit_to_gpus
from moe_placer.solve.registry import find_solver
from moe_placer.traffic import Traffic

__all__ = ["Planner", "SlotOrder", "Window"]

Floats = npt.NDArray[np.float64]
Plan = Callable[[int, Placement], Placement]  # window and what runs before it -> what runs in it


@dataclass(frozen=True, eq=False)
class Window:
    """Traffic, and the instance compiled with it."""

    traffic: Traffic
    problem: Problem


class Planner:
    """Plans for windows, from those before; `plans` has them by way."""

    def __init__(
        self,
        instance: Instance,
        windows: Sequence[Window],
        budget: Budget | None,
        minimise: Minimise | None,
        limits: Limits,
        seed: int,
    ) -> None:
        self.instance, self.windows, self.budget, self.limits, self.seed = instance, windows, budget, limits, seed
        self.minimise = minimise or default_goal(instance, windows[0].problem, False)
        self._scratch: dict[int, Placement] = {}
        self._flashlb = FlashLB()
        self.plans: dict[str, Plan] = {
            "never": lambda _at, plan: plan,
            "once": lambda at, plan: self._replanned(plan, windows[0]) if at == 1 else plan,
            "replan": lambda at, plan: self._replanned(plan, windows[at - 1]),
            "history": lambda at, plan: self._replanned(plan, self._together(at)),
            "eplb": lambda at, _plan: self._eplb(at - 1),
            "vllm": lambda at, _plan: self._eplb(at - 1),
            "flashlb": partial(_by_flashlb, windows, self._flashlb),
        }

    def _replanned(self, plan: Placement, seen: Window) -> Placement:
        found = replan(
            self.instance, plan, seen.traffic, budget=self.budget, minimise=self.minimise, limits=self.limits,
            seed=self.seed, check=False, problem=seen.problem,
        )  # fmt: skip
        return found.placement

    def _eplb(self, at: int) -> Placement:
        if at not in self._scratch:
            window, limits = self.windows[at], Limits(time_s=self.limits.time_s, bounds=False)
            results = find_solver("eplb").solve(window.problem, limits, self.seed, None, lambda _at, _result: None)
            fitted = fit_to_gpus(window.problem, results)
            placed = bare_placement(self.instance, window.traffic, window.problem, "eplb", self.seed, fitted)
            self._scratch[at] = placed
        return self._scratch[at]

    def _together(self, count: int) -> Window:
        """Return the first windows as one, each of them with the same weight."""
        if count == 1:
            return self.windows[0]
        seen = [window.traffic for window in self.windows[:count]]
        recordings = tuple(one for window in seen for one in window.recordings)
        traffic = Traffic(recordings, np.hstack([window.mix for window in seen]) / count)
        return Window(traffic, compile_problem(self.instance, traffic))


def _by_flashlb(windows: Sequence[Window], flashlb: FlashLB, at: int, plan: Placement) -> Placement:
    """Let FlashLB plan from what runs, and from the loads of the window that has ended."""
    seen = windows[at - 1].problem
    load = seen.demand.load
    gpus, experts = len(seen.capacity.memory_slots), load.shape[1]
    held = np.array([_by_gpu(plan, row, gpus) for row in range(len(plan.gpu))], dtype=np.int64)
    rows = []
    for row in flashlb.next_plan(held, load).tolist():
        of_expert: list[list[int]] = [[] for _ in range(experts)]
        for gpu, own in enumerate(row):
            for expert in own:
                of_expert[expert].append(gpu)
        rows.append(tuple(map(tuple, of_expert)))
    return plan.model_copy(update={"gpu": tuple(rows)})


def _by_gpu(plan: Placement, row: int, gpus: int) -> list[list[int]]:
    """List the experts of each GPU of one layer, in order."""
    held: list[list[int]] = [[] for _ in range(gpus)]
    for expert in range(len(plan.gpu[row])):
        for replica in plan.shards(row, expert):
            for gpu in replica:
                held[gpu].append(expert)
    return held


class SlotOrder:
    """The slots of EPLB's plans: each GPU's experts in the order in which it packs them, those with most load first.

    What runs before the first plan has its experts in order.
    """

    def __init__(self, plan: Placement, gpus: int) -> None:
        self._held = [_by_gpu(plan, row, gpus) for row in range(len(plan.gpu))]

    def written(self, plan: Placement, problem: Problem) -> int:
        """Count slots that hold another expert than before, and go on from there."""
        gpus, written = len(problem.capacity.memory_slots), 0
        for index, row in enumerate(plan.gpu):
            load = problem.demand.load[index] / np.array([len(own) for own in row])
            held = [sorted(own, key=lambda expert: -load[expert]) for own in _by_gpu(plan, index, gpus)]
            for old, new in zip(self._held[index], held, strict=True):
                written += sum(new[at] != old[at] if at < len(old) else True for at in range(len(new)))
            self._held[index] = held
        return written
