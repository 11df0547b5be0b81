"""The deployment as a typed graph of operations and tensors, and its drawings."""

from moe_placer.dag.build import build_dag
from moe_placer.dag.drawing_files import write_dags
from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.dag.views import VIEWS

__all__ = ["VIEWS", "Dag", "Edge", "Operation", "build_dag", "write_dags"]
