"""Places a layer that counts a mean over scenarios, by a method that minimises the busiest link.

The relaxation says what each scenario's busiest link may cost where the value is least. With costs measured by these,
the busiest link over all scenarios is at 1 where that is reached: a method that gets it to ``1 + e`` has all scenarios,
and so their mean, within ``e`` (a reference point method: Wierzbicki, 1980). Later rounds measure by what they have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import Bound, best_bound
from moe_placer.bounds.scenario_relaxation import relax_judged
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.replicas import with_replicas
from moe_placer.result import LayerResult, Stop, gap, stop_at, why_stopped
from moe_placer.solve.layerwise import LayerTask

__all__ = ["place_judged"]

Floats = npt.NDArray[np.float64]

_RELAX_WORK = 3e-5  # effort of the relaxation, per item, node and scenario


def place_judged(task: LayerTask, place: Callable[[LayerTask], LayerResult]) -> LayerResult:
    """Place one layer with a judge; ``place`` places layers without.

    Returns
    -------
    LayerResult
        Not worse than ``task.start``.
    """
    given, start, spent = task.layer, task.start, 0.0
    own = given if start is None or start.replicas is None else with_replicas(given, start.replicas)
    bound, each = best_bound(own), None
    if start is not None and start.node is not None:
        bound, each = start.bound, _each(own, start.node)
    if bound.weights is None:
        relaxed, spent = relax_judged(own, task.seconds), _RELAX_WORK * own.items * own.nodes * _scenarios(own)
        if relaxed is not None:
            bound, each = best_bound(own, relaxed.weights), relaxed.each
    measured = given if each is None else _measured_by(given, each)
    inner = replace(task, layer=replace(measured, judge=None), work=max(0.0, task.work - spent), start=None)
    if start is not None and start.node is not None:
        node, replicas = start.node, start.replicas
        with_own = inner.layer if replicas is None else with_replicas(inner.layer, replicas)
        begin = LayerResult(node, with_own.z(node), Bound(0.0, "solver"), Stop.WORK, replicas=replicas)
        inner = replace(inner, start=begin)
    found = place(inner)
    result = start
    if found.node is not None:
        placed = given if found.replicas is None else with_replicas(given, found.replicas)
        z = placed.z(found.node)
        if start is None or start.node is None or z < start.z:
            result = LayerResult(found.node, z, bound, Stop.WORK, replicas=found.replicas)
    if result is None:
        return LayerResult(None, np.inf, bound, why_stopped(task.deadline), work=spent + found.work)
    stop = stop_at(gap(result.z, bound.value), task.gap, why_stopped(task.deadline))
    return replace(result, bound=bound, stop=stop, work=spent + found.work)


def _scenarios(layer: LayerProblem) -> int:
    return 1 if layer.judge is None else layer.judge.scenarios


def _each(layer: LayerProblem, node: npt.NDArray[np.int64]) -> Floats | None:
    return None if layer.judge is None else layer.judge.each(layer.cost(node))


def _measured_by(layer: LayerProblem, each: Floats) -> LayerProblem:
    """Divide the costs of every scenario by what it may cost, in units of their mean."""
    scenarios, links, mean = len(each), layer.links // len(each), float(each.mean())
    factor = np.where(each > 1e-9 * mean, mean / np.maximum(each, 1e-300), 1.0) if mean > 0 else np.ones(scenarios)
    of_affected = np.append(np.repeat(factor, links), 1.0)[layer.affected]  # what stands for no link stays 0
    return replace(layer, base=layer.base * np.repeat(factor, links), delta=layer.delta * of_affected)
