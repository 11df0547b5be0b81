"""Solves one instance, and prints what that took as JSON: run as a script, with the code that is to be measured.

Two functions are timed where they are looked up, so that earlier commits can be measured as well.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import moe_placer
from moe_placer.solvers.auto import Auto

__all__ = ["main"]


def main(root: str, tiny: str, file: str, time_limit_s: str) -> None:
    """Solve ``file`` by the code in ``root``, once libraries are loaded: ``tiny`` is solved first, and not counted."""
    assert Path(moe_placer.__file__).is_relative_to(root), moe_placer.__file__
    moe_placer.solve(moe_placer.load_instance(Path(tiny)), limits=moe_placer.Limits(work=0.5))
    instance = moe_placer.load_instance(Path(file))
    searched, stages = _timed_on_workers(instance.moe_layers)
    compiled = _timed(import_module("moe_placer.solve.solve"), "compile_problem", lambda *_: 0)
    network = _timed(import_module("moe_placer.verifier.check"), "read_network", lambda *_: 0)
    traffic = moe_placer.load_traffic(instance)
    limits = moe_placer.Limits(time_s=float(time_limit_s), gap=0.001, workers=1)
    cpu, wall = time.process_time(), time.monotonic()
    solution = moe_placer.solve(instance, traffic, limits=limits)
    row = {
        "layers": len(instance.moe_layers),
        "nodes": instance.cluster.nodes,
        "experts": instance.model.experts,
        "cpu_s": time.process_time() - cpu,
        "search_cpu_s": [searched.get(layer, 0.0) for layer in instance.moe_layers],
        "stages_cpu_s": sum(stage.get(1, 0.0) for stage in stages),
        "compile_cpu_s": sum(compiled.values()),
        "network_cpu_s": sum(network.values()),
        "seconds": time.monotonic() - wall,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "z": solution.objective,
        "bound": solution.bound,
        "gaps": [float(gap) for gap in solution.gaps],
        "stop": [str(stop) for stop in solution.stop],
    }
    print(json.dumps(row))  # noqa: T201


def _timed_on_workers(moe_layers: tuple[int, ...]) -> tuple[dict[int, float], list[dict[int, float]]]:
    """Time what goes to workers: the search of each layer, and what else is done for each large layer.

    Where workers compile layers, that is part of the search.
    """
    try:
        tasks = import_module("moe_placer.solve.layer_tasks")
    except ImportError:  # an earlier commit
        return _timed(Auto, "solve_layer", lambda _, task: task.layer.layer), []
    users = [import_module(f"moe_placer.solve.{name}") for name in ("warm_start", "layerwise", "group_nodes")]
    run = import_module("moe_placer.solve.layerwise")._Run
    searched = _timed(run, "_solve_here", lambda _, index, *__: moe_layers[index])
    return searched, [_timed(user, "on_each_layer", lambda *given: _is_large(given[2], tasks.VAST)) for user in users]


def _is_large(problem: Any, vast: int) -> int:
    return int(problem.replicas.sum(axis=1).max() * problem.nodes > vast)


def _timed(owner: Any, name: str, of: Callable[..., int]) -> dict[int, float]:
    """Have a function add up the CPU seconds of its calls, by what ``of`` says of their arguments."""
    spent: dict[int, float] = {}
    plain = getattr(owner, name)

    def timed(*arguments: Any) -> Any:
        before, key = time.process_time(), of(*arguments)
        result = plain(*arguments)
        spent[key] = spent.get(key, 0.0) + time.process_time() - before
        return result

    setattr(owner, name, timed)
    return spent


if __name__ == "__main__":
    main(*sys.argv[1:])
