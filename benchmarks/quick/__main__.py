"""``python -m benchmarks.quick [--calls 9] [--commands]``: raw rows, one JSON object a line."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # as the command line does
    os.environ.setdefault(_variable, "1")

from benchmarks.checkouts import REPOSITORY, this_checkout  # noqa: E402
from benchmarks.kept_runs import print_row  # noqa: E402
from moe_placer import Instance, Limits, QuickPlanner, load_instance, load_traffic  # noqa: E402
from moe_placer.problem.compile import Problem, compile_problem  # noqa: E402
from moe_placer.solve.coolest_gpus import busiest_gpus  # noqa: E402
from moe_placer.solve.gpu_assignment import fit_to_gpus  # noqa: E402
from moe_placer.solve.registry import find_solver  # noqa: E402

INSTANCES = REPOSITORY / "instances"
METHODS = ("eplb", "eplb-global", "greedy")


def main() -> None:
    """Print a row for each way to plan."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quick")
    parser.add_argument("--calls", type=int, default=9, help="calls of each, of which the median counts [9]")
    parser.add_argument("--commands", action="store_true", help="the whole command too, as a process of its own")
    asked = parser.parse_args()
    for instance in (_eplb_288(), _one_slot_each(), load_instance(INSTANCES / "dsv3-320.yaml")):
        _compare(instance, asked.calls)
    if asked.commands:
        for flags in (["--solver", "eplb", "--quick"], ["--quick"], ["--solver", "eplb"]):
            _command("dsv3-320", flags, asked.calls)


def _eplb_288() -> Instance:
    return load_instance(INSTANCES / "eplb-288.yaml")


def _one_slot_each() -> Instance:
    """58 x 256 in 288 slots of as many GPUs, in 36 nodes, on the fabric of dsv3-320."""
    given = load_instance(INSTANCES / "dsv3-320.yaml").model_dump()
    given["name"], given["cluster"]["nodes"] = "dsv3-288", 36
    given["placement"]["replicas"] = {"redundant_slots": 32}
    return Instance.model_validate(given)


def _compare(instance: Instance, calls: int) -> None:
    problem = compile_problem(instance, load_traffic(instance))
    began = time.process_time()
    planner = QuickPlanner(instance)
    print_row(
        instance=instance.name, method="quick", what="once per deployment", cpu_ms=_ms(time.process_time() - began)
    )
    for what, load in (("by node", problem.demand.of(range(len(problem)))), ("in all", problem.demand.load)):
        times, plan = _timed(partial(planner.plan, load), calls)
        figures = {"z": float(plan.z.sum()), "busiest_gpus": float(plan.busiest_gpu.sum())}
        print_row(instance=instance.name, method="quick", what=f"loads {what}", **times, **figures)
    for name in METHODS:
        times, figures = _heuristic(problem, name, calls)
        print_row(instance=instance.name, method=name, what="method alone", **times, **figures)


def _heuristic(problem: Problem, name: str, calls: int) -> tuple[dict[str, Any], dict[str, float]]:
    method = find_solver(name)
    times, results = _timed(lambda: method.solve(problem, Limits(bounds=False), 0, None, lambda _a, _r: None), calls)
    results = fit_to_gpus(problem, results)
    z, busiest = sum(result.z for result in results), busiest_gpus(problem, results).sum()
    return times, {"z": float(z), "busiest_gpus": float(busiest)}


def _timed(call: Callable[[], Any], calls: int) -> tuple[dict[str, Any], Any]:
    wall, cpu, found = [], [], None
    for _ in range(calls):
        began, used = time.perf_counter(), time.process_time()
        found = call()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    return {"wall_ms": _ms(statistics.median(wall)), "cpu_ms": _ms(statistics.median(cpu)), "calls": calls}, found


def _command(name: str, flags: list[str], calls: int) -> None:
    used: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        words = ["solve", str(INSTANCES / f"{name}.yaml"), "--workers", "1", "-q", "-o", folder, *flags]
        for _ in range(min(calls, 3)):
            ran = this_checkout().run(words, Path(folder))
            if ran.code:
                raise SystemExit(ran.err)
            used.append(ran.cpu_s)
    print_row(instance=name, method=" ".join(["solve", *flags]), what="command", cpu_ms=_ms(statistics.median(used)))


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 2)


if __name__ == "__main__":
    main()
