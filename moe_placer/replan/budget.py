"""The budget of a migration: limits on moved replicas and bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moe_placer.errors import UsageError
from moe_placer.instance import Instance
from moe_placer.instance.sizes import expert_bytes

__all__ = ["Budget"]


@dataclass(frozen=True)
class Budget:
    """Limits of a migration; None: no limit. All that are given hold.

    Attributes
    ----------
    moves : int or None
        Replicas that a GPU must load: (layer, expert, GPU) of the new placement that the current one does not have.
    bytes : float or None
        Weights to transfer.
    seconds : float or None
        How long all transfers take together.
    stall_ms : float or None
        How long the transfers of any layer take, where layers come one after the other; a limit makes them do so.

    Raises
    ------
    UsageError
        A limit is below 0 or no number.
    """

    moves: int | None = None
    bytes: float | None = None
    seconds: float | None = None
    stall_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"the budget of {name} is {value:g}, expected 0 or more")

    def most_moves(self, instance: Instance) -> int | None:
        """Return how many moves the limits on moves and bytes allow; None for any number."""
        limits = [self.moves] if self.moves is not None else []
        if self.bytes is not None:
            limits.append(math.floor(self.bytes / expert_bytes(instance)))
        return min(limits, default=None)
