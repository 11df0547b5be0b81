"""Measures one run in this process: reads a job on standard input, writes a row to the file named as argument."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from moe_placer.errors import MoePlacerError
from moe_placer.experiments.bench.figures import figures
from moe_placer.experiments.bench.job import Job
from moe_placer.experiments.bench.process import end_with_parent
from moe_placer.experiments.bench.recorder import Recorder, peak_memory
from moe_placer.instance import Instance, load_instance
from moe_placer.limits import Limits
from moe_placer.solve.registry import find_solver
from moe_placer.solve.solve import Progress, Solution, solve
from moe_placer.traffic import Traffic, load_traffic
from moe_placer.verifier import verify

__all__ = ["run"]

RIVALS = ("contiguous", "eplb")  # what users have today


class RivalRecorder(Recorder):
    """Also verifies the first placement that beats the rivals."""

    def __init__(self, instance: Instance, traffic: Traffic, begun: float) -> None:
        super().__init__(begun)
        self.instance, self.traffic = instance, traffic
        self.better_s: float | None = None

    def __call__(self, progress: Progress) -> None:
        """Take note of what a solve reports."""
        super().__call__(progress)
        if self.better_s is None and progress.placed == progress.layers and _beats(progress):
            found = verify(self.instance, progress.placement(), self.traffic)
            self.better_s = self.now if found.ok else None


def _beats(progress: Progress) -> bool:
    totals = [progress.baselines.get(name) for name in RIVALS]
    return all(progress.objective < total for total in totals if isinstance(total, float))


def run(job: Job) -> dict[str, Any]:
    """Run a job here and return its row."""
    limits = Limits(time_s=job.time_limit_s, gap=job.gap, workers=job.workers)
    find_solver(job.solver)  # imports count as start-up
    begun = time.monotonic()
    instance = load_instance(job.instance)
    if job.traces:
        instance = instance.with_traces(job.traces)
    traffic = load_traffic(instance)
    recorder = RivalRecorder(instance, traffic, begun)
    solution = solve(instance, traffic, solver=job.solver, limits=limits, seed=job.seed, progress=recorder)
    total = recorder.now
    return job.settings() | _facts(instance, solution) | _row(recorder, solution, job.time_limit_s, total)


def _facts(instance: Instance, solution: Solution) -> dict[str, Any]:
    key = solution.placement.instance
    return {
        "instance_sha256": key.sha256,
        "traffic_sha256": key.traffic_sha256,
        "recordings": [recording.name for recording in solution.traffic.recordings],
        "layers": len(instance.moe_layers),
        "replicas": instance.replicas_per_layer,
        "nodes": instance.cluster.nodes,
        "gpus": instance.gpus,
        "version": solution.placement.solver.version,
        "baselines": dict(solution.baselines),
    }


def _row(recorder: RivalRecorder, solution: Solution, time_limit: float, total: float) -> dict[str, Any]:
    checked, gaps = solution.verification, solution.gaps
    when = figures(recorder.events, len(checked.layers), checked.total_bound, time_limit)
    return {
        "failed": None,
        "verified": checked.ok,
        "z": checked.total_z,
        "bound": checked.total_bound,
        "bound_holds_for_any_copies": solution.placement.replicas.get("bound_covers_choice_of_copies", True),
        "proofs": dict(Counter(check.proof for check in checked.layers)),
        "gap_median": _finite(float(np.median(gaps))),
        "gap_largest": _finite(float(gaps.max())),
        "stops": dict(Counter(str(stop) for stop in solution.stop)),
        "better_s": recorder.better_s,
        **when,
        "total_s": total,
        "events": recorder.events,
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def main() -> None:
    """Run the job on standard input."""
    end_with_parent()
    content = json.load(sys.stdin)
    try:
        row = run(Job(**content | {"traces": tuple(content["traces"])}))
    except MoePlacerError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    row["largest_process_bytes"] = peak_memory()
    Path(sys.argv[1]).write_text(json.dumps(row, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main()
