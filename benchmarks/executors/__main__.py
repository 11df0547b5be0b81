"""``python -m benchmarks.executors [EXECUTOR ...] [--solves 1000]``: raw rows, one JSON object a line.

Every task solves and verifies one layer of the reference plan with a seed of its own. What a worker spends in it counts
as solving; all other time of the workers, from where the first task begins to where the last one ends, is what the
executor costs.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import NamedTuple

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # as the command line does
    os.environ.setdefault(_variable, "1")

from benchmarks.checkouts import REPOSITORY  # noqa: E402
from benchmarks.kept_runs import print_row  # noqa: E402
from moe_placer import Instance, Limits, Traffic, load_instance, load_traffic, solve  # noqa: E402
from moe_placer.workers import run_each, stated_workers  # noqa: E402

PLAN = REPOSITORY / "instances" / "h100-128.yaml"
EXECUTORS = ("processes:2", "dask:local:2")


class Shared(NamedTuple):
    """The data that each worker is sent once."""

    instance: Instance
    traffic: Traffic
    limits: Limits


class Solved(NamedTuple):
    """Of one task: its process, when it began and ended, its CPU seconds, and what it found."""

    process: int
    began: float
    ended: float
    cpu_s: float
    z: float


def main() -> None:
    """Print a row for each executor."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.executors")
    parser.add_argument("executors", nargs="*", default=EXECUTORS, metavar="EXECUTOR")
    parser.add_argument("--solves", type=int, default=1000, help="how many [1000]")
    parser.add_argument("--work", type=float, default=0.2, help="deterministic effort of each [0.2]")
    asked = parser.parse_args()
    instance = _one_layer()
    shared = Shared(instance, load_traffic(instance), Limits(time_s=600, work=asked.work))
    for executor in asked.executors:
        _measure(executor, shared, asked.solves)


def _one_layer() -> Instance:
    given = load_instance(PLAN).model_dump()
    given["model"] |= {"layers": 2, "dense_layers": [0]}
    return Instance.model_validate(given)


def solve_one(shared: Shared, seed: int) -> Solved:
    """Solve in a worker."""
    began, used = time.time(), time.process_time()
    solution = solve(shared.instance, shared.traffic, limits=shared.limits, seed=seed)
    return Solved(os.getpid(), began, time.time(), time.process_time() - used, solution.verification.total_z)


def _measure(executor: str, shared: Shared, count: int) -> None:
    begun = time.time()
    found = dict(run_each(solve_one, shared, range(count), 1024, executor=executor))
    all_s = time.time() - begun
    workers = stated_workers(executor) or len({solved.process for solved in found.values()})
    first, last = min(solved.began for solved in found.values()), max(solved.ended for solved in found.values())
    solving = sum(solved.ended - solved.began for solved in found.values())
    paid = workers * (last - first)
    print_row(
        executor=executor,
        solves=len(found),
        workers=workers,
        seconds=round(all_s, 3),
        seconds_to_start=round(first - begun, 3),
        solving_share=round(solving / paid, 4),
        overhead_ms_per_task=round(1e3 * (paid - solving) / len(found), 3),
        solve_ms=round(1e3 * solving / len(found), 2),
        solve_cpu_ms=round(1e3 * sum(solved.cpu_s for solved in found.values()) / len(found), 2),
        sum_of_z=round(sum(solved.z for solved in found.values()), 6),
    )


if __name__ == "__main__":
    main()
