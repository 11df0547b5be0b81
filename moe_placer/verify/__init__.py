"""Checks a placement from its definitions alone, sharing no code with what made it."""

from moe_placer.verify.verification import RULES, LayerCheck, Verification, Violation
from moe_placer.verify.verify import verify

__all__ = ["RULES", "LayerCheck", "Verification", "Violation", "verify"]
