"""The deployment as a typed graph of operations and tensors, and its drawings."""

from moe_placer.dag.build import build_dag
from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.dag.views import VIEWS
from moe_placer.dag.write import write_dags

__all__ = ["VIEWS", "Dag", "Edge", "Operation", "build_dag", "write_dags"]
