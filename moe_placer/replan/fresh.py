"""The plan from scratch, to compare with: the best of the default solver and of what engines do, and its moves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moe_placer.errors import InputError
from moe_placer.instance import Instance
from moe_placer.instance.sizes import expert_bytes
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import compile_problem
from moe_placer.replan.current import Current, read_current
from moe_placer.replan.task import Figures, Minimise, goal_of
from moe_placer.solve.solve import solve
from moe_placer.traffic import Traffic

__all__ = ["fresh_plan", "measure"]


def fresh_plan(
    instance: Instance, current: Placement, traffic: Traffic, minimise: Minimise, limits: Limits, seed: int = 0
) -> tuple[str, Placement, Figures]:
    """Plan from scratch, as if nothing were placed.

    Parameters
    ----------
    instance : Instance
    current : Placement
        What runs now: moves are counted from it.
    minimise : str
        By which the best plan is chosen, as for `moe_placer.replan`.
    limits : Limits
        Of the solver.
    seed : int
    traffic : Traffic
        Routing statistics of the instance's sources.

    Returns
    -------
    name : str
        Of the method.
    placement : Placement
    figures : Figures
    """
    solution = solve(instance, traffic, limits=limits, seed=seed)
    own, others = solution.placement, solution.baseline_placements()
    plans: Mapping[str, Placement] = {own.solver.name: own, **others}
    measured = {}
    for name, plan in plans.items():
        try:
            measured[name] = measure(instance, current, plan, traffic, minimise)
        except InputError:  # a heuristic whose plan breaks a rule is no plan
            continue
    best = min(measured, key=lambda name: measured[name].value)
    return best, plans[best], measured[best]


def measure(
    instance: Instance, current: Placement, placement: Placement, traffic: Traffic, minimise: Minimise
) -> Figures:
    """Measure any valid placement on any traffic, and count its moves from the current one.

    Parameters
    ----------
    instance : Instance
    current : Placement
    placement : Placement
    minimise : str
        What ``value`` is, as for `moe_placer.replan`.
    traffic : Traffic
        Routing statistics of the instance's sources.

    Raises
    ------
    InputError
        A placement is not one of this instance.
    """
    problem = compile_problem(instance, traffic)
    before, after = read_current(problem, current), read_current(problem, placement)
    goal = goal_of(problem, minimise)
    z = busiest = 0.0
    moves = 0
    for index in range(len(problem)):
        layer = after.problem.layer(index)
        z += layer.z(after.gpu[index] // problem.gpus_per_node)
        busiest += float(np.bincount(after.gpu[index], layer.load).max())
        moves += _moves(before, after, index)
    return Figures(moves, moves * expert_bytes(instance), z, busiest, goal.links * z + goal.gpus * busiest)


def _moves(before: Current, after: Current, index: int) -> int:
    return int(np.maximum(0, after.held(index) - before.held(index)).sum())
