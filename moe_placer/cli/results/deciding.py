"""What ``gate --json`` and ``screen --json`` print."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from moe_placer.cli.results.documented import InstanceName, documented
from moe_placer.cli.results.verified import ViolationFound
from moe_placer.decisions.gate import GateCheck
from moe_placer.decisions.resampling import Interval
from moe_placer.decisions.screen import LayerGain, Migration
from moe_placer.schedule.coarse_network import Sharing

__all__ = ["GateResult", "ScreenResult"]


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
    sharing: Sharing | None
    """When links were shared out anew in the simulated step (`--sharing`); null where none was simulated."""


@documented
class RecordingCut(TypedDict):
    """How a recording was cut."""

    name: str
    """Name of the file."""
    kind: str
    """Into what: `windows`, `sequences`, `blocks`; `whole`: it tells nothing apart."""
    planned_on: int
    """Of these, planned on."""
    scored_on: int
    """Others, scored on."""


@documented
class ScreenResult(TypedDict):
    """What `moe-placer screen --json` prints; what is null could not be found out, for want of evidence."""

    schema: Literal["moe-placer/screen/1"]
    """Name and version of this schema."""
    verdict: str
    """`recommend_trial` (exit code 0), `not_recommended_now` (7) or `insufficient_evidence` (8)."""
    reason: str
    """Why, in a sentence."""
    instance: InstanceName
    """Model, cluster and slots."""
    min_gain: float
    """Gain in layer time from which on a trial is worth it, as a share."""
    confidence: float
    """Of all intervals, as a share."""
    recordings: list[RecordingCut]
    """How each recording was cut."""
    current: str | None
    """What runs today: `contiguous`, or the solver of the given plan."""
    solver: str | None
    """Whose plan was screened."""
    time: Interval | None
    """Gain in the time of dispatch, busiest GPU and combine, over all layers."""
    links: Interval | None
    """Gain in the time of dispatch alone."""
    gpus: Interval | None
    """Gain in the time that busiest GPUs compute."""
    layers: list[LayerGain]
    """MoE layers in order."""
    migration: Migration | None
    """What it takes to get from the current plan to the new one."""
