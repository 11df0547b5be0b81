"""The file of transfers: when which GPU sends which expert to which, on the way from one placement to another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from moe_placer.errors import InputError, Mistake
from moe_placer.files import parse_json, read_bounded

__all__ = ["SCHEMA", "DropRecord", "ReloadRecord", "TransferRecord", "Transfers", "load_transfers"]

SCHEMA = "moe-placer/transfers/1"
_MAX_BYTES = 512_000_000
_EXPECTED = "a file of transfers"
Index = Annotated[int, Field(ge=0, strict=True)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class TransferRecord(_Record):
    """The weights of one expert go from one GPU to another."""

    layer: Index = Field(description="Index in the model, dense layers counted.")
    expert: Index
    source: Index = Field(description="Global GPU id.")
    target: Index = Field(description="Global GPU id.")
    start_us: NonNegativeFloat = Field(description="Microseconds after the beginning.")
    end_us: NonNegativeFloat


class DropRecord(_Record):
    """A GPU forgets an expert."""

    layer: Index
    expert: Index
    gpu: Index
    at_us: NonNegativeFloat = Field(description="Not earlier than this, in microseconds after the beginning.")


class ReloadRecord(_Record):
    """A GPU reads an expert that no GPU has any more from where the model is stored, before everything else."""

    layer: Index
    expert: Index
    gpu: Index


class Transfers(_Record):
    """A migration from one placement to another, in time.

    Attributes
    ----------
    current_sha256, placement_sha256 : str
        `Placement.gpu_sha256` of what runs before and after.
    expert_bytes : float
        Of one expert's weights.
    us, bound_us : float
        How long it takes, and what no order of these transfers is faster than.
    by_layer : bool
        Whether layers come one after the other; then ``longest_layer_us`` is the longest of them.
    link_bytes : dict
        Bytes that cross each link between nodes; links that carry none are left out.
    extra_experts : dict
        GPU to the experts that it holds at most, beyond what it holds before and after.
    lost_gpus : tuple of int
        GPUs that failed: what they held is not there when it begins.
    reloads : tuple of ReloadRecord
        Experts that no GPU has any more. How long reading them takes is not part of ``us``.
    slow_gpus : dict
        GPU to how many times as long as others it takes to compute, in a step's time.
    serving_loss_us : float or None
        Microseconds that serving loses while weights share its links; None where that was not counted.
    gain_us : float or None
        Microseconds that the MoE layers of a step gain, each of dispatch, slowest GPU and combine in turn; None without
        a gain.
    break_even_steps, break_even_paused_steps : float or None
        Steps after which what serving loses is won back, and after which the time of all transfers is, where the engine
        pauses meanwhile.
    """

    schema_: Literal["moe-placer/transfers/1"] = Field(alias="schema")
    current_sha256: str
    placement_sha256: str
    expert_bytes: NonNegativeFloat
    us: NonNegativeFloat
    bound_us: NonNegativeFloat
    by_layer: bool = False
    longest_layer_us: NonNegativeFloat | None = None
    link_bytes: dict[str, NonNegativeFloat]
    extra_experts: dict[str, Index]
    lost_gpus: tuple[Index, ...] = ()
    reloads: tuple[ReloadRecord, ...] = ()
    slow_gpus: dict[Annotated[str, Field(pattern="^[0-9]{1,6}$")], Annotated[float, Field(ge=1)]] = {}
    serving_loss_us: NonNegativeFloat | None = None
    gain_us: float | None = None
    break_even_steps: NonNegativeFloat | None = None
    break_even_paused_steps: NonNegativeFloat | None = None
    transfers: tuple[TransferRecord, ...]
    drops: tuple[DropRecord, ...]

    def to_json(self) -> str:
        """Return the file's text, one transfer a line."""
        content = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for name in ("lost_gpus", "reloads", "slow_gpus"):
            if not content[name]:
                del content[name]
        rows = {key: content.pop(key) for key in ("transfers", "drops")}
        head = json.dumps(content, indent=1)[:-2]
        parts = [f' "{key}": [\n' + ",\n".join("  " + json.dumps(row) for row in rows[key]) + "\n ]" for key in rows]
        return head + ",\n" + ",\n".join(parts) + "\n}\n"


def load_transfers(path: str | Path) -> Transfers:
    """Read a file of transfers.

    Raises
    ------
    InputError
        Missing, not JSON, or not of this schema; every mistake is listed.
    """
    file = Path(path)
    content = parse_json(read_bounded(file, _MAX_BYTES, _EXPECTED), _EXPECTED, file)
    try:
        return Transfers.model_validate_json(json.dumps(content))
    except ValidationError as error:
        mistakes = [
            Mistake(str(one["input"])[:60], one["msg"], ".".join(map(str, one["loc"])), file) for one in error.errors()
        ]
        raise InputError(mistakes) from None
