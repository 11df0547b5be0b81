"""What a run notes of itself while it goes on."""

from __future__ import annotations

import sys
import time

import numpy as np

from moe_placer.experiments.bench.figures import Event
from moe_placer.solve.progress import Progress

__all__ = ["Recorder", "peak_memory"]


class Recorder:
    """Notes every change of a layer."""

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self.events: list[Event] = []
        self._last: dict[int, tuple[float, float, float]] = {}

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.begun

    def __call__(self, progress: Progress) -> None:
        """Take note of what a solve reports."""
        now = round(self.now, 6)
        for layer, figure in enumerate(zip(progress.z, progress.bound, progress.best_bound, strict=True)):
            if np.isfinite(figure[0]) and self._last.get(layer) != figure:
                self._last[layer] = figure
                self.events.append((now, layer, *figure))


def peak_memory() -> int:
    """Return the peak bytes of the largest process: this one, or one that it waited for."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return unit * max(peaks)
