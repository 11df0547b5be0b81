"""The summary that `moe-placer solve` prints."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_placer.errors import visible
from moe_placer.fabric import COST, link_words
from moe_placer.result import Stop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from moe_placer.cli.left_out import LeftOut
    from moe_placer.cli.plans import PlanFigures
    from moe_placer.instance import Instance
    from moe_placer.solve.coolest_gpus import Cooling
    from moe_placer.solve.solve import Solution

__all__ = ["name_deaths", "print_summary"]

_WHAT = {  # heads of the column that is minimised
    "layers": "busiest links\n(cost)",
    "layer-time": "layer times\n(ms)",
    "aggregate": "busiest link over all layers\n(cost)",
}
_TABLE = 100  # characters that the table may take, whatever the terminal has


def print_summary(
    instance: Instance,
    solution: Solution,
    plans: Mapping[str, PlanFigures],
    step_s: float | None,
    files: list[Path],
    left_out: LeftOut | None = None,
) -> None:
    """Print the comparison, the verdict, the gap and how it is proved, and the files.

    Parameters
    ----------
    plans : mapping
        Figures of the heuristics that could serve and, last, of the placement.
    step_s : float or None
        Seconds that simulating their steps took; None where they were not simulated.
    files : list of Path
        What was written.
    left_out : LeftOut or None
        What nobody asked for; None: nothing is said of it.
    """
    from rich.console import Console
    from rich.markup import escape

    from moe_placer.cli.plans import verdict

    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _TABLE)
    layers, nodes = len(instance.moe_layers), instance.cluster.nodes
    console.print(f"[bold]{escape(instance.name)}[/]: {layers} MoE layers on {instance.gpus} GPUs in {nodes} nodes")
    console.print(_table(instance, solution, plans))
    for name, reason in solution.baselines.items():
        if isinstance(reason, str):
            console.print(f"{name} cannot serve: {reason}.", markup=False)
    console.print(f"Cost: {COST[instance.objective.metric]}.")
    if said := verdict(plans, solution.verification.back):
        console.print(said, style="bold", markup=False)
    for line in _findings(instance, solution, unbounded=left_out is not None and left_out.bounds):
        console.print(line, markup=False)
    if left_out is not None and left_out.baselines:
        console.print(left_out.sentence, markup=False)
    if step_s is not None:
        console.print(f"Steps simulated in {step_s:.1f} s: prefill of the instance's own tokens, two micro-batches.")
    written = ", ".join(visible(str(path)) for path in files)
    console.print(f"Written: {written}", style="dim", markup=False)


def _table(instance: Instance, solution: Solution, plans: Mapping[str, PlanFigures]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    from moe_placer.cli.plans import bound_us

    steps = any(plan.step_us is not None for plan in plans.values())
    what = _WHAT[solution.minimise]
    wire = "that link" if solution.minimise == "aggregate" else "dispatch"
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("plan")
    compared = ["vs\ncontiguous"] if solution.baselines else []
    for column in (what, *compared, f"{wire}\n(ms)", "busiest GPUs\n(tokens)", "above\nmean"):
        table.add_column(column, justify="right", no_wrap=True)
    if steps:
        table.add_column("step\n(ms)", justify="right")
    contiguous = solution.baselines.get("contiguous")
    mine = solution.placement.solver.name
    for name, total in {**solution.baselines, mine: solution.objective}.items():
        if isinstance(total, str):
            table.add_row(name, "-")
            continue
        ratio = [f"{total / contiguous - 1:+.1%}" if isinstance(contiguous, float) and contiguous > 0 else ""]
        figures = _measured(plans[name], steps) if name in plans else ()
        cells = [name, _objective(solution, total), *(ratio if compared else []), *figures]
        table.add_row(*cells, style="bold" if name == mine else None)
    if solution.bound > 0 or solution.objective == 0:  # else nothing is proved
        wire_bound = _ms(bound_us(instance, solution))
        table.add_row("lower bound", _objective(solution, solution.bound), *([""] if compared else []), wire_bound)
    return table


def _objective(solution: Solution, value: float) -> str:
    return _ms(value) if solution.minimise == "layer-time" else f"{value:,.0f}"


def _measured(plan: PlanFigures, steps: bool) -> list[str]:
    cells = [_ms(plan.wire_us), f"{plan.busiest_gpu_tokens:,.0f}", f"{plan.above_mean:.0%}"]
    return [*cells, _ms(plan.step_us) if plan.step_us is not None else ""] if steps else cells


def _ms(us: float) -> str:
    return f"{us / 1e3:,.2f}" if us == 0 or us >= 100 else f"{us / 1e3:.2g}"


def _findings(instance: Instance, solution: Solution, unbounded: bool) -> list[str]:
    from moe_placer.cli.why_above_bound import why_above_bound
    from moe_placer.solve.nic_words import busiest_nics, floors_of, nic_lines

    own = solution.solver_gaps
    lines = [_gap_line(solution)]
    if any(record.solver_bound is not None for record in solution.placement.layers):
        both = f"{_share(np.median(own))} median, {_share(own.max())} worst"
        lines.append(f"By the solver's word, which cannot be re-checked: {both}.")
    if not unbounded:  # else the gap is that of a bound which nobody tried to raise
        lines.append(why_above_bound(instance, solution) or "")
    if _is_bounded(solution) and not solution.placement.replicas.get("bound_covers_choice_of_copies", True):
        lines.append("The bound holds for this number of replicas of each expert; other choices may beat it.")
    lines += [*nic_lines(instance, floors_of(instance, solution.traffic)), busiest_nics(solution.verification) or ""]
    lines += _of_gpus(solution)
    if solution.deaths:
        lines.append(_said_of(solution))
    if solution.repaired:
        why = "too close together, pinned elsewhere, or without a slot in their group"
        lines.append(f"{solution.repaired} replicas are not where the method puts them: they were {why}.")
    reasons = {str(stop): sum(s is stop for s in solution.stop) for stop in dict.fromkeys(solution.stop)}
    stops = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
    lines.append(f"Verified independently in {solution.seconds:.1f} s all told. Why layers stopped: {stops}.")
    found = solution.verification
    worst = max(found.layers, key=lambda check: check.z)
    if worst.z > 0:
        of_layer = link_words(worst.worst_link_tokens, worst.worst_link_us, worst.worst_link_cost)
        in_all = link_words(found.aggregate_tokens, found.aggregate_us, found.aggregate)
        lines.append(f"Busiest link of a layer: {worst.worst_link} in layer {worst.layer}, {of_layer}.")
        lines.append(
            f"Busiest link over all layers: {found.aggregate_link}, {in_all} (sum of busiest links: cost "
            f"{found.total_z:,.0f})."
        )
    return [line for line in lines if line]


def _is_bounded(solution: Solution) -> bool:
    """Whether anything is proved, of the objective or of a layer."""
    return bool(np.isfinite(solution.gap) or np.isfinite(solution.gaps).any())


def _gap_line(solution: Solution) -> str:
    if not _is_bounded(solution):
        return "Gap: not known, since nothing is proved."
    gaps = solution.gaps
    both = f"{_share(np.median(gaps))} in the median layer, {_share(gaps.max())} in the worst"
    if solution.minimise == "aggregate":
        both = f"{_share(solution.gap)} for the busiest link over all layers"
    elif solution.minimise == "layer-time":
        both = f"{_share(solution.gap)} for the sum of layer times; of busiest links alone, {both}"
    elif solution.placement.memory is not None:
        both = f"{_share(solution.gap)} for the sum, memory over layers counted; not counted, {both}"
    return f"Gap to the re-checkable bound: {both} (`moe-placer verify` derives the bound anew)."


def _of_gpus(solution: Solution) -> list[str]:
    """Say what the choice of replicas and the trades after the search did to the busiest GPUs."""
    lines = []
    if growth := solution.placement.replicas.get("hottest_copy_over_by_load"):
        chosen = str(solution.placement.replicas["copies"])
        hottest = f"{growth['mean'] - 1:+.2%} tokens on average, {growth['most'] - 1:+.2%} at most"
        lines.append(f"Replicas: {chosen}. Against replicas by load, a layer's hottest replica gets {hottest}.")
    if solution.cooling is not None and solution.cooling.busiest_after < solution.cooling.busiest_before:
        lines.append(_cooled(solution.cooling))
    return lines


def _cooled(cooling: Cooling) -> str:
    """Say what trading replicas between GPUs after the search changed."""
    tokens = f"{cooling.busiest_before:,.0f} to {cooling.busiest_after:,.0f} tokens"
    change = cooling.busiest_after / cooling.busiest_before - 1 if cooling.busiest_before > 0 else 0.0
    links = cooling.z_after / cooling.z_before - 1 if cooling.z_before > 0 else 0.0
    return (
        f"Busiest GPUs cooled after the search: {tokens} ({change:+.1%}); busiest links {links:+.3%}, within the gap."
    )


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
