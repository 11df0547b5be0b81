"""The deployment graph down to operators: projections, scores, softmax, norms, residual adds, gate, top-k."""

from moe_placer.dag.operators.operator_builder import Attended
from moe_placer.dag.operators.operator_files import LAYER, MODEL, write_operators
from moe_placer.dag.operators.refine import refine

__all__ = ["LAYER", "MODEL", "Attended", "refine", "write_operators"]
