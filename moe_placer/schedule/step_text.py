"""A step's figures in words and tables, for a person at a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_placer.instance.sizes import GB
from moe_placer.schedule.explain import FORMULAS, Explanation
from moe_placer.schedule.memory_limits import longest_context, most_tokens
from moe_placer.schedule.simulate import Timeline
from moe_placer.schedule.step_figures import Figures, plan_holds, planned_shares

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["explanation_lines", "print_figures", "question", "verdict"]

_LINKS = 3  # busiest ones shown

_SHARED = {
    "exact": "shared out anew wherever a flow starts or ends",
    "coarse": "shared out anew in spans of 1% to 10% of a transfer's time: the step may be off by 1%",
}
_MEANING = {
    "computation": "",
    "communication": "hidden by no computation",
    "synchronization": "waiting for others",
    "overhead": "starting operations",
}


def print_figures(timeline: Timeline, figures: Figures, name: str) -> None:
    """Print what a step of placement ``name`` comes to."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(timeline.program.instance.name)}[/], placed by {escape(name)}: {question(timeline)}")
    for line in _headlines(timeline, figures):
        console.print(line, markup=False)
    planned = planned_shares(timeline.program.instance)
    console.print(_shares_table(figures, planned))
    if planned is not None:
        console.print(verdict(figures, planned), markup=False)
    console.print(_path_table(timeline, figures))
    for line in _more(timeline, figures):
        console.print(line, markup=False)


def question(timeline: Timeline) -> str:
    """Say what the step is."""
    workload, instance = timeline.workload, timeline.program.instance
    tokens = workload.batch(instance)
    halves = (
        "one micro-batch" if workload.micro_batches == 1 else f"{workload.micro_batches} micro-batches that overlap"
    )
    return f"{workload.phase} of {tokens:,g} tokens per GPU, context {workload.context:,g} tokens, {halves}"


def verdict(figures: Figures, planned: Mapping[str, float]) -> str:
    """Say whether the deployment plan's estimate of the shares holds."""
    plan = "/".join(f"{share:.0%}" for share in planned.values())
    if plan_holds(figures.shares, planned):
        return f"The plan's estimate ({plan}) holds: every share is within 5 percentage points of it."
    name = max(planned, key=lambda one: abs(figures.shares[one] - planned[one]))
    return (
        f"The plan's estimate ({plan}) does not hold: {name} is {figures.shares[name]:.0%} "
        f"where it says {planned[name]:.0%}."
    )


def explanation_lines(explanation: Explanation) -> list[str]:
    """Write why an operation takes as long as it does, a part a line."""
    took = explanation.end_us - explanation.start_us
    waited = {"tensors": "its tensors", "stream": "its stream", "stages": "the order of stages"}
    after = ""
    if explanation.started_by:
        after = f", once {explanation.started_by} had ended ({waited[explanation.waited_for]})"
    lines = [
        f"{explanation.operation} ({explanation.kind}) takes {took:,.2f} µs, from {explanation.start_us:,.2f} to "
        f"{explanation.end_us:,.2f}{after}.",
        f"Formula ({explanation.formula}): {FORMULAS[explanation.formula]}.",
    ]
    return [*lines, *(f"  {part.us:>12,.2f} µs  {part.name}: {part.formula}" for part in explanation.parts)]


def _headlines(timeline: Timeline, figures: Figures) -> list[str]:
    gpu = timeline.program.instance.cluster.gpu
    told = (
        []
        if timeline.sharing == "fine"
        else [f"  links       {_SHARED[timeline.sharing]} (--sharing {timeline.sharing})"]
    )
    return [
        f"  latency     {_ms(figures.latency_us)} per step",
        f"  throughput  {figures.tokens_per_s:,.0f} tokens/s in all, {figures.tokens_per_s_per_gpu:,.1f} per GPU",
        f"  MFU         {figures.mfu:.1%} of {gpu.peak_tflops:g} TFLOP/s per GPU",
        *told,
    ]


def _shares_table(figures: Figures, planned: Mapping[str, float] | None) -> Table:
    table = _table("time of a mean GPU", "share", *(["the plan's estimate"] if planned else []), "")
    for name, share in figures.shares.items():
        estimate = [f"{planned[name]:.0%}"] if planned else []
        table.add_row(name, f"{share:.1%}", *estimate, _MEANING[name])
    return table


def _path_table(timeline: Timeline, figures: Figures) -> Table:
    counts: Counter[str] = Counter(
        timeline.program.kinds[timeline.operation(task)] for task in timeline.critical_path()
    )
    table = _table("critical path", "operations", "ms", "share")
    for kind, us in figures.path_us.items():
        if us > 0:
            table.add_row(kind, f"{counts[kind]:,}", f"{us / 1e3:,.3f}", f"{us / figures.latency_us:.1%}")
    return table


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 or not column else "right")
    return table


def _more(timeline: Timeline, figures: Figures) -> list[str]:
    """Say how layers, links and memory stand."""
    instance, memory = timeline.program.instance, figures.memory
    moe, dense = list(instance.moe_layers), list(instance.model.dense_layers)
    slowest = int(figures.layer_us.argmax())
    means = [f"{_ms(figures.layer_us[moe].mean())} for a MoE layer"] if moe else []
    means += [f"{_ms(figures.layer_us[dense].mean())} for a dense one"] if dense else []
    lines = [f"Layers: {', '.join(means)} on average; slowest is layer {slowest}, {_ms(figures.layer_us[slowest])}."]
    if figures.busiest_link:
        order = (-figures.link_utilization).argsort(kind="stable")[:_LINKS].tolist()
        busiest = ", ".join(f"{figures.links[k]} {figures.link_utilization[k]:.1%}" for k in order)
        lines.append(
            f"Links, of what they can carry meanwhile: busiest {busiest}; mean {figures.link_utilization.mean():.1%}."
        )
    full = int((memory.high_water - memory.size).argmax())
    reserved = memory.kv_reserved[full]
    kept = f" (reserved: {reserved / GB:,.1f})" if reserved else ""
    parts = (
        f"weights {memory.weights[full] / GB:,.1f}, KV cache {memory.kv_cache[full] / GB:,.1f}{kept}, "
        f"activations {memory.activations[full] / GB:,.1f}"
    )
    fits = "fits" if memory.fits else _would_fit(timeline, figures)
    lines.append(
        f"Memory: {memory.high_water[full] / GB:,.1f} GB at its height on GPU {full} ({parts} GB), of "
        f"{memory.size[full] / GB:,.1f} GB: {fits}."
    )
    return lines


def _would_fit(timeline: Timeline, figures: Figures) -> str:
    """Say which batch fits memory, and in decode which context."""
    workload, memory = timeline.workload, figures.memory
    most = most_tokens(memory, workload.batch(timeline.program.instance))
    told = f"at most {most:,.4g} tokens per GPU fit"
    if workload.phase == "decode":
        longest = longest_context(memory, workload.context)
        told += f", or a context of {longest:,.4g} tokens" if longest >= 1 else ", at any context"
    return f"DOES NOT FIT: {told}"


def _ms(us: float) -> str:
    return f"{us / 1e3:,.3f} ms" if us < 1e5 else f"{us / 1e3:,.1f} ms"
