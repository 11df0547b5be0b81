"""How far the simulation of a long step is, on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable

from moe_placer.cli import log

__all__ = ["telling_progress"]

_FIRST, _EVERY = 5.0, 10.0  # s


def telling_progress(json_result: bool, clock: Callable[[], float] = time.monotonic) -> Callable[[float], None] | None:
    """Return what says, in a line every 10 s once 5 s are over, which share of a step is simulated.

    Parameters
    ----------
    json_result : bool
        Whether the result is JSON: then there is no progress, unless logs are JSON too.
    clock : callable
        Tells the time, s.
    """
    if log.silent(False, json_result):
        return None
    began = clock()
    due = [began + _FIRST]

    def tell(share: float) -> None:
        now = clock()
        if now >= due[0]:
            due[0] = now + _EVERY
            log.info(
                f"{share:.0%} of the operations of the step are simulated, after {now - began:,.0f} s", share=share
            )

    return tell
