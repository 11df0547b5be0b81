"""What a solver or an executor in another package needs, under one name; docs/plugins.md shows a template that works.

These names are a contract: they keep their meaning within a minor version, and CHANGELOG.md says when one changes.
"""

from moe_placer.bounds.bounds import Bound, best_bound
from moe_placer.limits import Deadline, Limits
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.result import LayerResult, Report, Status, Stop, why_stopped
from moe_placer.solve.base import Solver, Start
from moe_placer.solve.heuristic import Heuristic, OnePass
from moe_placer.solve.layerwise import LayerSolver, LayerTask
from moe_placer.solve.registry import find_solver
from moe_placer.workers import Engine

__all__ = [
    "Bound",
    "Deadline",
    "Engine",
    "Heuristic",
    "LayerProblem",
    "LayerResult",
    "LayerSolver",
    "LayerTask",
    "Limits",
    "OnePass",
    "Problem",
    "Report",
    "Solver",
    "Start",
    "Status",
    "Stop",
    "best_bound",
    "find_solver",
    "why_stopped",
]
