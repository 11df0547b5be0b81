"""Runs one cell in this process: reads it on standard input, writes its row to the file named as argument."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from moe_placer.errors import InfeasibleError, InputError, MoePlacerError, NothingFoundError, UsageError
from moe_placer.errors import VerificationError as Refuted
from moe_placer.experiments.compare.cell import Cell
from moe_placer.experiments.compare.current_plan import contiguous_plan, count_moves, plan_of
from moe_placer.experiments.compare.metrics import metrics
from moe_placer.experiments.compare.recorder import RivalRecorder, cpu_seconds, peak_memory
from moe_placer.experiments.compare.trajectory import find_seconds, find_speed, no_seconds, trajectory
from moe_placer.experiments.process import end_with_parent, presentable
from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.problem.compile import compile_problem
from moe_placer.result import FalseBoundError
from moe_placer.solve.registry import find_solver
from moe_placer.solve.solve import Solution, solve
from moe_placer.traffic import Traffic

__all__ = ["run"]

_SHOWN = 300
_BOUND_RULES = {"bound", "solver-bound", "weights", "proof", "contradiction", "infeasible"}


def run(cell: Cell) -> dict[str, Any]:
    """Run a cell here and return its row, whatever the solver does short of ending the process."""
    method = find_solver(cell.solver)  # imports count as start-up
    begun = time.monotonic()
    instance, traffic, held_out, current = cell.open()
    recorder = RivalRecorder(instance, traffic, begun)
    limits = Limits(time_s=cell.time_limit_s, gap=cell.gap, workers=cell.workers)
    try:
        solution = solve(instance, traffic, solver=method, limits=limits, seed=cell.seed, progress=recorder)
    except (Exception, SystemExit) as error:
        status, reason = _explain(error, cell, instance, traffic)
        return cell.head() | {"status": status, "reason": _short(reason), "seconds": no_seconds(recorder.now)}
    total_s = recorder.now
    points = trajectory(recorder.events, solution.verification, total_s)
    head = {
        "status": "ok",
        "reason": None,
        "seconds": find_seconds(recorder, points, solution.verification, total_s),
        "speed": find_speed(recorder.events, solution.verification, cell.time_limit_s),
    }
    plan = plan_of(current) if current else contiguous_plan(instance, traffic)
    moves = count_moves(solution.placement, plan)
    return cell.head() | head | _facts(solution, instance, held_out) | {"moves": moves, "trajectory": points}


def _facts(solution: Solution, instance: Instance, held_out: Traffic | None) -> dict[str, Any]:
    """Return everything about a verified placement."""
    checked, placement = solution.verification, solution.placement
    recheckable = [check.proof != "solver" for check in checked.layers]
    pairs = zip(checked.layers, placement.layers, strict=True)
    # Where nothing can be derived anew, the solver's word is all there is, and is named as such.
    word = [check.bound if check.proof != "solver" else max(own.bound, own.solver_bound or 0) for check, own in pairs]
    works = np.full(instance.gpus, True)
    works[list(instance.placement.failed_gpus)] = False
    memory, gaps = checked.memory[works], solution.gaps
    return {
        "z": [check.z for check in checked.layers],
        "bound": word,
        "proof": [check.proof for check in checked.layers],
        "recheckable": recheckable,
        "memory_bound": _finite(checked.memory_bound) or None,
        "covers_copies": bool(placement.replicas.get("bound_covers_choice_of_copies", True)),
        "gap_median": _finite(float(np.median(gaps))),
        "gap_largest": _finite(float(gaps.max())),
        "stop": dict(Counter(str(stop) for stop in solution.stop)),
        "memory_bytes": {"smallest": float(memory.min()), "largest": float(memory.max())},
        "traffic": {
            "solved_for": metrics(instance, placement, solution.traffic),
            "held_out": metrics(instance, placement, held_out) if held_out else None,
        },
        "gpu": placement.model_dump(mode="json")["gpu"],
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _explain(error: BaseException, cell: Cell, instance: Instance, traffic: Traffic) -> tuple[str, str]:
    """Return status and reason of a run without a verified placement."""
    text = str(error)
    if isinstance(error, Refuted):
        status = "false bound" if error.rules and set(error.rules) <= _BOUND_RULES else "invalid"
        _, *violations = text.splitlines()
        if not violations:
            return status, text
        word = "violation" if len(error.rules) == 1 else "violations, the first"
        return status, f"the verifier found {len(error.rules):,} {word}: {violations[0].strip()}"
    if isinstance(error, FalseBoundError):
        return "false bound", text
    if isinstance(error, InfeasibleError):
        return "infeasible", text
    if isinstance(error, NothingFoundError):
        refuses = find_solver(cell.solver).refuses(compile_problem(instance, traffic))
        return ("unserved" if refuses else "nothing found"), text
    if isinstance(error, InputError | UsageError):
        return "unserved", text
    if isinstance(error, MemoryError):
        return "crashed", "out of memory"
    return "crashed", f"{type(error).__name__}: {text}" if text else type(error).__name__


def _short(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return presentable("; ".join(lines))[:_SHOWN] or "nothing was said"


def main() -> None:
    """Run the cell on standard input."""
    end_with_parent()
    content = json.load(sys.stdin)
    lists = {field: tuple(content[field]) for field in ("traces", "held_out")}
    try:
        row = run(Cell(**content | lists))
    except MoePlacerError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    row["peak_bytes"] = row["largest_process_bytes"] = peak_memory()
    row["cpu_s"] = cpu_seconds()
    Path(sys.argv[1]).write_text(json.dumps(row, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main()
