"""What ``follow --json`` prints."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from moe_placer.cli.results.documented import InstanceName, documented

__all__ = ["FollowResult", "FollowRow"]


@documented
class FollowRow(TypedDict):
    """One way to follow traffic on one window."""

    way: Literal["never", "once", "replan", "history", "eplb", "vllm", "flashlb"]
    """How the plan was made from the windows before."""
    window: int
    """The window that it is measured on, from 1."""
    moves: int
    """Replicas that GPUs must load since the window before."""
    slots: int
    """Slots that are written, since they hold another expert than before; the moves where slots are kept."""
    bytes: float
    """Their weights."""
    transfers_us: float
    """Microseconds that loading them takes."""
    total_z: float
    """Sum over layers of the busiest link's cost: tokens per step at node-link speed."""
    busiest_gpu: float
    """Sum over layers of the tokens per step of the busiest GPU."""
    value: float
    """What was minimised."""


@documented
class FollowResult(TypedDict):
    """What `moe-placer follow --json` prints."""

    schema: Literal["moe-placer/follow/1"]
    """Name and version of this schema."""
    instance: InstanceName
    """What was planned for."""
    rows: list[FollowRow]
    """By way, then window."""
