"""``moe-placer bench``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import click

from moe_placer.cli.options import trace_option

__all__ = ["bench"]


EXAMPLES = """
\b
Examples:
  moe-placer bench instances/h100-128.yaml --time-limit 60 --workers 2
  moe-placer bench instances/dsv2-lite-128.yaml --trace intent.npz --trace summary.npz --solver auto
"""


@click.command(epilog=EXAMPLES)
@click.argument("instances", metavar="INSTANCE...", type=click.Path(path_type=Path), nargs=-1, required=True)
@trace_option
@click.option(
    "--solver", "solvers", multiple=True, metavar="NAME", help="Repeatable.  [auto, greedy, eplb, contiguous]"
)
@click.option("--time-limit", default=60.0, show_default=True, metavar="S", help="Seconds for each run.")
@click.option("--gap", default=0.001, show_default=True, metavar="G", help="Done within this of the bound: 0.01 is 1%.")
@click.option("--workers", default=1, show_default=True, metavar="N", type=int, help="Worker processes of each run.")
@click.option("--repeat", default=1, show_default=True, metavar="R", type=click.IntRange(1), help="Seeds 0 to R - 1.")
@click.option(
    "-o", "--output", metavar="DIR", type=click.Path(path_type=Path), help="Folder to write to.  [reports/DATE-bench]"
)
@click.option(
    "--update-best-known", "best_known", metavar="FILE", type=click.Path(path_type=Path), help="Enter what beats FILE."
)
def bench(
    instances: tuple[Path, ...],
    traces: tuple[Path, ...],
    solvers: tuple[str, ...],
    time_limit: float,
    gap: float,
    workers: int,
    repeat: int,
    output: Path | None,
    best_known: Path | None,
) -> int:
    """Measure solvers side by side on each INSTANCE: times to placements and proof, memory, growth.

    Every run has a process of its own. Writes rows.jsonl, environment.json and README.md; a folder of the same machine
    and commit is continued. Traces apply to instances with `traffic.kind: trace`.
    """
    from moe_placer.errors import NothingFoundError
    from moe_placer.experiments.bench import Report, describe_environment, measure, update_best_known
    from moe_placer.limits import Limits

    Limits(time_s=time_limit, gap=gap, workers=workers)  # refuses what makes no sense
    jobs = _jobs(
        instances, traces, solvers or ("auto", "greedy", "eplb", "contiguous"), time_limit, gap, workers, repeat
    )
    environment = describe_environment()
    report = Report(output or Path("reports") / f"{environment['date']}-bench", environment)
    new: list[dict[str, Any]] = []
    for number in (signal.SIGINT, signal.SIGTERM):  # so that a run ends with this command, even one in the background
        signal.signal(number, signal.default_int_handler)
    try:
        for job in jobs:
            new.append(measure(job))
            report.add(new[-1])
            click.echo(_text(new[-1]), err=True)
    except KeyboardInterrupt:
        click.echo(f"moe-placer: interrupted; {report.folder} has the runs that ended before", err=True)
        return 130
    if best_known is not None:
        update_best_known(best_known, new, report.environment, report.folder.resolve().name)
    click.echo(report.folder / "README.md")
    return NothingFoundError.exit_code if all(row["failed"] for row in new) else 0


def _jobs(
    instances: tuple[Path, ...],
    traces: tuple[Path, ...],
    solvers: tuple[str, ...],
    time_limit: float,
    gap: float,
    workers: int,
    repeat: int,
) -> list[Any]:
    """List all runs; what is wrong with an instance or a name is said before the first of them."""
    from moe_placer.experiments.bench import Job
    from moe_placer.instance import load_instance
    from moe_placer.solve.registry import find_solver

    for name in solvers:
        find_solver(name)
    jobs = []
    for path in instances:
        instance = load_instance(path)
        given = tuple(map(str, traces)) if instance.traffic.kind == "trace" else ()
        jobs += [
            Job(str(path), instance.name, given, solver, time_limit, gap, workers, seed, seed + 1)
            for solver in solvers
            for seed in range(repeat)
        ]
    return jobs


def _text(row: dict[str, Any]) -> str:
    run = f"{row['instance']}, {row['solver']}, run {row['repeat']}"
    if row["failed"]:
        return f"{run}: FAILED, {row['failed']}"
    gap = "open" if row["gap_largest"] is None else f"{row['gap_largest']:.2%}"
    return f"{run}: z {row['z']:,.0f}, bound {row['bound']:,.0f}, largest gap {gap}, {row['total_s']:.1f} s"
