"""``moe-placer sweep``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from moe_placer.cli import log
from moe_placer.cli.interrupts import StopRequest, finish, listen
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import (
    checked_executor,
    executor_option,
    json_option,
    open_placed,
    sharing_option,
    trace_option,
)

if TYPE_CHECKING:
    from moe_placer.cli.results.simulated import SweepResult
    from moe_placer.experiments.sweep.shards import DonePoints
    from moe_placer.experiments.sweep.sweep import Grid, Plan
    from moe_placer.schedule.coarse_network import Sharing

__all__ = ["sweep"]

EXAMPLES = """
\b
Examples:
  # From which batch on does one plan beat the other?
  moe-placer sweep instances/h100-128.yaml out/h100-128/placement.json \\
    instances/ep8-traditional.yaml out/ep8/placement.json --tokens-per-gpu 64,256,1024,4096 -o out/batches
  # What does a cheaper fabric cost?
  moe-placer sweep instances/h100-128.yaml out/h100-128/placement.json --oversubscription 1,2,4,8
  # And under other kernels?
  moe-placer sweep instances/h100-128.yaml out/h100-128/placement.json --dispatch per-expert,per-node
"""


def _cores() -> int:
    from moe_placer.workers import usable_cores  # what runs workers takes a third of the time that --help does

    return usable_cores()


@click.command(epilog=EXAMPLES)
@click.argument(
    "files", metavar="INSTANCE PLACEMENT [INSTANCE PLACEMENT ...]", type=click.Path(path_type=Path), nargs=-1
)
@trace_option
@click.option("--phase", "phases", default="prefill", show_default=True, metavar="prefill,decode", help="One or both.")
@click.option(
    "--tokens-per-gpu", "tokens", metavar="N,...", help="Batches: tokens that start on each GPU.  [instance's]"
)
@click.option(
    "--context", "contexts", default="4096", show_default=True, metavar="N,...", help="Tokens, as in schedule."
)
@click.option(
    "--oversubscription", "overs", metavar="X,...", help="The same placement on other fat trees.  [instance's]"
)
@click.option(
    "--dispatch",
    "units",
    metavar="UNIT,...",
    help="Units that a token is sent once for: per-expert, per-gpu, per-node.  [instance's]",
)
@click.option(
    "--receive",
    "receives",
    metavar="NIC,...",
    help="NICs that receive: shared, source-rail, destination-gpu.  [instance's]",
)
@click.option(
    "--micro-batches",
    type=int,
    metavar="1|2",
    default=2,
    show_default=True,
    help="Micro-batches of a step, as in schedule.",
)
@sharing_option
@click.option("--workers", default=_cores, show_default="all cores", metavar="N", type=int, help="Processes.")
@executor_option
@click.option("-o", "--output", metavar="DIR", type=click.Path(path_type=Path), help="Write rows, page and plot there.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on standard error.")
@json_option
def sweep(
    files: tuple[Path, ...],
    traces: tuple[Path, ...],
    phases: str,
    tokens: str | None,
    contexts: str,
    overs: str | None,
    units: str | None,
    receives: str | None,
    micro_batches: int,
    sharing: Sharing,
    workers: int,
    executor: str | None,
    output: Path | None,
    quiet: bool,
    json_: bool,
) -> int:
    """Simulate the step of each PLACEMENT for every combination of batch, context, phase, fabric and kernel.

    Says which plan has the shorter step from which batch on, and which batches memory holds. The first plan is compared
    with every other one. With -o: results.jsonl, environment.json, and README.md with its plot, made from these.
    """
    from moe_placer.experiments.sweep.findings import answers
    from moe_placer.experiments.sweep.shards import DonePoints
    from moe_placer.experiments.sweep.sweep import list_points

    shard = _shard(checked_executor(executor), output)
    grid = replace(
        _grid(phases, tokens, contexts, overs, micro_batches),
        dispatches=_names(units),
        receives=_names(receives),
        sharing=sharing,
    )
    plans = _plans(files, traces, grid)
    points = list_points(plans, grid)
    started = time.monotonic()
    stop_request = listen("stopping: keeping the points that are done (again to give up)")
    done = None if output is None or shard else DonePoints(output, plans, points)
    found = _simulate(plans, points, done, workers, executor, quiet, stop_request)
    if shard and output is not None:
        return _write_shard(output, shard, plans, points, found, stop_request)
    interrupted = len(found) < len(points)
    finish()
    rows: list[Any] = list(found.values())
    if not rows:
        log.error("interrupted before any point was simulated", stop_request.exit_code)
        return stop_request.exit_code
    if json_:
        content: SweepResult = {
            "schema": "moe-placer/sweep/1",
            "answers": answers(rows),
            "points": rows,
            "complete": not interrupted,
        }
        click.echo(as_json(content))
    else:
        for line in answers(rows):
            click.echo(line[:1].upper() + line[1:])
    if output is not None:
        _write(output, rows, time.monotonic() - started, workers, json_)
    if interrupted:
        log.error(f"interrupted; {len(rows)} of {len(points)} points were simulated", stop_request.exit_code)
    elif done is not None:
        done.remove()
    return stop_request.exit_code if interrupted else 0


def _grid(phases: str, tokens: str | None, contexts: str, overs: str | None, micro_batches: int) -> Grid:
    from moe_placer.errors import UsageError
    from moe_placer.experiments.sweep.sweep import Grid
    from moe_placer.schedule.workload import Phase

    named = tuple(part.strip() for part in phases.split(",") if part.strip())
    if not named or not set(named) <= {"prefill", "decode"}:
        raise UsageError(f"--phase is {phases!r}, expected prefill, decode, or prefill,decode")
    return Grid(
        phases=cast("tuple[Phase, ...]", named),
        tokens_per_gpu=_numbers("--tokens-per-gpu", tokens) if tokens is not None else (None,),
        contexts=_numbers("--context", contexts),
        oversubscriptions=_numbers("--oversubscription", overs) if overs is not None else (None,),
        micro_batches=micro_batches,
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    from moe_placer.errors import UsageError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} is {text!r}, expected numbers with commas between them, such as 64,128") from None


def _names(text: str | None) -> tuple[str | None, ...]:
    return (None,) if text is None else tuple(part.strip() for part in text.split(","))


def _plans(files: Sequence[Path], traces: tuple[Path, ...], grid: Grid) -> list[Plan]:
    """Open and compile every pair of files."""
    from moe_placer.errors import UsageError
    from moe_placer.experiments.sweep.sweep import make_plan

    if not files or len(files) % 2:
        raise UsageError(f"{len(files)} files are given, expected pairs: INSTANCE PLACEMENT [INSTANCE PLACEMENT ...]")
    opened = [open_placed(*pair, traces) for pair in zip(files[::2], files[1::2], strict=True)]
    names = [f"{instance.name} by {placed.solver.name}" for instance, placed, _ in opened]
    # Placements of one solver are told apart by their files.
    labels = [f"{name} ({files[2 * i + 1]})" if names.count(name) > 1 else name for i, name in enumerate(names)]
    return [make_plan(*one, label, grid.kernels) for one, label in zip(opened, labels, strict=True)]


def _simulate(
    plans: Sequence[Plan],
    points: Sequence[Any],
    done: DonePoints | None,
    workers: int,
    executor: str | None,
    quiet: bool,
    stop_request: StopRequest,
) -> dict[int, dict[str, Any]]:
    """Return rows by the index of their points, in this order, as far as there are any before it is asked to stop."""
    from moe_placer.experiments.sweep.sweep import run_points

    known = {} if done is None else done.read()
    left = [index for index in range(len(points)) if index not in known]
    rows = dict(known)
    with _progress(len(points), quiet) as tell:
        for at, row in run_points(plans, [points[index] for index in left], workers, stop_request, executor):
            rows[left[at]] = {"sweep": "Sweep", **row}
            if done is not None:
                done.add({left[at]: rows[left[at]]} if len(rows) > len(known) + 1 else rows)
            tell(row)
    return {index: rows[index] for index in sorted(rows)}


def _shard(executor: str | None, output: Path | None) -> tuple[int, int] | None:
    from moe_placer.errors import UsageError
    from moe_placer.workers import find_engine

    shard = None if executor is None else find_engine(executor).shard
    if shard is not None and output is None:
        raise UsageError(f"--executor {executor} needs -o DIR, where the rows of all parts come together")
    return shard


def _write_shard(
    folder: Path,
    shard: tuple[int, int],
    plans: Sequence[Plan],
    points: Sequence[Any],
    rows: dict[int, dict[str, Any]],
    stop_request: StopRequest,
) -> int:
    """Write the rows of one part; the same command without --executor goes on from those of all parts."""
    from moe_placer.experiments.sweep.shards import write_shard

    finish()
    path = write_shard(folder, shard, plans, points, rows)
    log.info(f"{len(rows)} points in {path}; the same command without --executor gathers them", file=str(path))
    whole = len(rows) == len(range(shard[0] - 1, len(points), shard[1]))
    return 0 if whole else stop_request.exit_code


def _write(folder: Path, rows: Sequence[Any], seconds: float, workers: int, quiet: bool) -> None:
    """Write the folder; without the libraries of pages, say so after the rows are there."""
    from moe_placer.errors import UsageError
    from moe_placer.experiments.environment import describe_environment
    from moe_placer.experiments.row_files import write_rows
    from moe_placer.experiments.sweep.sweep_folder import write_page

    run = {"points": len(rows), "seconds": round(seconds, 1), "workers": workers}
    written = write_rows(folder, rows, describe_environment() | run)
    try:
        written += write_page(folder, "Steps simulated side by side")
    except UsageError as error:
        log.warn(f"no page was made: {error}")
    for path in written:
        if quiet:
            log.info(str(path), file=str(path))
        else:
            click.echo(path)


@contextmanager
def _progress(points: int, quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function to tell of every row: a live bar for people, a line a point for logs."""
    from moe_placer.experiments.sweep.findings import AXES, said

    def text(row: dict[str, Any]) -> str:
        state = ", ".join(said(field, row[field]) for field in ("phase", *AXES))
        return f"{row['plan']}, {state}: {row['latency_us'] / 1e3:,.2f} ms" + ("" if row["fits"] else ", does not fit")

    if quiet:
        yield lambda _row: None
    elif not log.is_live():
        count = [0]

        def say(row: dict[str, Any]) -> None:
            count[0] += 1
            log.info(f"{count[0]}/{points} {text(row)}", points=points, done=count[0])

        yield say
    else:
        from rich.console import Console  # only where somebody watches
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
            task = bar.add_task("", total=points)

            def show(row: dict[str, Any]) -> None:
                bar.console.print(text(row), markup=False, soft_wrap=True)
                bar.advance(task)

            yield show
