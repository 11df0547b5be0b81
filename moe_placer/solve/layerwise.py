"""Runs a one-layer method on all layers: over processes, in rounds, within one budget.

Every round gives each layer that is not within the gap twice the effort of the round before, so layers that are done
leave their time to those that are not. A layer's result depends on its arrays, the seed and the effort only, never on
which worker was first.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from moe_placer.bounds.bounds import Bound, best_bound
from moe_placer.limits import Deadline, Limits
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.layer_part import LayerPart, part_of, with_part, without_layers
from moe_placer.result import LayerResult, Report, Stop, gap, stop_at, why_stopped
from moe_placer.solve.base import Solver, Start
from moe_placer.solve.layer_tasks import engine_for_layers, on_each_layer
from moe_placer.workers import Workers, asked_to_stop

__all__ = ["LayerSolver", "LayerTask", "improves", "is_quick", "solve_layers"]

FIRST_ROUND = 0.25  # deterministic effort per layer in the first round
_POLL_S = 0.1
_MOST_DEATHS = 8  # of workers, before what is there has to do
_MOST_TRIES = 2  # of a layer in a round
_PATIENCE_S = 5.0  # how long an interrupted worker may take to hand in its best


@dataclass(frozen=True, eq=False)
class LayerTask:
    """One layer to place, and when to stop.

    Attributes
    ----------
    layer : LayerProblem
    gap : float
        Stop when z is within this fraction of the bound: 0.001 is 0.1%.
    work : float
        Stop after so much deterministic effort, about seconds of one slow core.
    rng : numpy.random.Generator
        The only source of randomness, so that the same task gives the same result.
    start : LayerResult or None
        A result to improve. Where it has ``replicas``, its items are those of these.
    deadline : Deadline
        Stop at this point in time, or when somebody asks for the best so far.
    """

    layer: LayerProblem
    gap: float
    work: float
    rng: np.random.Generator
    start: LayerResult | None = None
    deadline: Deadline = field(default_factory=Deadline)

    @property
    def seconds(self) -> float | None:
        """Seconds left until the deadline; None where there is none."""
        return self.deadline.left if np.isfinite(self.deadline.at) else None


class LayerSolver(Solver):
    """A method that places one layer at a time; layers are tasks that take arrays and return arrays.

    Attributes
    ----------
    quick : bool
        One pass of milliseconds per layer: runs in this process, once.
    """

    quick: bool = False

    def refuses(self, problem: Problem) -> str | None:
        """Refuse objectives that are more than each layer's busiest link; one-pass methods minimise nothing anyway."""
        if problem.judge is not None and not self.quick:
            return "it minimises every layer's busiest link, and objective.take: mean counts that of every scenario"
        if problem.minimise == "layers" or self.quick:
            return None
        if problem.minimise == "layer-time":
            return "it minimises every layer's busiest link, and objective.minimise: layer-time counts GPUs, too"
        return (
            "it minimises every layer's busiest link apart, and objective.minimise: aggregate needs all layers jointly"
        )

    def place_quickly(self, problem: Problem, index: int, seed: int) -> LayerResult:
        """Place the index-th MoE layer in one pass, as a ``quick`` method does."""
        rng = np.random.default_rng((seed, index, 0))
        return self.solve_layer(LayerTask(problem.layer(index), Limits().gap, 0.0, rng))

    @abstractmethod
    def solve_layer(self, task: LayerTask) -> LayerResult:
        """Place one layer.

        Returns
        -------
        LayerResult
            Not worse than ``task.start``.
        """

    def solve(
        self, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
    ) -> list[LayerResult]:
        """Place all layers, over worker processes where that pays.

        Parameters as of `Solver.solve`.
        """
        return solve_layers(self, problem, limits, seed, start, report)


def is_quick(method: Solver) -> bool:
    """Whether the method places each layer in one pass."""
    return isinstance(method, LayerSolver) and method.quick


def improves(method: Solver) -> bool:
    """Whether the method improves on a start layer by layer, instead of one pass of its own."""
    return isinstance(method, LayerSolver) and not method.quick


def solve_layers(
    solver: LayerSolver,
    problem: Problem,
    limits: Limits,
    seed: int,
    start: Start | None,
    report: Report,
    known: Sequence[LayerResult] | None = None,
) -> list[LayerResult]:
    """Solve all layers, each as well as the limits allow; go on from ``known`` results, where there are any.

    Parameters
    ----------
    solver : LayerSolver
        Who solves a layer.
    problem : Problem
        The compiled instance.
    limits : Limits
        Time, gap, workers and deterministic effort.
    seed : int
        Of everything random.
    start : Start or None
        A result of each layer to improve on; None: none.
    report : Report
        Called with a layer (its index among MoE layers) and each better result.
    known : sequence of LayerResult or None
        Results to go on from, one per MoE layer; None: none.
    """
    # One layer's arrays at a time: those of all layers together are large.
    nodes = start if start is not None and not solver.quick else [None] * len(problem)
    best: list[LayerResult | None]
    best = [*known] if known else on_each_layer(_start_result, limits.gap, problem, nodes)
    run = _Run(solver, problem, limits, seed, best, report)
    if solver.quick:
        run.everything_here()
    elif (engine := engine_for_layers(limits, len(problem))) is None:
        run.in_rounds(run.round_here)
    else:
        with Pool(_in_worker, (solver, without_layers(problem)), engine, _MOST_TRIES) as pool:
            run.in_rounds(lambda layers, work, number: run.round_in_pool(pool, layers, work, number))
    return [result if result is not None else _nothing(limits) for result in run.best]


