"""``moe-placer replan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from moe_placer.cli.change_options import build_change, change_options, loss_content, loss_lines
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import counted, instance_argument, json_option, open_instance, trace_option, work_option
from moe_placer.cli.replan_curve import CURVE, PICTURE, curve_points, print_curve, write_curve
from moe_placer.errors import UsageError
from moe_placer.files import write_atomically

if TYPE_CHECKING:
    from moe_placer.cli.results.replanning import ReplanResult
    from moe_placer.instance import Instance
    from moe_placer.placement import Placement
    from moe_placer.replan.replan import Replanned
    from moe_placer.replan.task import Figures, Minimise

__all__ = ["replan"]

PLACEMENT = "placement.json"
TRANSFERS = "transfers.json"
INSTANCE = "instance.yaml"
FILES = {PLACEMENT, TRANSFERS, CURVE, PICTURE, INSTANCE}

EXAMPLES = """
\b
Examples:
  moe-placer replan instances/h100-128.yaml out/h100-128/placement.json --trace today.npz --max-moves 200
  moe-placer replan instances/eplb-288.yaml now.json --max-bytes 50e9 --curve -o out/next
  moe-placer replan instances/eplb-288.yaml now.json --failed-gpus 17 --slow-gpu 3=1.3 -o out/without-17
