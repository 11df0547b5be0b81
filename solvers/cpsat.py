"""The reference exact model, on CP-SAT.

    minimise  z
    z >= base[k] + sum over classes j, nodes n, m with affected[n, m] = k of delta[j, n, m] * x[j, n]     for every link
    k sum_n x[j, n] = replicas of class j                                                        every replica is placed
    once sum_j x[j, n] <= slots[n]                                                               slots
    sum of x[j, n] over the classes j of expert e <= together[n]                              replicas apart
    sum of x[j, n] over the classes j of expert e and the nodes n of a failure domain <= replicas - 1
    x[j, n] >= pinned items of class j on node n                                             pins

Items of one class (replicas of an expert that attract the same demand) are counted, not told apart, which leaves no
symmetry among them.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import Bound, best_bound
from moe_placer.limits import Deadline
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.replicas import count_replicas, with_replicas
from moe_placer.problem.symmetry import SymmetryClasses
from moe_placer.result import OPTIMAL_GAP, LayerResult, Stop, stop_at, why_stopped
from moe_placer.result import gap as relative_gap
from moe_placer.solve.base import says_missing
from moe_placer.solve.layerwise import LayerSolver, LayerTask
from moe_placer.solve.rounded_relaxation import AIM, from_relaxation, search_on

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

__all__ = ["CpSat", "Model", "choosing_model", "settle"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SCALE = 1e8  # integer steps in the largest cost: rounding is below 1e-6 of z for up to 200 items on a link
_POLL_S = 0.05
_LEAST_WORK = 0.1  # that the model is searched with, whatever the relaxation took
_TRADING = 0.5  # share of the effort for trades from the warm start, of models of more than so many items * nodes
_SETTLED = 400
_SEARCHED = 0.1  # effort of the search before the model of dispatch once per place
_MOST_CHOICES = 5_000  # expert, number of replicas and node: up to so many, replicas are chosen by the model


class CpSat(LayerSolver):
    """The exact model at node level, solved by CP-SAT with a complete hint."""

    name = "cpsat"
    summary = "the exact model on CP-SAT: optimal and proved, given time"
    source = "OR-Tools CP-SAT, https://developers.google.com/optimization/cp"
    exact = True

    def unavailable(self) -> str | None:
        """Say whether OR-Tools is missing."""
        return says_missing("ortools")

    def refuses(self, problem: Problem) -> str | None:
        """Refuse what couples layers, and dispatch once per place where the model of that is too large."""
        if problem.coverage:
            from moe_placer.solvers.cpsat_coverage import refuses_model  # it needs `Model`

            return refuses_model(problem) or super().refuses(problem)
        return super().refuses(problem)

    def solve_layer(self, task: LayerTask) -> LayerResult:
        """Place one layer: the rounded relaxation is its hint, later the best so far; every call searches anew."""
        layer, start, spent = task.layer, task.start, 0.0
        if layer.coverage is not None:
            return _once_per_place(task)
        replicas = start.replicas if start is not None else None
        if replicas is not None:
            layer = with_replicas(layer, replicas)
        if start is None or start.bound.weights is None:
            start, spent = from_relaxation(replace(task, layer=layer))
        if start is None:
            return Model(layer, best_bound(layer).value, None).solve(task, best_bound(layer))
        start, used = _traded(replace(task, layer=layer), replace(start, replicas=replicas))
        spent += used
        here = relative_gap(start.z, start.best_bound)
        if here <= task.gap:
            return replace(start, stop=stop_at(here, task.gap, start.stop), work=spent)
        work = max(_LEAST_WORK, task.work - spent)
        result = settle(replace(task, layer=layer, work=work, start=start))
        return replace(result, work=result.work + spent)


def _traded(task: LayerTask, start: LayerResult) -> tuple[LayerResult, float]:
    """Improve the warm start by trades with a little of the effort, where the model is large; also say what it took."""
    layer, work = task.layer, _TRADING * task.work
    if start.node is None or work <= 0 or layer.items * layer.nodes <= _SETTLED:
        return start, 0.0
    start, found = search_on(task, start, start.bound.value * (1 + AIM * task.gap), work)
    return start, found.work


def settle(task: LayerTask) -> LayerResult:
    """Search the exact model of a layer from its start, which must have a placement; replicas too, where free."""
    layer, start = task.layer, task.start
    assert start is not None
    model = choosing_model(layer, start.bound, start) or Model(layer, start.bound.value, start.node)
    return model.solve(task, start.bound)


def _once_per_place(task: LayerTask) -> LayerResult:
    """Place a layer whose tokens go once to each place, from the best placement that search finds at once."""
    from moe_placer.solvers.coverage import CoverageSolver
    from moe_placer.solvers.cpsat_coverage import settle_coverage  # it needs `Model`

    first = CoverageSolver(exact_too=False).solve_layer(replace(task, work=min(task.work, _SEARCHED)))
    if first.node is None or first.stop in {Stop.PROVED, Stop.GAP} or task.deadline.over:
        return first
    return settle_coverage(replace(task, work=max(0.0, task.work - first.work)), first)


def choosing_model(layer: LayerProblem, bound: Bound, start: LayerResult | None) -> Model | None:
    """Build the model that chooses replicas too; None where replicas are given, or choices too many."""
    if not layer.replicas_are_free or start is None or start.node is None:
        return None
    from moe_placer.solvers.cpsat_replicas import ReplicasModel, choices  # it needs `Model`

    classes = choices(layer, start.z, bound.value)
    few = len(classes.item) * layer.nodes <= _MOST_CHOICES
    return ReplicasModel(layer, classes, bound.value, start.node) if few else None


class Model:
    """The CP-SAT model of one layer, with the replicas it has; one method per constraint.

    Attributes
    ----------
    chooses_replicas : bool
        Whether how many replicas each expert has is for the model to decide.
    """

    chooses_replicas = False

    def __init__(self, layer: LayerProblem, lower: float, hint: Ints | None) -> None:
        from ortools.sat.python import cp_model  # its import takes a second

        self.layer, self.cp_model = layer, cp_model
        self.classes = self._classes()
        self.model = cp_model.CpModel()
        worst = layer.base + np.abs(layer.delta).sum(axis=(0, 1)).max(initial=0.0)
        self.start_z = largest = float(layer.z(hint)) if hint is not None else float(worst.max(initial=1.0))
        self.factor, self.slack = self._scaled(largest)
        lowest = max(0, int(np.floor(lower * self.factor - self.slack)))
        highest = int(np.ceil(largest * self.factor + self.slack if hint is not None else 4 * SCALE))
        self.z = self.model.new_int_var(min(lowest, highest), highest, "z")
        self.x = [
            [self._count_var(j, n) for n in range(layer.nodes)]  # x[j][n]
            for j in range(len(self.classes.item))
        ]
        self._place_every_replica()
        self._respect_slots()
        self._keep_replicas_apart()
        self._cover_every_link()
        self.model.minimize(self.z)
        if hint is not None:
            self._hint(hint)
            self.model.add_hint(self.z, int(np.ceil(largest * self.factor + self.slack)))

    def _scaled(self, largest: float) -> tuple[float, float]:
        """Return steps in a cost of 1, and by how many of them costs may be rounded off."""
        # Each of at most I terms on a link, and its base, is rounded by half a step.
        return SCALE / max(largest, 1e-9), 0.5 * (self.layer.items + 1)

    @property
    def covers_choices(self) -> bool:
        """Whether its bound holds for whatever number of replicas is allowed."""
        return not self.layer.replicas_are_free

    def _classes(self) -> SymmetryClasses:
        return SymmetryClasses.of_layer(self.layer)

    def _deltas(self) -> Floats:
        """Return what an item of each class adds to the links that each node touches [J, N, M]."""
        return self.layer.delta[self.classes.item]

    def _count_var(self, j: int, n: int) -> cp_model.IntVar:
        most = int(min(self.classes.count[j], self.layer.slots[n], self.layer.together[n]))
        least = int(self.classes.pinned[j, n])
        return self.model.new_int_var(least, max(least, most), f"x{j},{n}")

    def _place_every_replica(self) -> None:
        """sum_n x[j, n] = count[j]."""
        for j, row in enumerate(self.x):
            if self.classes.count[j] == 1:
                self.model.add_exactly_one(row)
            else:
                self.model.add(sum(row) == int(self.classes.count[j]))

    def _respect_slots(self) -> None:
        """sum_j x[j, n] <= slots[n]."""
        for n in range(self.layer.nodes):
            self.model.add(sum(row[n] for row in self.x) <= int(self.layer.slots[n]))

    def _keep_replicas_apart(self) -> None:
        """Sum of x[j, n] over the classes j of one expert <= together[n]."""
        expert = self.layer.expert[self.classes.item]
        for e in np.unique(expert):
            classes = np.flatnonzero(expert == e)
            for n in range(self.layer.nodes):
                if self.classes.count[classes].sum() > self.layer.together[n]:
                    self.model.add(sum(self.x[j][n] for j in classes) <= int(self.layer.together[n]))
            self._spread_over_domains(classes)

    def _spread_over_domains(self, classes: Ints) -> None:
        """Sum of x[j, n] over the classes j of one expert and nodes n of one failure domain <= its replicas - 1."""
        domain = self.layer.domain
        for d in np.unique(domain) if domain is not None else ():
            nodes = np.flatnonzero(domain == d)
            self.model.add(sum(self.x[j][n] for j in classes for n in nodes) <= self._all_but_one(classes))

    def _all_but_one(self, classes: Ints) -> Any:
        return int(self.classes.count[classes].sum()) - 1

    def _cover_every_link(self) -> None:
        """z >= base[k] + sum delta[j, n, m] x[j, n] for every link k."""
        layer = self.layer
        delta = np.rint(self._deltas() * self.factor).astype(np.int64)
        variables: list[list[cp_model.IntVar]] = [[] for _ in range(layer.links)]
        values: list[list[int]] = [[] for _ in range(layer.links)]
        for n, m in zip(*np.nonzero(layer.affected < layer.links), strict=True):
            k = layer.affected[n, m]
            variables[k] += [row[n] for row in self.x]
            values[k] += delta[:, n, m].tolist()
        for k in range(layer.links):
            base = int(np.rint(layer.base[k] * self.factor))
            load = self.cp_model.LinearExpr.weighted_sum(variables[k], values[k])
            self.model.add(load - self.z <= -base)

    def _hint(self, node: Ints) -> None:
        counts = self.classes.counts(node, self.layer.nodes)
        for row, count in zip(self.x, counts.tolist(), strict=True):
            for variable, value in zip(row, count, strict=True):
                self.model.add_hint(variable, value)

    def _read(self, solver: cp_model.CpSolver) -> tuple[LayerProblem, Ints]:
        """Return the layer with its replicas, and the node of each item."""
        counts = np.array([[solver.value(v) for v in row] for row in self.x])
        return self.layer, self.classes.place(counts, self.layer)

    def solve(self, task: LayerTask, bound: Bound) -> LayerResult:
        """Search until the gap, the deterministic effort or the deadline; ``task.layer`` is not looked at."""
        solver = self.cp_model.CpSolver()
        parameters = solver.parameters
        parameters.num_workers = 1  # layers run in parallel; one thread each keeps runs repeatable
        parameters.random_seed = int(task.rng.integers(2**31))
        parameters.relative_gap_limit = task.gap
        parameters.max_deterministic_time = task.work
        parameters.linearization_level = 2
        parameters.catch_sigint_signal = False
        if task.seconds is not None:
            parameters.max_time_in_seconds = max(0.01, task.seconds)
        status = _solve_watched(solver, self.model, task.deadline)
        return self._result(solver, status, task, bound)

    def _result(self, solver: cp_model.CpSolver, status: Any, task: LayerTask, bound: Bound) -> LayerResult:
        cp, start, gap = self.cp_model, task.start, task.gap
        work = solver.response_proto.deterministic_time
        if status == cp.INFEASIBLE and start is None:
            return LayerResult(None, np.inf, bound, Stop.PROVED, work=work)
        stop = why_stopped(task.deadline)
        own = max(0.0, (solver.best_objective_bound - self.slack) / self.factor)
        node, z, replicas = (start.node, start.z, start.replicas) if start is not None else (None, np.inf, None)
        if status in {cp.OPTIMAL, cp.FEASIBLE}:
            layer, found = self._read(solver)
            if layer.z(found) < z:
                node, z = found, layer.z(found)
                replicas = count_replicas(layer) if self.chooses_replicas else replicas
        if node is None:
            return LayerResult(None, np.inf, bound, stop, work=work)
        if not self.covers_choices:
            if relative_gap(z, own) <= max(gap, OPTIMAL_GAP):
                stop = Stop.FINISHED  # nothing better with the replicas looked at; of others, it proves nothing
            own = 0.0
        elif start is not None:
            own = max(own, start.solver_bound or 0.0)
        own = min(z, own)
        solver_bound = own if own > bound.value else None
        stop = stop_at(relative_gap(z, max(bound.value, own)), gap, stop)
        return LayerResult(node, z, bound, stop, solver_bound, replicas=replicas, work=work)


def _solve_watched(solver: cp_model.CpSolver, model: cp_model.CpModel, deadline: Deadline) -> Any:
    """Solve in a thread, and stop it when somebody interrupts: the solver's C++ code sees no Python signal."""
    status: list[Any] = []
    thread = threading.Thread(target=lambda: status.append(solver.solve(model)), daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        if deadline.interrupted():
            solver.stop_search()
    return status[0]
