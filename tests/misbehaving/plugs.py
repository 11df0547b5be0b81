"""Solvers that fail or lie, as another package would bring them; `plug_ins.py` installs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_placer.plugin import Bound, LayerProblem, LayerResult, Limits, Problem, Report, Solver, Start, Stop

Ints = npt.NDArray[np.int64]


class Plug(Solver):
    summary = "for tests"

    def solve(
        self, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
    ) -> list[LayerResult]:
        results = []
        for index in range(len(problem)):
            layer = problem.layer(index)
            node = start[index]
            results.append(self.place(layer, node))
            if self.reports:
                report(index, results[-1])
        return results

    reports = True

    def place(self, layer: LayerProblem, node: Ints, bound: Bound | None = None) -> LayerResult:
        return LayerResult(node, layer.z(node), bound or Bound(0.0, "solver"), Stop.FINISHED)


class Silent(Plug):
    name, reports = "silent", False


class Invalid(Plug):
    name = "invalid"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        return super().place(layer, np.zeros_like(node))


class Crowded(Plug):
    name = "crowded"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        return replace(super().place(layer, node), gpu=np.full(len(node), 99))


class WrongZ(Plug):
    name = "wrong-z"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        return replace(super().place(layer, node), z=layer.z(node) / 2)


class FalseBound(Plug):
    name = "false-bound"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        weights = np.full(layer.links, 1 / layer.links)
        return super().place(layer, node, Bound(layer.z(node), "dual", weights))


class AboveZ(Plug):
    name = "above-z"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        return super().place(layer, node, Bound(2 * layer.z(node), "solver"))


class Infeasible(Plug):
    name = "infeasible"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        return LayerResult(None, np.inf, Bound(0.0, "solver"), Stop.PROVED)


class Nothing(Plug):
    name = "nothing"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        return LayerResult(None, np.inf, Bound(0.0, "solver"), Stop.FINISHED)


class Raises(Plug):
    name = "raises"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        raise RuntimeError("the engine in /opt/secret/place.so is broken")


class Leaves(Plug):
    name = "leaves"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        os._exit(0)


class Killed(Plug):
    name = "killed"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        os.kill(os.getpid(), signal.SIGSEGV)


class Memory(Plug):
    name = "memory"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        np.zeros(2**50)  # more than any machine has


class Hang(Plug):
    name = "hang"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        if not os.fork():
            time.sleep(600)  # a process that outlives its parent unless somebody sees to it
        time.sleep(600)


class Eats(Plug):
    name = "eats"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        held = np.ones(60_000_000)
        time.sleep(600 + held[0])


class Detaches(Plug):
    name = "detaches"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print("this is no row")
        os.system("echo nor is this")
        return super().place(layer, node)


class Short(Plug):
    name = "short"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        return replace(super().place(layer, node), node=node[1:])


class Nowhere(Plug):
    name = "nowhere"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        return replace(super().place(layer, node), node=np.full_like(node, -1))


class NoNumber(Plug):
    name = "no-number"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        return super().place(layer, node, Bound(float("nan"), "solver"))


class Word(Plug):
    name = "word"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        return super().place(layer, node, Bound(layer.z(node), "solver"))


class Garbles(Plug):
    name = "garbles"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        raise RuntimeError("no \udcff text \x1b[31m")


class Once(Plug):
    name = "once"

    def place(self, layer: LayerProblem, node: Ints) -> LayerResult:  # type: ignore[override]
        mark = Path(__file__).with_name("hung-once")
        if not mark.exists():
            mark.touch()
            time.sleep(600)
        return super().place(layer, node)


class Refuses(Plug):
    name = "refuses"

    def refuses(self, problem: Problem) -> str:
        return "it is not in the mood"


class Lacking(Plug):
    name = "lacking"

    def unavailable(self) -> str:
        return "a package is missing"


class Broken:
    def __init__(self) -> None:
        raise OSError("no licence")
