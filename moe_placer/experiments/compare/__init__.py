"""Compares methods: a matrix of instances, solvers and seeds, each run in a process of its own, as rows in a folder."""

from moe_placer.experiments.compare.cell import Cell, Settings
from moe_placer.experiments.compare.comparison import compare
from moe_placer.experiments.compare.config import read_config
from moe_placer.experiments.compare.matrix import Given, Matrix, build_matrix
from moe_placer.experiments.compare.row_store import Folder
from moe_placer.experiments.compare.run import run_cells

__all__ = ["Cell", "Folder", "Given", "Matrix", "Settings", "build_matrix", "compare", "read_config", "run_cells"]
