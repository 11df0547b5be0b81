"""What ``gate --json`` and ``screen --json`` print."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from moe_placer.cli.results.documented import documented
from moe_placer.cli.results.verified import ViolationFound
from moe_placer.decisions.gate import GateCheck

__all__ = ["GateResult"]


@documented
class GateResult(TypedDict):
    """What `moe-placer gate --json` prints."""

    schema: Literal["moe-placer/gate/1"]
    """Name and version of this schema."""
    ok: bool
    """Whether the placement is good and all limits hold; else the exit code is 5 or 6."""
    instance: str
    """Name of the instance."""
    placement: str
    """The file."""
    verified: bool
    """Whether the placement breaks no rule; else the exit code is 5."""
    violations: list[ViolationFound]
    """Empty for a good placement."""
    checks: list[GateCheck]
    """Every limit that was given; empty where the placement breaks a rule."""