def _start_result(within: float, problem: Problem, index: int, node: Any) -> LayerResult | None:
    """Say what a start is worth: a layer that a quick bound shows to be good enough needs no search."""
    if node is None:
        return None
    layer = problem.layer(index)
    bound, z = best_bound(layer), layer.z(node)
    return LayerResult(node, z, bound, stop_at(gap(z, bound.value), within, Stop.WORK))


def _nothing(limits: Limits) -> LayerResult:
    return LayerResult(None, np.inf, Bound(0.0, "solver"), why_stopped(limits.deadline))


@dataclass(frozen=True, eq=False)
class _SentLayer:
    """A `LayerTask` as it travels: with what only its layer has of the problem, and the seconds left for it."""

    index: int
    part: LayerPart
    gap: float
    work: float
    rng: np.random.Generator
    start: LayerResult | None
    seconds: float


Pool = Workers[int, tuple[LayerSolver, Problem], _SentLayer, LayerResult]


def _in_worker(shared: tuple[LayerSolver, Problem], sent: _SentLayer) -> LayerResult:
    """Run in a worker process: clocks differ between processes, so the deadline comes as seconds left."""
    deadline = Deadline(time.monotonic() + sent.seconds, asked_to_stop)
    solver, common = shared
    layer = with_part(common, sent.index, sent.part).layer(sent.index)
    return solver.solve_layer(LayerTask(layer, sent.gap, sent.work, sent.rng, sent.start, deadline))


class _Run:
    """The state of one solve."""

    def __init__(
        self,
        solver: LayerSolver,
        problem: Problem,
        limits: Limits,
        seed: int,
        best: list[LayerResult | None],
        report: Report,
    ) -> None:
        self.solver, self.problem, self.limits, self.seed = solver, problem, limits, seed
        self.best, self.report = best, report
        self.deaths = 0  # of workers
        self.killed: set[int] = set()  # layers whose workers died again

    def everything_here(self) -> None:
        for index in range(len(self.problem)):
            # Quick methods always finish: they are what an interrupted or hopeless run falls back on.
            self._accept(index, self._solve_here(index, 0.0, 0))

    def in_rounds(self, run_round: Callable[[list[int], float, int], None]) -> None:
        """Repeat rounds of doubled effort until every layer is done, or the limits are reached."""
        spent, work, number = 0.0, FIRST_ROUND, 0
        for index, result in enumerate(self.best):
            if result is not None and self._done(index):
                self.report(index, result)
        waiting = [index for index in range(len(self.problem)) if not self._done(index)]
        while waiting and not self.limits.deadline.over and self.deaths < _MOST_DEATHS:
            left = self.limits.total_work - spent
            if left <= 0 and number > 0:
                break
            effort = work if number == 0 else min(work, left / len(waiting))
            run_round(waiting, effort, number)
            spent += sum(result.work for i in waiting if (result := self.best[i]) is not None)
            waiting = [i for i in waiting if not self._done(i) and i not in self.killed]
            work, number = 2 * work, number + 1
        self._stop(waiting, Stop.KILLED if self.deaths >= _MOST_DEATHS else why_stopped(self.limits.deadline))
        self._stop(self.killed, Stop.KILLED)

    def round_here(self, layers: list[int], work: float, number: int) -> None:
        for index in layers:
            if self.limits.deadline.over:
                return
            self._accept(index, self._solve_here(index, work, number))

    def round_in_pool(self, pool: Pool, layers: list[int], work: float, number: int) -> None:
        """One task per layer; what a worker had when it died is tried again, on another one.

        On an interrupt, or when time is over, workers are asked for their best, and get a moment to hand it in.
        """
        give_up = float("inf")
        for index in layers:
            pool.put(index, partial(self._sent, index, work, number))
        while pool.pending and time.monotonic() < give_up:
            for index, result in pool.take(_POLL_S):
                if result is not None:
                    self._accept(index, result)
                else:
                    self.killed.add(index)
            self.deaths = pool.deaths
            over = self.limits.deadline.over
            if over or self.deaths >= _MOST_DEATHS:
                pool.drop_queue()
            if over and give_up == float("inf"):
                pool.ask_to_stop()
                give_up = time.monotonic() + _PATIENCE_S

    def _sent(self, index: int, work: float, number: int) -> _SentLayer:
        part, rng, left = part_of(self.problem, index), self._rng(index, number), self.limits.deadline.left
        return _SentLayer(index, part, self.limits.gap, work, rng, self.best[index], left)

    def _solve_here(self, index: int, work: float, number: int) -> LayerResult:
        layer, rng = self.problem.layer(index), self._rng(index, number)
        limits, start = self.limits, self.best[index]
        return self.solver.solve_layer(LayerTask(layer, limits.gap, work, rng, start, limits.deadline))

    def _rng(self, index: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, index, number))

    def _accept(self, index: int, result: LayerResult) -> None:
        before = self.best[index]
        self.best[index] = result
        if before is None or result.z < before.z or result.best_bound > before.best_bound:
            self.report(index, result)

    def _done(self, index: int) -> bool:
        result = self.best[index]
        return result is not None and result.stop in {Stop.PROVED, Stop.GAP, Stop.FINISHED}

    def _stop(self, layers: Iterable[int], reason: Stop) -> None:
        for index in layers:
            result = self.best[index]
            if result is not None and not self._done(index):
                self.best[index] = replace(result, stop=reason)
