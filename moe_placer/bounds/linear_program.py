"""Linear programs by the simplex method: what to minimise, rows between limits, variables of 0 or more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

__all__ = ["LinearSolution", "link_weights", "minimise"]

Floats = npt.NDArray[np.float64]

_LEAST_S = 0.01  # a limit of 0 would mean none


@dataclass(frozen=True, eq=False)
class LinearSolution:
    """What is known of a linear program.

    Attributes
    ----------
    status : str
        ``optimal``, ``infeasible``, or ``unknown`` where time ran out; without an optimum the rest is empty.
    value : float
        What was minimised.
    x : float array [variables]
    duals : float array [rows]
        What a unit more of each row's limit adds to ``value``.
    """

    status: Literal["optimal", "infeasible", "unknown"]
    value: float
    x: Floats
    duals: Floats


def link_weights(duals: Floats) -> Floats:
    """Return the weights [links], with sum 1, that duals of rows ``cost of a link - z <= ...`` [links] stand for."""
    weights = np.maximum(0.0, -duals)
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1 / max(1, len(weights)))


def minimise(
    objective: Floats, rows: sparse.csr_array, lower: Floats, upper: Floats, time_limit_s: float | None = None
) -> LinearSolution:
    """Minimise ``objective @ x`` with ``lower <= rows @ x <= upper`` and ``x >= 0`` (GLOP).

    Parameters
    ----------
    objective : float array [variables]
    rows : sparse array [rows, variables]
    lower, upper : float array [rows]
        Infinite where there is no limit.
    time_limit_s : float or None
        Seconds; None: no limit.
    """
    from ortools.linear_solver.python import model_builder_helper as glop

    model: Any = glop.ModelBuilderHelper()  # its stubs mistake shapes for types
    most = np.full(len(objective), np.inf)
    model.fill_model_from_sparse_data(np.zeros(len(objective)), most, objective, lower, upper, sparse.csr_matrix(rows))
    solver = glop.ModelSolverHelper("glop")
    if time_limit_s is not None:
        solver.set_time_limit_in_seconds(max(_LEAST_S, time_limit_s))
    solver.solve(model)
    if solver.status() != glop.SolveStatus.OPTIMAL:
        infeasible = solver.status() == glop.SolveStatus.INFEASIBLE
        return LinearSolution("infeasible" if infeasible else "unknown", np.inf, np.empty(0), np.empty(0))
    x, duals = np.array(solver.variable_values()), np.array(solver.dual_values())
    return LinearSolution("optimal", float(solver.objective_value()), x, duals)
