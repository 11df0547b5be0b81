"""``moe-placer evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moe_placer.cli import log
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import (
    check_sharing_asked,
    json_option,
    open_instance,
    placed_arguments,
    shared_lines,
    sharing_option,
)

if TYPE_CHECKING:
    from rich.table import Table

    from moe_placer.cli.results.evaluated import EvaluateResult, PlanCost
    from moe_placer.decisions.evaluate import Evaluation, PlanCosts
    from moe_placer.schedule.coarse_network import Sharing

__all__ = ["evaluate"]

_TABLE = 110  # characters that the table may take, whatever the terminal has
_SPLIT = "the same, best split"
_SHOWN = 5
_ROUTING = (
    "How a token picks a replica, instead of the instance's: group, even, nearest, optimal, sglang-static, "
    "sglang-dynamic, vllm-hash, vllm-ascend or trtllm-round-robin."
)

EXAMPLES = """
\b
Examples:
  moe-placer evaluate instance.yaml out/placement.json --trace monday.npz --trace tuesday.npz
  moe-placer evaluate instance.yaml deployed.json --routing sglang-static --dispatch per-node
"""


@click.command(epilog=EXAMPLES)
@placed_arguments
@click.option("--routing", metavar="RULE", help=_ROUTING)
@click.option(
    "--dispatch",
    metavar="UNIT",
    help="What a token is sent once for, instead of the instance's: per-expert, per-gpu or per-node.",
)
@click.option("--step", is_flag=True, help="Simulate a step of every plan, with two micro-batches and with one.")
@sharing_option
@json_option
def evaluate(
    instance: Path,
    placement: Path,
    traces: tuple[Path, ...],
    routing: str | None,
    dispatch: str | None,
    step: bool,
    sharing: Sharing,
    json_: bool,
) -> None:
    """Say what PLACEMENT costs on INSTANCE's traffic, or on that of --trace, whatever it was made for.

    Links, NICs where they are counted, busiest GPUs and layer times, beside what contiguous, EPLB and greedy plans for
    this very traffic cost, and a lower bound. A placement made for other traffic, routing or dispatch is named as such,
    which is no violation; figures that its file states are ignored. Exit code 1 if it cannot serve.
    """
    from moe_placer.decisions.evaluate import evaluate as measure
    from moe_placer.placement import load_placement

    check_sharing_asked(step, "--step")

    def tell(name: str) -> None:
        if not json_:
            log.info(f"{'simulating steps' if step else 'counting tokens'}: {name}")

    opened, placed = open_instance(instance, traces), load_placement(placement)
    found = measure(opened, placed, routing=routing, dispatch=dispatch, step=step, sharing=sharing, tell=tell)
    if json_:
        click.echo(as_json(_content(found, placement)))
        return
    _print(found, str(placement))


def _print(found: Evaluation, name: str) -> None:
    from rich.console import Console

    from moe_placer.fabric import COST

    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _TABLE)
    for line in _facts(found, name):
        console.print(line, markup=False)
    console.print(_table(found))
    for line in (f"Cost: {COST[found.instance.objective.metric]}.", *shared_lines(found.sharing)):
        console.print(line, markup=False)
    for rival, why in found.rivals.items():
        if isinstance(why, str):
            console.print(f"{rival} cannot serve: {why}.", markup=False)
    if found.bound:
        above = found.placement.total_z / found.bound - 1
        console.print(f"Links are {above:.2%} above what no placement of the instance is below.", markup=False)
    if found.placement.busiest_link:
        link = f"{found.placement.busiest_link}, cost {found.placement.max_z:,.0f}"
        console.print(f"Busiest link of a layer: {link}.", markup=False)


def _facts(found: Evaluation, name: str) -> list[str]:
    """Say for what the placement was made, for what it is evaluated, and which constraints it breaks."""
    serving = found.instance.placement
    how = f"routing {found.routing}, dispatch {serving.dispatch}"
    lines = [f"{name} on {found.instance.name}: {how}"]
    if not found.same_instance:
        lines.append("Made for another instance, or for another routing or dispatch.")
    if not found.same_traffic:
        lines.append("Made for other traffic.")
    if found.breaks:
        lines.append(f"It breaks {len(found.breaks)} constraints of the instance, and is evaluated all the same:")
        lines += [f"  {text}" for text in found.breaks[:_SHOWN]]
    return lines


def _table(found: Evaluation) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    nics, steps = found.placement.nic_z is not None, found.placement.step_us is not None
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("plan", min_width=max(map(len, (*found.rivals, _SPLIT))), vertical="bottom")
    heads = ["busiest\nlinks\n(cost)", "dispatch\n\n(ms)", *(["NICs\n\n(cost)"] if nics else [])]
    heads += ["busiest\nGPUs\n(tokens)", "above\nmean\n", "layer\ntimes\n(ms)", "between\nnodes\n(tokens)"]
    heads += ["step,\n2 mb\n(ms)", "step,\n1 mb\n(ms)"] if steps else []
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name, plan in {**found.rivals, "the placement": found.placement}.items():
        if not isinstance(plan, str):
            table.add_row(name, *_cells(plan), style="bold" if plan is found.placement else None)
    if found.best_split is not None:
        table.add_row(_SPLIT, *_cells(found.best_split))
    if found.bound is not None and found.layer_time_bound_us is not None:
        bounds = [f"{found.bound:,.0f}", "", *([""] if nics else []), "", "", _ms(found.layer_time_bound_us)]
        table.add_row("lower bound", *bounds)
    return table


def _cells(plan: PlanCosts) -> list[str]:
    cells = [f"{plan.total_z:,.0f}", _ms(plan.dispatch_us)]
    cells += [] if plan.nic_z is None else [f"{plan.nic_z:,.0f}"]
    cells += [f"{plan.busiest_gpu_tokens:,.0f}", f"{plan.above_mean:.1%}", _ms(plan.layer_time_us)]
    cells += [f"{plan.inter_node_tokens:,.0f}"]
    return cells + [_ms(us) for us in (plan.step_us, plan.step_one_batch_us) if us is not None]


def _ms(us: float) -> str:
    return f"{us / 1e3:,.2f}" if us == 0 or us >= 100 else f"{us / 1e3:.2g}"


def _content(found: Evaluation, placement: Path) -> EvaluateResult:
    instance = found.instance
    rivals: Mapping[str, PlanCosts | str] = found.rivals
    return {
        "schema": "moe-placer/evaluation/1",
        "instance": {"name": instance.name, "sha256": instance.sha256},
        "placement": str(placement),
        "routing": found.routing,
        "dispatch": instance.placement.dispatch,
        "same_instance": found.same_instance,
        "same_traffic": found.same_traffic,
        "breaks": list(found.breaks),
        "costs": _cost(found.placement),
        "rivals": {name: _cost(plan) for name, plan in rivals.items() if not isinstance(plan, str)},
        "cannot_serve": {name: why for name, why in rivals.items() if isinstance(why, str)},
        "best_split": None if found.best_split is None else _cost(found.best_split),
        "bound": found.bound,
        "layer_time_bound_us": found.layer_time_bound_us,
        "sharing": found.sharing,
    }


def _cost(plan: PlanCosts) -> PlanCost:
    return {
        "total_z": plan.total_z,
        "max_z": plan.max_z,
        "busiest_link": plan.busiest_link,
        "aggregate": plan.aggregate,
        "dispatch_us": plan.dispatch_us,
        "combine_us": plan.combine_us,
        "nic_z": plan.nic_z,
        "busiest_gpu_tokens": plan.busiest_gpu_tokens,
        "above_mean": plan.above_mean,
        "layer_time_us": plan.layer_time_us,
        "inter_node_tokens": plan.inter_node_tokens,
        "step_us": plan.step_us,
        "step_one_batch_us": plan.step_one_batch_us,
    }
