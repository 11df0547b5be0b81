"""Measures solvers side by side: how fast they are, how good, and what they need."""

from moe_placer.experiments.bench.best_known import read_best_known, update_best_known
from moe_placer.experiments.bench.environment import describe_environment
from moe_placer.experiments.bench.figures import Event, figures, primal_integral
from moe_placer.experiments.bench.growth import fitted_exponent
from moe_placer.experiments.bench.job import Job
from moe_placer.experiments.bench.measure import measure
from moe_placer.experiments.bench.page import build_page
from moe_placer.experiments.bench.report import Report

__all__ = [
    "Event",
    "Job",
    "Report",
    "build_page",
    "describe_environment",
    "figures",
    "fitted_exponent",
    "measure",
    "primal_integral",
    "read_best_known",
    "update_best_known",
]
