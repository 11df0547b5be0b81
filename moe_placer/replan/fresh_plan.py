"""The plan from scratch, to compare with: the best of the default solver and of what engines do, and its moves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError
from moe_placer.instance import Instance
from moe_placer.instance.sizes import expert_bytes
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.replan.current import read_current
from moe_placer.replan.task import Figures, Minimise, goal_of
from moe_placer.replan.transfers import held_by
from moe_placer.solve.solve import solve
from moe_placer.traffic import Traffic

__all__ = ["fresh_plan", "measure"]

Floats = npt.NDArray[np.float64]


def fresh_plan(
    instance: Instance,
    current: Placement,
    traffic: Traffic,
    minimise: Minimise,
    limits: Limits,
    seed: int = 0,
    slowness: Floats | None = None,
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
    slowness : float array [GPUs], optional
        How many times as long each GPU takes to compute.

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
            measured[name] = measure(instance, current, plan, traffic, minimise, slowness)
        except InputError:  # a heuristic whose plan breaks a rule is no plan
            continue
    best = min(measured, key=lambda name: measured[name].value)
    return best, plans[best], measured[best]


def measure(
    instance: Instance,
    current: Placement,
    placement: Placement,
    traffic: Traffic,
    minimise: Minimise,
    slowness: Floats | None = None,
    problem: Problem | None = None,
) -> Figures:
    """Measure any valid placement on any traffic, and count its moves from the current one, which need not be valid.

    Parameters
    ----------
    instance : Instance
    current : Placement
    placement : Placement
    minimise : str
        What ``value`` is, as for `moe_placer.replan`.
    traffic : Traffic
        Routing statistics of the instance's sources.
    slowness : float array [GPUs], optional
        How many times as long each GPU takes to compute.
    problem : Problem, optional
        The instance compiled with that traffic; absent: it is compiled here.

    Raises
    ------
    InputError
        The placement is not one of this instance.
    """
    problem = problem or compile_problem(instance, traffic)
    after, goal = read_current(problem, placement), goal_of(problem, minimise)
    factor = np.ones(instance.gpus) if slowness is None else slowness
    moves, z, busiest = len(held_by(placement) - held_by(current)), 0.0, 0.0
    for index in range(len(problem)):
        layer = after.problem.layer(index)
        z += layer.z(after.gpu[index] // problem.gpus_per_node)
        busiest += float((np.bincount(after.gpu[index], layer.load, instance.gpus) * factor).max())
    return Figures(moves, moves * expert_bytes(instance), z, busiest, goal.links * z + goal.gpus * busiest)
