"""The reference exact model of `cpsat`, as a mixed-integer program on HiGHS through OR-Tools' MathOpt.

HiGHS's Python package and OR-Tools each bring their own HiGHS and clash in one process; MathOpt's works beside CP-SAT.
"""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moe_placer.bounds import Bound, best_bound, link_matrix, relax
from moe_placer.kinds import Kinds
from moe_placer.problem import LayerProblem
from moe_placer.result import OPTIMAL_GAP, LayerResult, Status, Stop
from moe_placer.result import gap as relative_gap
from moe_placer.solver import Deadline, LayerSolver

if TYPE_CHECKING:
    from ortools.math_opt.python import mathopt

__all__ = ["Mip"]

Ints = npt.NDArray[np.int64]
