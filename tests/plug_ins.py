"""Solvers that fail or lie, installed as another package's plug-ins."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["environment_with_plug_ins"]

_CODE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from dataclasses import replace
import numpy as np
from moe_placer.bounds.bounds import Bound
from moe_placer.result import LayerResult, Status, Stop
from moe_placer.solve.base import Solver


class Plug(Solver):
    summary = "for tests"

    def solve(self, problem, limits, seed, start, report):
        results = []
        for index in range(len(problem)):
            layer = problem.layer(index)
            node = start[index]
            results.append(self.place(layer, node))
            if self.reports:
                report(index, results[-1])
        return results

    reports = True

    def place(self, layer, node, bound=None, status=Status.FEASIBLE):
        bound = bound or Bound(0.0, "solver")
        return LayerResult(node, layer.z(node), bound, status, Stop.FINISHED)


class Silent(Plug):
    name, reports = "silent", False


class Invalid(Plug):
    name = "invalid"

    def place(self, layer, node):
        return super().place(layer, np.zeros_like(node))


class Crowded(Plug):
    name = "crowded"

    def place(self, layer, node):
        return replace(super().place(layer, node), gpu=np.full(len(node), 99))


class WrongZ(Plug):
    name = "wrong-z"

    def place(self, layer, node):
        return replace(super().place(layer, node), z=layer.z(node) / 2)


class FalseBound(Plug):
    name = "false-bound"

    def place(self, layer, node):
        weights = np.full(layer.links, 1 / layer.links)
        return super().place(layer, node, Bound(layer.z(node), "dual", weights), Status.OPTIMAL)


class AboveZ(Plug):
    name = "above-z"

    def place(self, layer, node):
        return super().place(layer, node, Bound(2 * layer.z(node), "solver"))


class Infeasible(Plug):
    name = "infeasible"

    def place(self, layer, node):
        return LayerResult(None, np.inf, Bound(0.0, "solver"), Status.INFEASIBLE, Stop.PROVED)


class Nothing(Plug):
    name = "nothing"

    def place(self, layer, node):
        return LayerResult(None, np.inf, Bound(0.0, "solver"), Status.UNKNOWN, Stop.FINISHED)


class Raises(Plug):
    name = "raises"

    def place(self, layer, node):
        raise RuntimeError("the engine in /opt/secret/place.so is broken")


class Leaves(Plug):
    name = "leaves"

    def place(self, layer, node):
        os._exit(0)


class Killed(Plug):
    name = "killed"

    def place(self, layer, node):
        os.kill(os.getpid(), signal.SIGSEGV)


class Memory(Plug):
    name = "memory"

    def place(self, layer, node):
        np.zeros(2**50)  # more than any machine has


class Hang(Plug):
    name = "hang"

    def place(self, layer, node):
        if not os.fork():
            time.sleep(600)  # a process that outlives its parent unless somebody sees to it
        time.sleep(600)


class Eats(Plug):
    name = "eats"

    def place(self, layer, node):
        held = np.ones(60_000_000)
        time.sleep(600 + held[0])


class Detaches(Plug):
    name = "detaches"

    def place(self, layer, node):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print("this is no row")
        os.system("echo nor is this")
        return super().place(layer, node)


class Short(Plug):
    name = "short"

    def place(self, layer, node):
        return replace(super().place(layer, node), node=node[1:])


class Nowhere(Plug):
    name = "nowhere"

    def place(self, layer, node):
        return replace(super().place(layer, node), node=np.full_like(node, -1))


class NoNumber(Plug):
    name = "no-number"

    def place(self, layer, node):
        return super().place(layer, node, Bound(float("nan"), "solver"))


class Word(Plug):
    name = "word"

    def place(self, layer, node):
        return super().place(layer, node, Bound(layer.z(node), "solver"), Status.OPTIMAL)


class Garbles(Plug):
    name = "garbles"

    def place(self, layer, node):
        raise RuntimeError("no \\udcff text \\x1b[31m")


class Once(Plug):
    name = "once"

    def place(self, layer, node):
        mark = Path(__file__).with_name("hung-once")
        if not mark.exists():
            mark.touch()
            time.sleep(600)
        return super().place(layer, node)


class Refuses(Plug):
    name = "refuses"

    def refuses(self, problem):
        return "it is not in the mood"


class Lacking(Plug):
    name = "lacking"

    def unavailable(self):
        return "a package is missing"


class Broken:
    def __init__(self):
        raise OSError("no licence")
"""

_CLASSES = {
    "silent": "Silent",
    "invalid": "Invalid",
    "crowded": "Crowded",
    "wrong-z": "WrongZ",
    "false-bound": "FalseBound",
    "above-z": "AboveZ",
    "infeasible": "Infeasible",
    "nothing": "Nothing",
    "raises": "Raises",
    "leaves": "Leaves",
    "killed": "Killed",
    "memory": "Memory",
    "hang": "Hang",
    "once": "Once",
    "eats": "Eats",
    "detaches": "Detaches",
    "short": "Short",
    "nowhere": "Nowhere",
    "no-number": "NoNumber",
    "word": "Word",
    "garbles": "Garbles",
    "refuses": "Refuses",
    "lacking": "Lacking",
}


def environment_with_plug_ins(folder: Path) -> dict[str, str]:
    """Install the plug-ins in a folder; return an environment whose Python finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plugs.py").write_text(_CODE)
    info = folder / "plugs-2.5.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugs\nVersion: 2.5\n")
    points = [f"{name} = plugs:{found}" for name, found in {**_CLASSES, "broken": "Broken"}.items()]
    (info / "entry_points.txt").write_text("[moe_placer.solvers]\n" + "\n".join(points) + "\n")
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *([before] if before else [])])}