"""


@click.command(epilog=EXAMPLES)
@instance_argument
@click.argument("current", type=click.Path(path_type=Path))
@trace_option
@click.option("--max-moves", type=click.IntRange(min=0), metavar="N", help="Replicas that GPUs may load.")
@click.option("--max-bytes", type=float, metavar="B", help="Bytes of weights that may be transferred: 50e9 is 50 GB.")
@click.option("--max-seconds", type=float, metavar="T", help="Seconds that all transfers may take together.")
@click.option(
    "--max-stall", type=float, metavar="MS", help="Milliseconds that any layer's transfers may take; layers take turns."
)
@click.option(
    "--minimise",
    type=click.Choice(["links", "gpus", "time"]),
    help="Busiest links, busiest GPUs, or both as time.  [time where placement changes what GPUs compute, else links]",
)
@change_options
@click.option("--inside-nodes", is_flag=True, help="Only moves within a node, over NVLink: busiest GPUs gain.")
@click.option("--time-limit", default=4.0, show_default=True, metavar="S", help="Seconds of search.")
@click.option(
    "--fresh-time", default=10.0, show_default=True, metavar="S", help="Seconds for a plan from scratch; 0: none."
)
@click.option("--seed", default=0, show_default=True, metavar="N", help="Same seed and effort, same placement.")
@work_option
@click.option("--curve", is_flag=True, help="Also what other budgets reach, as a table, curve.json, curve.svg.")
@click.option("--step", is_flag=True, help="With --curve: simulate a step at every point of it, seconds each.")
@click.option(
    "-o", "--output", metavar="DIR", type=click.Path(path_type=Path), help="Folder to write to.  [out/NAME-replan]"
)
@json_option
def replan(
    instance: Path,
    current: Path,
    traces: tuple[Path, ...],
    max_moves: int | None,
    max_bytes: float | None,
    max_seconds: float | None,
    max_stall: float | None,
    minimise: Minimise | None,
    failed_gpus: str | None,
    failed_nodes: str | None,
    drained: str | None,
    added_nodes: int,
    slow_gpus: tuple[str, ...],
    inside_nodes: bool,
    time_limit: float,
    fresh_time: float,
    seed: int,
    work: float | None,
    curve: bool,
    step: bool,
    output: Path | None,
    json_: bool,
) -> None:
    """Improve CURRENT, the placement that runs now, on new traffic within a budget of moves.

    A move is a replica that a GPU must load. What need not move stays on its GPU, and where nothing is gained, nothing
    moves. One budget counts for all layers: each move goes to the layer where it gains most (docs/replanning.md).

    Replicas of failed and drained GPUs are restored on others first, and count as moves; instance.yaml in DIR then is
    the instance without these GPUs.
    """
    from moe_placer.limits import Limits
    from moe_placer.placement import load_placement
    from moe_placer.replan.budget import Budget
    from moe_placer.replan.fresh_plan import fresh_plan
    from moe_placer.replan.replan import replan as plan
    from moe_placer.solve.estimate import useful_workers
    from moe_placer.solve.folder import only_writer, replaced_folder

    if step and not curve:
        raise UsageError("--step simulates the points of a curve: give --curve, too")
    if fresh_time < 0:
        raise UsageError(f"--fresh-time is {fresh_time:g} s, expected 0 or more")
    budget = Budget(max_moves, max_bytes, max_seconds, max_stall)
    limits = Limits(time_s=time_limit, work=work)
    change = build_change(failed_gpus, failed_nodes, drained, added_nodes, slow_gpus)
    given, now = open_instance(instance, traces), load_placement(current)
    folder = output or Path("out") / f"{given.name}-replan"
    with only_writer(folder):
        found = plan(
            given, now, budget=budget, minimise=minimise, inside_nodes=inside_nodes, change=change, limits=limits,
            seed=seed,
        )  # fmt: skip
        opened, fresh = found.instance, None
        if fresh_time:
            scratch, slow = Limits(time_s=fresh_time, workers=useful_workers(opened)), change.slowness(opened.gpus)
            fresh = fresh_plan(opened, now, found.traffic, found.minimise, scratch, seed, slow)
        points = curve_points(found, step) if curve else []
        with replaced_folder(folder, PLACEMENT, lambda name: name in FILES) as new:
            _write(new, given, found, points)
            names = sorted(path.name for path in new.iterdir() if path.name in FILES)
    files = [folder / name for name in sorted(names, key=lambda name: name != PLACEMENT)]
    if json_:
        click.echo(as_json(_content(opened, found, fresh, points, files)))
    else:
        _print(opened, found, fresh, points, files)


def _write(folder: Path, given: Instance, found: Replanned, points: list[dict[str, Any]]) -> None:
    """Write placement and transfers, the instance where hardware changed it, and the curve where it was asked for."""
    from moe_placer.instance.writer import dump_instance

    found.placement.write(folder / PLACEMENT)
    write_atomically(folder / TRANSFERS, found.transfers.to_json())
    if found.instance is not given:
        write_atomically(folder / INSTANCE, dump_instance(found.instance))
    if points:
        write_curve(folder, found, points)


def _content(
    instance: Instance,
    found: Replanned,
    fresh: tuple[str, Placement, Figures] | None,
    points: list[dict[str, Any]],
    files: list[Path],
) -> ReplanResult:
    """Return what ``--json`` prints."""
    content = {
        "schema": "moe-placer/replan/1",
        "instance": {"name": instance.name, "sha256": instance.sha256},
        "minimise": found.minimise,
        "loss": loss_content(found.loss),
        "budget_moves": found.budget_moves,
        "bound": found.bound.value if found.bound else None,
        "migration": {
            "us": found.transfers.us,
            "bound_us": found.transfers.bound_us,
            "longest_layer_us": found.transfers.longest_layer_us,
            "transfers": len(found.transfers.transfers),
            "most_extra_experts": max(found.transfers.extra_experts.values(), default=0),
            "busiest_link_bytes": max(found.transfers.link_bytes.values(), default=0.0),
            "serving_loss_us": found.transfers.serving_loss_us,
            "gain_us": found.transfers.gain_us,
            "break_even_steps": found.transfers.break_even_steps,
            "break_even_paused_steps": found.transfers.break_even_paused_steps,
        },
        "gains": found.gains,
        "current": vars(found.before),
        "within_budget": vars(found.after),
        "fresh": None if fresh is None else {"method": fresh[0], "figures": vars(fresh[2])},
        "share_of_fresh_gain": _share(found, fresh),
        "curve": points or [vars(figures) for figures in found.curve],
        "verified": found.verification is not None and found.verification.ok,
        "seconds": found.seconds,
        "files": [str(path) for path in files],
    }
    return cast("ReplanResult", content)


def _share(found: Replanned, fresh: tuple[str, Placement, Figures] | None) -> float | None:
    """Return which share of a fresh plan's gain is reached; None where there is none to reach."""
    if fresh is None or not fresh[2].value < found.before.value:
        return None
    return (found.before.value - found.after.value) / (found.before.value - fresh[2].value)


