"""What the reference plan states, each statement held against figures."""

from moe_placer.experiments.plan.statements.claims import CLAIMS
from moe_placer.experiments.plan.statements.parts import PARTS
from moe_placer.experiments.plan.statements.principles import PRINCIPLES
from moe_placer.experiments.plan.statements.statement import VERDICTS, Statement

__all__ = ["STATEMENTS", "VERDICTS", "Statement"]

STATEMENTS: tuple[Statement, ...] = (*PRINCIPLES, *PARTS, *CLAIMS)
