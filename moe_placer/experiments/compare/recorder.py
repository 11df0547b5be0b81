"""Records the events of a run: every change of a layer, CPU seconds, peak memory."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

import numpy as np

from moe_placer.experiments.compare.progress_figures import Event
from moe_placer.instance import Instance
from moe_placer.solve.progress import Progress
from moe_placer.traffic import Traffic
from moe_placer.verifier import verify

__all__ = ["Recorder", "RivalRecorder", "cpu_seconds", "peak_memory"]

RIVALS = ("contiguous", "eplb")  # what users have today


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


class RivalRecorder(Recorder):
    """Also verifies the first placement that beats the rivals, and notes in ``better_s`` when that was."""

    def __init__(self, instance: Instance, traffic: Traffic, begun: float) -> None:
        super().__init__(begun)
        self.instance, self.traffic = instance, traffic
        self.better_s: float | None = None

    def __call__(self, progress: Progress) -> None:
        """Take note of what a solve reports."""
        super().__call__(progress)
        if self.better_s is None and progress.placed == progress.layers and _beats(progress):
            with suppress(Exception):  # of a solver that lies on its way; its end is verified, and says what is wrong
                found = verify(self.instance, progress.placement(), self.traffic)
                self.better_s = self.now if found.ok else None


def _beats(progress: Progress) -> bool:
    if progress.minimise == "layer-time":  # what is told on the way is the sum of z
        return False
    totals = [progress.baselines.get(name) for name in RIVALS]
    return all(progress.objective < total for total in totals if isinstance(total, float))


def cpu_seconds() -> float:
    """Return processor seconds of this process and of all that it has waited for."""
    return sum(os.times()[:4])


def peak_memory() -> int:
    """Return the peak bytes of the largest process: this one, or one that it waited for."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return unit * max(peaks)
