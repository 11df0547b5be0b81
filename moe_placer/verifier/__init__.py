"""Checks a placement from its definitions alone, sharing no code with what made it."""

from moe_placer.verifier.check import verify
from moe_placer.verifier.verification import RULES, LayerCheck, Verification, Violation

__all__ = ["RULES", "LayerCheck", "Verification", "Violation", "verify"]
