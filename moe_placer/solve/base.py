"""The contract of a solver: arrays, limits and a seed go in, one result per layer comes out.

A solver knows no file format. `tests/solvers/test_contract.py` runs every registered solver through the same suite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module

import numpy as np
import numpy.typing as npt

from moe_placer.limits import Limits
from moe_placer.problem.compile import Problem
from moe_placer.result import LayerResult, Report

__all__ = ["Solver", "Start", "refuses_coverage", "says_missing"]

Start = Sequence[npt.NDArray[np.int64] | None]  # per MoE layer, the node of each item, where there is any


class Solver(ABC):
    """A method that places all layers.

    Attributes
    ----------
    name : str
        As in ``--solver``.
    summary : str
        One line for ``moe-placer solvers``.
    source : str
        Where the method is from.
    exact : bool
        Whether it can prove optimality, given time.
    cools : bool
        Whether, unless a caller says otherwise, replicas trade GPUs after it to cool the busiest ones.
    """

    name: str
    summary: str
    source: str = ""
    exact: bool = False
    cools: bool = False

    def unavailable(self) -> str | None:
        """Say why this solver cannot run here at all (a package that is missing); None where it can."""
        return None

    def refuses(self, problem: Problem) -> str | None:
        """Say why this solver cannot serve a problem; None where it can."""
        del problem
        return None

    @abstractmethod
    def solve(
        self, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
    ) -> list[LayerResult]:
        """Place all layers, reporting better results as they come; stop at ``limits.deadline`` with the best so far.

        Parameters
        ----------
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
        """


def refuses_coverage(problem: Problem) -> str | None:
    """Say why a model of linear link costs cannot serve a problem that counts tokens once per node; None if it can."""
    if not problem.coverage:
        return None
    return "its model sends one copy per chosen expert, and placement.dispatch asks for one per place that holds any"


def says_missing(package: str) -> str | None:
    """Say that a package which a method needs is not installed; None where it is."""
    try:
        import_module(package)
    except ImportError:
        return f"the package {package} is not installed"
    return None
