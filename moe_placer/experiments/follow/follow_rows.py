"""What the files of a report on following traffic hold: what was asked, and a row of every way and window."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["CONFIG", "CONFIG_FILE", "ROW", "FollowConfig", "FollowRecord", "FollowedRow"]

CONFIG, ROW = "moe-placer/follow-config/1", "moe-placer/follow-row/1"
CONFIG_FILE = "config.json"


class FollowRecord(BaseModel):
    """Read strictly: no further keys, no other types, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class FollowConfig(FollowRecord):
    """What was asked: `config.json`.

    Attributes
    ----------
    name : str
        Of the folder.
    instance, sha256 : str
    layers, experts, gpus : int
        MoE layers, experts of each, and GPUs of the instance.
    recordings : tuple of str
        Where the windows are from.
    minimise : str
    max_moves : int or None
        Per window.
    max_bytes : float or None
    time_limit_s : float
        Of each replan.
    work : float or None
    seed : int
    """

    schema_: Literal["moe-placer/follow-config/1"] = Field(default="moe-placer/follow-config/1", alias="schema")
    name: str
    instance: str
    sha256: str
    layers: int = Field(gt=0)
    experts: int = Field(gt=0)
    gpus: int = Field(gt=0)
    recordings: tuple[str, ...] = Field(strict=False)
    minimise: Literal["links", "gpus", "time"]
    max_moves: int | None
    max_bytes: float | None
    time_limit_s: float
    work: float | None
    seed: int


class FollowedRow(FollowRecord):
    """One way on one window: a line of `results.jsonl`, as `moe_placer.Followed` has it."""

    schema_: Literal["moe-placer/follow-row/1"] = Field(default="moe-placer/follow-row/1", alias="schema")
    way: str
    window: int = Field(ge=1)
    moves: int = Field(ge=0)
    slots: int = Field(ge=0)
    bytes: float = Field(ge=0)
    transfers_us: float = Field(ge=0)
    total_z: float = Field(ge=0)
    busiest_gpu: float = Field(ge=0)
    value: float = Field(ge=0)
