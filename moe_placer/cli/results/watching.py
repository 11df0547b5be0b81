"""What ``watch --json`` prints."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from moe_placer.cli.results.documented import documented

__all__ = ["WatchEntry", "WatchResult"]


@documented
class WatchEntry(TypedDict):
    """A line of the journal; figures are there where a replan was made."""

    at: float
    """Seconds since 1970."""
    event: Literal["plan", "kept", "refused", "superseded"]
    """A new plan is in force, the old one stays, the recording (or the instance) is wrong, or a newer one is there."""
    reason: str
    """Why."""
    recording: NotRequired[str]
    """Name of the file or folder."""
    fingerprint: NotRequired[str]
    """SHA-256 of names, sizes and times of its files."""
    version: NotRequired[int]
    """Number of the plan."""
    gpu_sha256: NotRequired[str]
    """SHA-256 of the plan's GPUs."""
    moves: NotRequired[int]
    """Replicas that GPUs must load."""
    bytes: NotRequired[float]
    """Their weights."""
    total_z: NotRequired[list[float]]
    """Sum over layers of the busiest link's cost: of the plan in force, and of the new one."""
    nic_z: NotRequired[list[float] | None]
    """Sum over layers of the busiest NIC's cost, likewise; null where a node's NICs are one pipe."""
    busiest_gpu: NotRequired[list[float]]
    """Sum over layers of the busiest GPU's tokens per step, likewise."""
    gain_us: NotRequired[float | None]
    """Microseconds that a step gains; null where it gains none."""
    transfers_us: NotRequired[float]
    """Microseconds of all transfers."""
    serving_loss_us: NotRequired[float | None]
    """Microseconds that serving loses meanwhile, where weights share its links."""
    bound: NotRequired[float | None]
    """No plan within the budget has a smaller `total_z`; null where nothing is proved."""
    drift: NotRequired[float]
    """Share of the load that is at other experts than the plan in force was made for."""


@documented
class WatchResult(TypedDict):
    """What `moe-placer watch --json` prints when it ends."""

    schema: Literal["moe-placer/watch/1"]
    """Name and version of this schema."""
    version: int
    """Number of the plan in force."""
    placement: str
    """Its file."""
    entries: list[WatchEntry]
    """What this run added to the journal."""
