"""Checks graphs of operators: taken together they are the coarse graph, and each is what the model says."""

from moe_placer.verifier.dags.operators.operator_checks import check_operator_dag, operator_dags

__all__ = ["check_operator_dag", "operator_dags"]
