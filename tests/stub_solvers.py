"""One-layer methods that keep their start, and something happens on the way.

Workers load this module, so that it has nothing beside.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from moe_placer.bounds.bounds import best_bound
from moe_placer.limits import Deadline
from moe_placer.result import LayerResult, Stop, why_stopped
from moe_placer.solve.layerwise import LayerSolver, LayerTask


class Stub(LayerSolver):
    """Keeps its start; subclasses do something on the way."""

    name, summary, source = "stub", "keeps its start", "this test"

    def __init__(self, flag: str = "") -> None:
        self.flag = flag

    def happen(self, deadline: Deadline) -> None:
        pass

    def solve_layer(self, task: LayerTask) -> LayerResult:
        self.happen(task.deadline)
        start = task.start
        assert start is not None
        return LayerResult(start.node, start.z, best_bound(task.layer), Stop.TIME, work=task.work)


class DiesOnce(Stub):
    def happen(self, deadline: Deadline) -> None:
        if not Path(self.flag).exists():
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)


class DiesAlways(Stub):
    def happen(self, deadline: Deadline) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Waits(Stub):
    def happen(self, deadline: Deadline) -> None:
        while not deadline.over:
            time.sleep(0.02)


class Raises(Stub):
    def happen(self, deadline: Deadline) -> None:
        raise RuntimeError("a defect in the solver")


class Spends(Stub):
    """Uses up the effort that it is given, and finds nothing."""

    def solve_layer(self, task: LayerTask) -> LayerResult:
        return replace(super().solve_layer(task), stop=why_stopped(task.deadline))
