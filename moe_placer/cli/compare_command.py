"""``moe-placer compare``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moe_placer.cli import log
from moe_placer.cli.interrupts import finish, listen
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import checked_executor, executor_option, gap_option, json_option, trace_option

if TYPE_CHECKING:
    from moe_placer.cli.results.simulated import CompareResult, RunCompared, RunFigures

__all__ = ["compare"]

_MEMORY_SHARE = 0.8  # of the machine's, for all runs at a time

EXAMPLES = """
\b
Examples:
  moe-placer compare instances/h100-128.yaml -o reports/2026-11-27-seed-plan
  moe-placer compare instances/dsv2-lite-128.yaml --solvers contiguous,eplb,auto \\
    --trace a1.npz --trace b1.npz --held-out a2.npz --held-out b2.npz --seeds 0,1
  moe-placer compare --config reports/2026-11-27-real-traces/config.json --find parts -o reports/mine
"""


@click.command(epilog=EXAMPLES)
@click.argument("instances", metavar="INSTANCE...", type=click.Path(path_type=Path), nargs=-1)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Run what this config.json of another comparison asks for; only --jobs, --patience, --memory, --find, "
    "--update-best-known, -o and -q apply beside it.",
)
@click.option(
    "--find",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder in which --config's instances (NAME.yaml), recordings and plans are looked for. Repeatable.  "
    "[instances, and this folder]",
)
@click.option("--solvers", metavar="A,B,C", help="Names, see `moe-placer solvers`.  [all]")
@trace_option
@click.option(
    "--held-out",
    "held_out",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Recorded routing to measure on beside what is solved for, one per domain as --trace. Repeatable.",
)
@click.option(
    "--leave-one-out",
    is_flag=True,
    help="Solve without each of an instance's recordings in turn, and measure on the one left out: on a domain that "
    "the plan has not seen.",
)
@click.option(
    "--next-window",
    is_flag=True,
    help="Measure placements of synthetic traffic also on the tokens that come next, of the same domains.",
)
@click.option(
    "--current",
    multiple=True,
    metavar="PLACEMENT",
    type=click.Path(path_type=Path),
    help="Placement file of what runs today, to count moves from; for the instance whose name it bears. Repeatable.  "
    "[the contiguous plan]",
)
@click.option("--time-limit", default=60.0, show_default=True, metavar="S", help="Seconds for each run.")
@gap_option
@click.option("--seeds", default="0", show_default=True, metavar="0,1,...", help="Seeds: one run for each.")
@click.option("--workers", default=1, show_default=True, metavar="N", type=int, help="Worker processes of each run.")
@click.option(
    "--jobs", metavar="N", type=click.IntRange(1, 1024), help="Runs at a time.  [all cores / workers; 1 times best]"
)
@executor_option
@click.option(
    "--patience",
    default=60.0,
    show_default=True,
    metavar="S",
    help="Seconds beyond its limit after which a run counts as hung.",
)
@click.option(
    "--memory",
    metavar="GB",
    type=float,
    help="Memory of a run, with all its processes, beyond which it is ended.  [80% of the machine's / jobs]",
)
@click.option(
    "--update-best-known",
    "best_known",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File of best known objectives and bounds, in which better ones are entered.",
)
@click.option("--question", metavar="TEXT", help="What the comparison is to answer, for its page.")
@click.option("-o", "--output", metavar="DIR", type=click.Path(path_type=Path), help="[reports/DATE-compare]")
@click.option("-q", "--quiet", is_flag=True, help="No progress on standard error.")
@json_option
def compare(
    jobs: int | None,
    executor: str | None,
    patience: float,
    memory: float | None,
    best_known: Path | None,
    output: Path | None,
    quiet: bool,
    json_: bool,
    **asked: Any,
) -> int:
    """Compare solvers on each INSTANCE: how good, how fast; each run verified and in a process of its own.

    Writes config.json, environment.json and results.jsonl, one row a run, and the page made from these. The same
    command again continues what was interrupted. Traces apply to instances with `traffic.kind: trace`. A solver that
    crashes, hangs or lies is a row that says so.

    What is compared is plans made once. `moe-placer follow` compares ways to re-plan over windows of drifting traffic:
    ours within a budget, EPLB from scratch, vLLM's, FlashLB, never.
    """
    from moe_placer.experiments.best_known import update_best_known
    from moe_placer.experiments.compare import compare as run
    from moe_placer.experiments.environment import describe_environment
    from moe_placer.workers import usable_cores

    checked_executor(executor)
    _require_positive("patience", patience)
    _require_positive("memory", memory)
    matrix, question = _matrix(**asked)
    _warn_of_missing_libraries()
    workers = matrix.config["parameters"]["workers"]
    environment, jobs = describe_environment(), jobs or max(1, usable_cores() // workers)
    most_bytes = 1e9 * (memory or _MEMORY_SHARE * (environment["memory_gb"] or float("inf")) / jobs)
    stop_request = listen("stopping: ending what runs; rows that are there stay (again to give up at once)")
    with _progress(log.silent(quiet, json_)) as tell:
        folder = run(
            matrix,
            output or Path("reports") / f"{environment['date']}-compare",
            question=question,
            jobs=jobs,
            patience_s=patience,
            most_bytes=most_bytes,
            tell=tell,
            stopped=stop_request,
            executor=executor,
        )
    if stop_request():
        finish()
        if json_:
            click.echo(as_json(_content(folder, False, [])))
        log.warn(f"interrupted; {folder.path} has the runs that ended before; the same command continues")
        return stop_request.exit_code
    files = [folder.file]
    if folder.shard is not None:
        log.info(f"rows are in {folder.file}; the same command without --executor gathers those of all shards")
        if json_:
            click.echo(as_json(_content(folder, True, files)))
        return _exit_code(folder)
    if best_known is not None:
        update_best_known(best_known, folder.rows, folder.environment, folder.path.resolve().name)
    if not json_:
        click.echo(files[0])
    files += _write_page(folder.path)
    for path in [] if json_ else files[1:]:
        click.echo(path)
    if json_:
        click.echo(as_json(_content(folder, True, files)))
    return _exit_code(folder)


def _matrix(
    instances: tuple[Path, ...],
    config: Path | None,
    find: tuple[Path, ...],
    solvers: str | None,
    traces: tuple[Path, ...],
    held_out: tuple[Path, ...],
    leave_one_out: bool,
    next_window: bool,
    current: tuple[Path, ...],
    time_limit: float,
    gap: float,
    seeds: str,
    workers: int,
    question: str | None,
) -> tuple[Any, str | None]:
    """Return what is to be run, from the options or from a file of another comparison, and its question."""
    from moe_placer.errors import UsageError
    from moe_placer.experiments.compare import Given, Settings, build_matrix, read_config
    from moe_placer.solve.registry import solver_names

    if config is not None:
        if instances:
            raise UsageError("instances and --config are given; --config names its own instances")
        arguments, asked = read_config(config, find or (Path("instances"), Path()))
        return build_matrix(*arguments), question or asked
    if not instances:
        raise UsageError("no INSTANCE is given, expected at least one (or --config FILE)")
    names = _names(solvers) if solvers is not None else solver_names()
    _refuse_ways(names)
    given = Given(traces, held_out, next_window, current, leave_one_out)
    return build_matrix(instances, names, _numbers(seeds), Settings(time_limit, gap, workers), given), question


def _refuse_ways(names: Sequence[str]) -> None:
    """Send who asks for a way to follow traffic to the command that compares these."""
    from moe_placer.errors import UsageError
    from moe_placer.replan.follow import WAYS
    from moe_placer.solve.registry import solver_names

    ways = [name for name in names if name in WAYS and name not in solver_names()]
    if ways:
        raise UsageError(
            f"{ways[0]} is a way to follow drifting traffic, and no solver: `moe-placer follow INSTANCE CURRENT "
            "--windows N` compares these side by side, EPLB from scratch among them"
        )


def _warn_of_missing_libraries() -> None:
    """Say before the runs, not after them, that there will be no page."""
    from moe_placer.errors import UsageError
    from moe_placer.experiments.report.report_files import require_libraries

    try:
        require_libraries()
    except UsageError as error:
        log.warn(f"the rows will be written, but no page: {error}")


def _write_page(folder: Path) -> list[Path]:
    """Make the page from the rows, and return its files; without the libraries for it, say how to make it later."""
    from moe_placer.errors import UsageError
    from moe_placer.experiments.report import write_report

    try:
        return write_report(folder)
    except UsageError as error:
        log.warn(f"no page was made: {error}; then: moe-placer report {folder}")
        return []


def _content(folder: Any, complete: bool, files: list[Path]) -> CompareResult:
    """Return what ``--json`` prints."""
    rows = [row for row in folder.rows if row["kind"] == "run"]
    return {
        "schema": "moe-placer/compare/1",
        "folder": str(folder.path),
        "complete": complete,
        "runs": [_run_content(row) for row in rows],
        "files": [str(path) for path in files],
    }


def _run_content(row: dict[str, Any]) -> RunCompared:
    traffic = row.get("traffic") or {}
    return {
        "key": row["key"],
        "instance": row["instance"],
        "solver": row["solver"],
        "seed": row["seed"],
        "status": row["status"],
        "reason": row["reason"],
        "seconds": row["seconds"]["total"],
        "gap_median": row.get("gap_median"),
        "gap_largest": row.get("gap_largest"),
        "moves": row.get("moves"),
        "solved_for": _figures(traffic.get("solved_for")),
        "held_out": _figures(traffic.get("held_out")),
    }


def _figures(metrics: dict[str, Any] | None) -> RunFigures | None:
    if metrics is None:
        return None
    return {
        "z_total": metrics["z_total"],
        "z_largest": metrics["z_largest"],
        "inter_node_tokens": metrics["inter_node_tokens"],
        "busiest_gpu_tokens": metrics["busiest_gpu_tokens"],
        "gpu_balancedness": metrics["gpu_balancedness"],
        "communication_us": metrics["communication_us"],
        "step_us": metrics["step_us"],
    }


def _exit_code(folder: Any) -> int:
    """Fail only where no run gave a placement."""
    from moe_placer.errors import NothingFoundError

    runs = [row for row in folder.rows if row["kind"] == "run"]
    return 0 if any(row["status"] == "ok" for row in runs) else NothingFoundError.exit_code


def _require_positive(name: str, value: float | None) -> None:
    from moe_placer.errors import UsageError

    if value is not None and not 0 < value < float("inf"):
        raise UsageError(f"{name} is {value:g}, expected a number above 0")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[int, ...]:
    from moe_placer.errors import UsageError

    try:
        return tuple(int(part) for part in _names(text))
    except ValueError:
        raise UsageError(f"seeds are {text!r}, expected whole numbers such as 0,1,2") from None


def _text(row: dict[str, Any]) -> str:
    run = f"{row['instance']}, {row['solver']}, seed {row['seed']}"
    if row["status"] != "ok":
        return f"{run}: {row['status'].upper()}, {row['reason']}"
    gap = "open" if row["gap_largest"] is None else f"{row['gap_largest']:.2%}"
    found = row["traffic"]["solved_for"]["z_total"]
    return f"{run}: busiest links (cost) {found:,.0f}, largest gap {gap}, {row['seconds']['total']:.1f} s"


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int, dict[str, Any] | None], None]]:
    """Give a function to tell of every row: a live bar for people, a line a run for all."""
    if quiet:
        yield lambda _done, _runs, _row: None
        return

    def say(done: int, runs: int, row: dict[str, Any] | None) -> None:
        if row is not None:
            text = f"{done}/{runs} {_text(row)}"
            log.info(text, runs=runs, done=done, key=row["key"], status=row["status"])
        elif done:
            log.info(f"continuing: {done} of {runs} runs are there", runs=runs, done=done)

    if not log.is_live():
        yield say
        return
    from rich.console import Console  # only where somebody watches
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, runs: int, row: dict[str, Any] | None) -> None:
            if row is not None:
                bar.console.print(_text(row), markup=False, soft_wrap=True)
            bar.update(task, total=runs, completed=done)

        yield show
