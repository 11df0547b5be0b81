"""Real packets: what the simulator's network says of all-to-alls that were sent over shaped links on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.fidelity.left_out import FailedError, LeftOutError
from benchmarks.netns.cases import METHODS, SETUPS, TRACES
from benchmarks.netns.measured import packet_rows
from benchmarks.netns.namespaces import why_not

__all__ = ["packets_by_setup"]

# Hashed uplinks draw anew each time which flow takes which spine, so the median needs more draws.
_REPEATS = {"spray": 3, "hashed": 5}


def packets_by_setup(placements: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each set-up, one for each placement and layer; all take 45 minutes, most of which is waiting.

    Parameters
    ----------
    placements : int
        How many, of all methods.

    Raises
    ------
    LeftOutError
        This machine or user cannot shape links, or the real traces are not here.
    FailedError
        The machine was too busy for links as fast as they are shaped, or the kernel refused some.
    """
    if reason := why_not():
        raise LeftOutError(reason)
    folder = Path(os.environ.get("MOE_PLACER_TRACES", Path(__file__).parents[3] / "shared" / "traces"))
    if missing := [name for name in TRACES if not (folder / name).exists()]:
        raise LeftOutError(f"no {' and no '.join(missing)} in {folder}; set MOE_PLACER_TRACES")
    for setup in SETUPS:
        try:
            yield list(packet_rows(setup, folder, repeats=_REPEATS[setup.uplinks], methods=METHODS[:placements]))
        except (RuntimeError, OSError) as error:
            raise FailedError(f"{setup.name}: {error}") from error
