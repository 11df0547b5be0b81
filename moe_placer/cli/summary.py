"""What a person reads after a solve."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_placer.errors import visible
from moe_placer.instance.sizes import GB, token_bytes
from moe_placer.result import Stop

if TYPE_CHECKING:
    from rich.table import Table

    from moe_placer.instance import Instance
    from moe_placer.solve.solve import Solution

__all__ = ["name_deaths", "print_summary"]


def print_summary(instance: Instance, solution: Solution, files: list[Path]) -> None:
    """Print the comparison, the gap and how it is proved, the verdict, and the files."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    layers, nodes = len(instance.moe_layers), instance.cluster.nodes
    console.print(f"[bold]{escape(instance.name)}[/]: {layers} MoE layers on {instance.gpus} GPUs in {nodes} nodes")
    console.print(_table(instance, solution))
    for line in _findings(instance, solution):
        console.print(line, markup=False)
    written = ", ".join(visible(str(path)) for path in files)
    console.print(f"Written: {written}", style="dim", markup=False)


def _table(instance: Instance, solution: Solution) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("plan")
    what = "worst links" if solution.minimise == "layers" else "hottest link over all layers"
    for column in (f"{what} (tokens)", "vs contiguous", "dispatch (ms per step)"):
        table.add_column(column, justify="right")
    contiguous = solution.baselines.get("contiguous")
    mine = solution.placement.solver.name
    rows = [(name, total) for name, total in solution.baselines.items() if name != mine]
    for name, total in [*rows, (mine, solution.objective)]:
        if isinstance(total, str):
            table.add_row(name, total, "", "")
            continue
        ratio = f"{total / contiguous - 1:+.1%}" if isinstance(contiguous, float) and contiguous > 0 else ""
        style = "bold" if name == mine else None
        table.add_row(name, f"{total:,.0f}", ratio, f"{milliseconds(instance, total):,.2f}", style=style)
    bound = solution.bound
    table.add_row("lower bound", f"{bound:,.0f}", "", f"{milliseconds(instance, bound):,.2f}")
    return table


def milliseconds(instance: Instance, cost: float) -> float:
    """Time of a cost on the wire, one direction: cost * bytes per token / (B_node * utilization)."""
    fabric = instance.cluster.fabric
    return 1e3 * cost * token_bytes(instance) / (fabric.node_gb_per_s * GB * fabric.link_utilization)


def _findings(instance: Instance, solution: Solution) -> list[str]:
    from moe_placer.cli.explain import why_above_bound

    gaps, own = solution.gaps, solution.solver_gaps
    both = f"{_share(np.median(gaps))} in the median layer, {_share(gaps.max())} in the worst"
    if solution.minimise == "aggregate":
        both = f"{_share(solution.gap)} for the hottest link over all layers"
    elif solution.placement.memory is not None:
        both = f"{_share(solution.gap)} for the sum, memory over layers counted; not counted, {both}"
    lines = [f"Gap to the re-checkable bound: {both} (`moe-placer verify` derives the bound anew)."]
    if any(record.solver_bound is not None for record in solution.placement.layers):
        both = f"{_share(np.median(own))} median, {_share(own.max())} worst"
        lines.append(f"By the solver's word, which cannot be re-checked: {both}.")
    if why := why_above_bound(instance, solution):
        lines.append(why)
    if not solution.placement.replicas.get("bound_covers_choice_of_copies", True):
        lines.append("The bound holds for this number of copies of each expert; other choices may beat it.")
    if growth := solution.placement.replicas.get("hottest_copy_over_by_load"):
        chosen = str(solution.placement.replicas["copies"])
        hottest = f"{growth['mean'] - 1:+.2%} tokens on average, {growth['most'] - 1:+.2%} at most"
        lines.append(f"Copies: {chosen}. Against copies by load, a layer's hottest copy gets {hottest}.")
    if solution.deaths:
        lines.append(_said_of(solution))
    if solution.repaired:
        why = "too close together, pinned elsewhere, or without a slot in their group"
        lines.append(f"{solution.repaired} replicas are not where the method puts them: they were {why}.")
    reasons = {str(stop): sum(s is stop for s in solution.stop) for stop in dict.fromkeys(solution.stop)}
    stops = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
    lines.append(f"Verified independently in {solution.seconds:.1f} s all told. Why layers stopped: {stops}.")
    worst = max(solution.verification.layers, key=lambda check: check.z)
    if worst.z > 0:
        found = solution.verification
        lines.append(
            f"Hottest link of a layer: {worst.worst_link} in layer {worst.layer}, {worst.z:,.0f} tokens at node-link "
            f"speed; over all layers: {found.aggregate_link}, {found.aggregate:,.0f} (sum of worst links: "
            f"{found.total_z:,.0f})."
        )
    return lines


def _said_of(solution: Solution) -> str:
    """Say that workers died, of what, and what became of their layers."""
    died = name_deaths(solution.deaths)
    causes = ", ".join(f"{died.count(cause)} by {cause}" for cause in dict.fromkeys(died))
    kept = solution.stop.count(Stop.KILLED)
    then = f"{kept} layers keep what they had" if kept else "their layers were tried again"
    count = f"{len(died)} worker process{'es' if len(died) > 1 else ''}"
    return f"{count} died ({causes}), most likely for want of memory; {then}. Fewer --workers need less."


def name_deaths(deaths: Sequence[int]) -> list[str]:
    """Name what each worker died of: a signal, or an exit code."""
    return [signal.Signals(-code).name if code < 0 else f"exit code {code}" for code in deaths]


def _share(gap: float) -> str:
    return f"{gap:.3%}" if np.isfinite(gap) else "not known"
