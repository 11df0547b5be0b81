"""All layers at once, in the time that a balancer in an engine has: greedy on links, even on GPUs, then trades."""

from __future__ import annotations

import numpy as np

from moe_placer.limits import Limits
from moe_placer.problem.compile import Problem
from moe_placer.result import LayerResult, Report
from moe_placer.solve.base import Start, refuses_coverage
from moe_placer.solve.heuristic import OnePass, gpu_result, heuristic_result
from moe_placer.solve.quick_plan import Placed, layers_per_batch, place_at_once

__all__ = ["Quick"]


class Quick(OnePass):
    """Hottest replica first, in all layers at once, each to the node whose links stay coolest; then trades."""

    name = "quick"
    summary = "all layers at once: coolest links, even GPUs, a few trades; milliseconds"
    source = "Graham's LPT rule (1969) on links and GPUs, then exchanges"

    def refuses(self, problem: Problem) -> str | None:
        """Refuse dispatch once per node or GPU: its costs are sums over replicas."""
        reason = refuses_coverage(problem)
        return reason and f"{reason}; the solver affinity is quick, too"

    def place_layer(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place one layer."""
        return self._results(problem, slice(index, index + 1), int(rng.integers(2**31)))[0]

    def solve(
        self, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
    ) -> list[LayerResult]:
        """Place all layers, as many at once as memory allows; limits and start do not matter.

        Parameters as of `Solver.solve`.
        """
        del limits, start
        results: list[LayerResult] = []
        step = layers_per_batch(problem)
        for first in range(0, len(problem), step):
            for result in self._results(problem, slice(first, min(first + step, len(problem))), seed):
                results.append(result)
                report(len(results) - 1, result)
        return results

    def _results(self, problem: Problem, rows: slice, seed: int) -> list[LayerResult]:
        placed = place_at_once(
            problem, problem.demand.of(range(len(problem))[rows]), problem.replicas[rows], rows.start, seed
        )
        return [_result(problem, index, placed, index - rows.start, seed) for index in range(rows.start, rows.stop)]


def _result(problem: Problem, index: int, placed: Placed, row: int, seed: int) -> LayerResult:
    layer, rng = problem.layer(index), np.random.default_rng((seed, index))
    node, gpu = placed.node[row, : layer.items], placed.gpu[row, : layer.items]
    if (gpu < 0).any():
        return heuristic_result(layer, node, rng)
    return gpu_result(problem, layer, gpu, rng)
