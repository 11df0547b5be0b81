"""Checks written DAGs against instance and placement, sharing no code with what wrote them."""

from moe_placer.verifier.dags.check import DagCheck, verify_dags
from moe_placer.verifier.dags.rules import DAG_RULES, DagViolation

__all__ = ["DAG_RULES", "DagCheck", "DagViolation", "verify_dags"]