_WORDS: dict[Literal["links", "gpus", "time"], str] = {
    "links": "busiest links",
    "gpus": "busiest GPUs",
    "time": "busiest links and GPUs, as time",
}


def _print(
    instance: Instance,
    found: Replanned,
    fresh: tuple[str, Placement, Figures] | None,
    points: list[dict[str, Any]],
    files: list[Path],
) -> None:
    for line in loss_lines(found.loss):
        click.echo(line)
    rows = [("restored" if found.loss else "current", found.before), ("within the budget", found.after)]
    rows += [(f"fresh plan ({fresh[0]})", fresh[2])] if fresh else []
    most = found.budget_moves
    allowed = "any number of moves" if most is None else f"at most {counted(most, 'move')}"
    click.echo(f"{instance.name}: {allowed}, minimising {_WORDS[found.minimise]}; verified, {found.seconds:.1f} s")
    _table(rows)
    if found.bound is not None:
        click.echo(f"No placement within the budget has less than {found.bound.value:,.1f} (re-checked) on its links.")
    share = _share(found, fresh)
    if not found.gains:
        more = "no more than that" if found.loss else "nothing"
        click.echo(f"Nothing to gain within the budget: {more} moves.")
    elif share is not None and fresh is not None:
        moved = f"{found.after.moves / fresh[2].moves:.1%}" if fresh[2].moves else "more"
        click.echo(f"{share:.1%} of the fresh plan's gain with {moved} of its moves.")
    for line in _migration_lines(found):
        click.echo(line)
    if points:
        click.echo("")
        print_curve(points)
    click.echo("Written: " + ", ".join(map(str, files)))


def _migration_lines(found: Replanned) -> list[str]:
    """Say how the weights travel, and when that is won back."""
    way = found.transfers
    if not way.transfers:
        return []
    extra = max(way.extra_experts.values(), default=0)
    more = counted(extra, "more expert")
    lines = [
        f"  {counted(len(way.transfers), 'transfer')} in {way.us / 1e3:,.3f} ms (no order of them takes less than "
        f"{way.bound_us / 1e3:,.3f} ms); at most {more} on a GPU meanwhile",
    ]
    if way.by_layer and way.longest_layer_us is not None:
        lines.append(f"  layers one after the other, the longest {way.longest_layer_us / 1e3:,.3f} ms")
    if way.link_bytes:
        link = max(way.link_bytes, key=lambda name: way.link_bytes[name])
        lines.append(f"  busiest link {link}: {way.link_bytes[link] / 1e9:,.3f} GB")
    if way.serving_loss_us is not None:
        lines.append(f"  serving loses {way.serving_loss_us / 1e3:,.3f} ms meanwhile, where weights share its links")
    if way.break_even_steps is not None and way.break_even_paused_steps is not None and way.gain_us is not None:
        steps = counted(int(way.break_even_steps), "step")
        lines.append(
            f"  a step gains {way.gain_us:,.1f} us: that is won back after {steps} (after "
            f"{way.break_even_paused_steps:,.0f} where the engine pauses for the transfers)"
        )
    elif found.gains:
        lines.append("  in time a step gains nothing: what is minimised is not all that takes time")
    return lines


def _table(rows: list[tuple[str, Figures]]) -> None:
    """Print figures: links as cost (tokens at node-link speed), GPUs in tokens, both summed over layers, per step."""
    click.echo(f"  {'':24}{'moves':>9}{'GB':>10}{'busiest links':>16}{'busiest GPUs':>15}")
    for name, one in rows:
        click.echo(f"  {name:24}{one.moves:>9,}{one.bytes / 1e9:>10,.2f}{one.total_z:>16,.1f}{one.busiest_gpu:>15,.1f}")
