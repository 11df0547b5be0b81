"""Compares methods: a matrix of instances, solvers and seeds, run by run, becomes verified rows."""

from moe_placer.experiments.compare.cell import Cell, Settings
from moe_placer.experiments.compare.folder import Folder
from moe_placer.experiments.compare.matrix import Given, Matrix, build_matrix
from moe_placer.experiments.compare.metrics import Flows, metrics
from moe_placer.experiments.compare.run import run_cells

__all__ = ["Cell", "Flows", "Folder", "Given", "Matrix", "Settings", "build_matrix", "metrics", "run_cells"]
