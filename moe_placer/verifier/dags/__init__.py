"""Checks written DAGs against instance and placement, sharing no code with what wrote them."""

from moe_placer.verifier.dags.dag_checks import DagCheck, verify_dags
from moe_placer.verifier.dags.dag_rules import DAG_RULES, DagViolation

__all__ = ["DAG_RULES", "DagCheck", "DagViolation", "verify_dags"]
