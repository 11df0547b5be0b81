"""``moe-placer follow``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from moe_placer.cli import log
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import (
    checked_executor,
    counted,
    executor_option,
    instance_argument,
    json_option,
    open_instance,
    trace_option,
    work_option,
)
from moe_placer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moe_placer.cli.results.following import FollowResult
    from moe_placer.instance import Instance
    from moe_placer.replan.follow import Followed
    from moe_placer.replan.task import Minimise

__all__ = ["follow"]

EXAMPLES = """
\b
Examples:
  moe-placer follow instance.yaml placement.json --trace day.npz --windows 9 --max-moves 200
  moe-placer follow instance.yaml placement.json --window mon.npz --window tue.npz --way replan --way eplb
"""


@click.command(epilog=EXAMPLES)
@instance_argument
@click.argument("current", type=click.Path(path_type=Path))
@trace_option
@click.option("--windows", type=int, metavar="N", help="Cut the traffic into N windows, in the order of its tokens.")
@click.option(
    "--window",
    "files",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Or: a recording per window, in the order of time. Repeatable.",
)
@click.option(
    "--way",
    "ways",
    multiple=True,
    type=click.Choice(["never", "once", "replan", "history", "eplb", "vllm", "flashlb"]),
    help="Only these ways. Repeatable.  [all that know the instance]",
)
@click.option("--max-moves", type=click.IntRange(min=0), metavar="N", help="Replicas that GPUs may load per window.")
@click.option("--max-bytes", type=float, metavar="B", help="Bytes of weights that may be transferred per window.")
@click.option("--minimise", type=click.Choice(["links", "gpus", "time"]), help="What is minimised, as for `replan`.")
@click.option("--time-limit", default=4.0, show_default=True, metavar="S", help="Seconds of search per replan.")
@work_option
@executor_option
@click.option("--seed", default=0, show_default=True, metavar="N", help="Same seed and effort, same plans.")
@click.option(
    "-o", "--output", metavar="DIR", type=click.Path(path_type=Path), help="Folder to write rows and page to."
)
@json_option
def follow(
    instance: Path,
    current: Path,
    traces: tuple[Path, ...],
    windows: int | None,
    files: tuple[Path, ...],
    ways: tuple[str, ...],
    max_moves: int | None,
    max_bytes: float | None,
    minimise: Minimise | None,
    time_limit: float,
    work: float | None,
    executor: str | None,
    seed: int,
    output: Path | None,
    json_: bool,
) -> None:
    """Compare ways to follow drifting traffic: never, once, within a budget of moves, EPLB, vLLM's, or FlashLB.

    The plan for a window is made from the windows before it, starting from CURRENT. What it costs there and the moves
    that it needed are summed up over the windows, beside what is left of a plan's gain after 1, 2, 4 and 8 windows.

    With -o: config.json, environment.json and results.jsonl, and the page that `moe-placer report` makes of them.
    """
    from moe_placer.experiments.report.report_files import require_libraries
    from moe_placer.limits import Limits
    from moe_placer.placement import load_placement
    from moe_placer.problem.compile import compile_problem
    from moe_placer.replan.budget import Budget
    from moe_placer.replan.follow import follow as compare
    from moe_placer.replan.task import default_goal
    from moe_placer.traffic import cut_in_windows, load_traffic

    if bool(files) == (windows is not None):
        raise UsageError("give either --windows N or a --window FILE for each window")
    checked_executor(executor)
    if output is not None:
        require_libraries()
    opened, now = open_instance(instance, traces), load_placement(current)
    if windows is not None:
        parts = cut_in_windows(load_traffic(opened), windows)
    else:
        parts = [load_traffic(opened.with_traces([file])) for file in files]
    limits = Limits(time_s=time_limit, work=work, bounds=False)
    rows = compare(
        opened, now, parts, ways=ways or None, budget=Budget(max_moves, max_bytes), minimise=minimise,
        limits=limits, seed=seed, executor=executor,
    )  # fmt: skip
    if output is not None:
        names = [file.name for file in files] or [one.name.split(", window ")[0] for one in parts[0].recordings]
        asked = {"max_moves": max_moves, "max_bytes": max_bytes, "time_limit_s": time_limit, "work": work, "seed": seed}
        minimised = minimise or default_goal(opened, compile_problem(opened, parts[0]), False)
        _write(output, opened, rows, {**asked, "minimise": minimised, "recordings": names})
    if json_:
        click.echo(as_json(_content(opened, rows)))
    else:
        _print(opened, rows)


def _write(folder: Path, instance: Instance, rows: Sequence[Followed], asked: Mapping[str, Any]) -> None:
    """Write rows and what was asked, and the page that is made from them."""
    from moe_placer.experiments.follow.follow_folder import write_followed
    from moe_placer.experiments.follow.follow_rows import FollowConfig
    from moe_placer.experiments.report.report_files import write_report

    sizes = {"layers": len(instance.moe_layers), "experts": instance.model.experts, "gpus": instance.gpus}
    named = {"name": folder.resolve().name, "instance": instance.name, "sha256": instance.sha256}
    write_followed(folder, FollowConfig.model_validate({**named, **sizes, **asked}), rows)
    for file in write_report(folder):
        log.info(f"wrote {file}")


def _content(instance: Instance, rows: Sequence[Followed]) -> FollowResult:
    content = {
        "schema": "moe-placer/follow/1",
        "instance": {"name": instance.name, "sha256": instance.sha256},
        "rows": [row.plain() for row in rows],
    }
    return cast("FollowResult", content)


def _print(instance: Instance, rows: Sequence[Followed]) -> None:
    from moe_placer.replan.follow import gain_kept

    of_way: dict[str, list[Followed]] = {}
    for row in rows:
        of_way.setdefault(row.way, []).append(row)
    count = len(next(iter(of_way.values())))
    click.echo(f"{instance.name}: {count} windows, each planned for from those before it; sums over windows and layers")
    click.echo(
        f"  {'':10}{'moves':>10}{'slots':>10}{'GB':>10}{'transfers, ms':>16}{'busiest links':>18}"
        f"{'busiest GPUs':>16}{'cost':>10}"
    )
    base = sum(row.figures.value for row in of_way["never"]) if "never" in of_way else None
    for way, own in of_way.items():
        value = sum(row.figures.value for row in own)
        cost = f"{value / base - 1:+.1%}" if base else ""
        click.echo(
            f"  {way:10}{sum(r.figures.moves for r in own):>10,}{sum(r.slots for r in own):>10,}"
            f"{sum(r.figures.bytes for r in own) / 1e9:>10,.1f}"
            f"{sum(r.transfers_us for r in own) / 1e3:>16,.1f}{sum(r.figures.total_z for r in own):>18,.0f}"
            f"{sum(r.figures.busiest_gpu for r in own):>16,.0f}{cost:>10}"
        )
    kept = gain_kept({way: [row.figures.value for row in own] for way, own in of_way.items()})
    if kept:
        click.echo("What is left of the gain of replanning for every window, where it was done once:")
    for after, share in kept.items():
        said = f"{share:.0%}" if share is not None else "replanning gained nothing here"
        click.echo(f"  after {counted(after, 'window')}: {said}")
