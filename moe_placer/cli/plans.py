"""Figures of a solve's placement and of every heuristic's: links, busiest GPUs, and on request a simulated step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moe_placer.cli import log
from moe_placer.cli.interrupts import listen
from moe_placer.experiments.compare.metrics import find_flows, judged_load
from moe_placer.fabric import link_bandwidths, link_us, token_cost
from moe_placer.schedule.step import EQUAL_STEPS, step_time
from moe_placer.verifier.loads import read_network

if TYPE_CHECKING:
    from moe_placer.instance import Instance
    from moe_placer.placement import Placement
    from moe_placer.schedule.coarse_network import Sharing
    from moe_placer.solve.solve import Solution

__all__ = ["PlanFigures", "bound_us", "measure_plans", "measured", "simulate_steps", "verdict"]

Floats = npt.NDArray[np.float64]

_ENGINES = ("contiguous", "eplb")  # what runs today without us


@dataclass(frozen=True)
class PlanFigures:
    """Loads and times of one placement in one step.

    Attributes
    ----------
    objective : float
        What is minimised, as a cost.
    wire_us : float
        Microseconds of dispatch: of all layers one after the other, each as long as the link that needs longest; where
        the aggregate is minimised, of the link that needs longest for all layers together.
    busiest_gpu_tokens : float
        Sum over layers of the tokens that its busiest GPU computes.
    above_mean : float
        How far that is above the mean of working GPUs: 0.1 is 10%.
    step_us : float or None
        Of one simulated step; None where it was not simulated.
    """

    objective: float
    wire_us: float
    busiest_gpu_tokens: float
    above_mean: float
    step_us: float | None = None


def measure_plans(instance: Instance, solution: Solution) -> dict[str, PlanFigures]:
    """Measure the heuristics that could serve and, last, the placement of a solve, by name."""
    mine = solution.placement.solver.name
    found = {}
    for name, placement in solution.baseline_placements().items():
        objective = solution.baselines[name]
        if name != mine and isinstance(objective, float):
            found[name] = _measure(instance, solution, placement, objective)
    found[mine] = _measure(instance, solution, solution.placement, solution.objective)
    return found


def _measure(instance: Instance, solution: Solution, placement: Placement, objective: float) -> PlanFigures:
    network, flows = read_network(instance), find_flows(instance, placement, solution.traffic)
    load, _ = judged_load(instance, placement, solution.traffic, network, flows.load(network))
    us = link_us(instance, link_bandwidths(instance, network.links), load)
    layers = us if solution.minimise != "aggregate" else us.sum(axis=0, keepdims=True)
    works = np.full(instance.gpus, True)
    works[list(instance.placement.failed_gpus)] = False
    busiest, mean = flows.gpu.max(axis=1).sum(), flows.gpu[:, works].mean(axis=1).sum()
    above = float(busiest / mean - 1) if mean > 0 else 0.0
    return PlanFigures(objective, float(layers.max(axis=1, initial=0.0).sum()), float(busiest), above)


def simulate_steps(
    instance: Instance,
    solution: Solution,
    plans: Mapping[str, PlanFigures],
    tell: Callable[[str], None] = lambda _name: None,
    stopped: Callable[[], bool] = lambda: False,
    *,
    sharing: Sharing = "fine",
) -> dict[str, PlanFigures] | None:
    """Add the simulated step of each plan: a prefill of the instance's own tokens, as `compare` simulates it.

    Parameters
    ----------
    plans : mapping
        As `measure_plans` returns them.
    tell : callable
        Told of each plan before it is simulated.
    stopped : callable
        Asked before each plan.
    sharing : str
        How finely steps share links out over time (`moe_placer.schedule.coarse_network.Sharing`).

    Returns
    -------
    dict or None
        None where that was stopped: steps are compared with one another, or not at all.
    """
    placements = {**solution.baseline_placements(), solution.placement.solver.name: solution.placement}
    found = {}
    for name, figures in plans.items():
        if stopped():
            return None
        tell(name)
        step = step_time(instance, placements[name], solution.traffic, sharing=sharing)
        found[name] = replace(figures, step_us=step.step_us)
    return found


def measured(
    instance: Instance, solution: Solution, sharing: Sharing | None, quiet: bool
) -> tuple[dict[str, PlanFigures], float | None]:
    """Measure every plan, simulate their steps if asked to, and say how many seconds the steps took.

    Parameters
    ----------
    instance : Instance
    solution : Solution
    sharing : str or None
        How finely steps share links out over time; None: no step is simulated.
    quiet : bool
        Whether to say nothing meanwhile.
    """
    stop_request = listen("stopping: simulating no more; the placement is written (again to give up its summary)")
    plans = measure_plans(instance, solution)
    if sharing is None:
        return plans, None
    begun = time.monotonic()

    def tell(name: str) -> None:
        if not quiet:
            log.info(f"simulating a step: {name}", plan=name)

    simulated = simulate_steps(instance, solution, plans, tell, stop_request, sharing=sharing)
    if simulated is None:
        log.warn("stopped simulating; `moe-placer schedule` simulates the placement's step")
        return plans, None
    return simulated, time.monotonic() - begun


def bound_us(instance: Instance, solution: Solution) -> float:
    """Microseconds that no placement's `PlanFigures.wire_us` is below, from the bounds as derived anew.

    A cost is ``c[k]`` times the time that link k needs. So weights w that prove a bound prove bound / sum w[k] c[k]
    microseconds, and any other proof bound / max c[k]. Under ``metric: time`` all c[k] are the same.
    """
    found, names = solution.verification, solution.verification.links
    if not names:
        return 0.0
    gb_per_s = link_bandwidths(instance, names)
    per_us = token_cost(instance, gb_per_s) / link_us(instance, gb_per_s, np.ones(len(names)))
    index = {name: k for k, name in enumerate(names)}

    def proved(bound: float, weights: Mapping[str, float] | None) -> float:
        if not weights:
            return bound / float(per_us.max())
        total = sum(weights.values())
        return bound * total / sum(weight * float(per_us[index[name]]) for name, weight in weights.items())

    if solution.minimise == "aggregate":
        record = solution.placement.aggregate
        return proved(found.aggregate_bound, None if record is None else record.weights)
    pairs = zip(found.layers, solution.placement.layers, strict=True)
    summed = sum(proved(check.bound, own.weights if own.proof == "dual" else None) for check, own in pairs)
    return max(summed, proved(found.memory_bound, None))


def verdict(plans: Mapping[str, PlanFigures], back: float = 1.0) -> str | None:
    """Say in one sentence whether placing pays, against the best of what engines do; None where that cannot serve.

    Differences below `EQUAL_STEPS` count as equal. The last plan is the one that is judged. ``back`` is how many times
    as long as dispatch combine takes.
    """
    *_, mine = plans
    others = {name: plans[name] for name in _ENGINES if name in plans and name != mine}
    if not others:
        return None
    ours = plans[mine]
    if ours.step_us is not None:
        name, theirs = min(((name, plan.step_us or 0.0) for name, plan in others.items()), key=lambda pair: pair[1])
        without = others["contiguous"].step_us if "contiguous" in others else None
        return _verdict_on_steps(ours.step_us, name, theirs, without)
    name, best = min(others.items(), key=lambda pair: pair[1].wire_us)
    saved = _change(ours.wire_us, best.wire_us)
    what = f"links need {ours.wire_us / 1e3:,.1f} ms for dispatch, {saved:+.1%} against the best engine rule, {name}"
    if abs(saved) < EQUAL_STEPS:
        return f"Verdict: placing does not pay on these links: {what}; {_EQUAL}."
    if saved > 0:
        return f"Verdict: {name} is better here: {what}."
    most = (1 + back) * (best.wire_us - ours.wire_us) / 1e3
    return (
        f"Verdict: {what}. That is at most {most:,.1f} ms of a step, there and back, if computation hides none of it; "
        "--step simulates the step."
    )


def _verdict_on_steps(ours: float, name: str, theirs: float, without: float | None) -> str:
    """Judge steps; where the engine's own rule does as well, say what a step takes without any map, if it is longer."""
    change = _change(ours, theirs)
    what = f"a step takes {ours / 1e3:,.1f} ms, {change:+.1%} against the best engine rule, {name}"
    longer = without is not None and _change(without, theirs) >= EQUAL_STEPS
    unmapped = f" Without a map, as contiguous, it takes {without / 1e3:,.1f} ms." if longer and without else ""
    if abs(change) < EQUAL_STEPS:
        return f"Verdict: placing does not pay here: {what}; {_EQUAL}.{unmapped}"
    if change > 0:
        return f"Verdict: {name} is better here: {what}.{unmapped}"
    return f"Verdict: placing pays here: {what}."


_EQUAL = f"differences below {EQUAL_STEPS:.0%} count as equal"


def _change(ours: float, theirs: float) -> float:
    return ours / theirs - 1 if theirs > 0 else 0.0
