"""``moe-placer schedule``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moe_placer.cli import log
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import (
    json_option,
    open_placed,
    placed_arguments,
    sharing_option,
)
from moe_placer.cli.step_progress import telling_progress
from moe_placer.cli.target_answers import held_to, refuse_missed, target_content, target_lines
from moe_placer.cli.what_if_options import answer_content, answer_lines, build_question, what_if_options

if TYPE_CHECKING:
    from moe_placer.cli.results.simulated import ScheduleResult
    from moe_placer.instance import Instance
    from moe_placer.placement import Placement
    from moe_placer.schedule.coarse_network import Sharing
    from moe_placer.schedule.explain import Explanation
    from moe_placer.schedule.simulate import Timeline
    from moe_placer.schedule.step_figures import Figures
    from moe_placer.schedule.targets import Answer as TargetAnswer
    from moe_placer.schedule.what_if import Answer as WhatIfAnswer
    from moe_placer.schedule.what_if import Question
    from moe_placer.schedule.workload import Workload
    from moe_placer.traffic.recording import Traffic

__all__ = ["schedule"]


@click.command()
@placed_arguments
@click.option(
    "--phase",
    type=click.Choice(["prefill", "decode"]),
    default="prefill",
    show_default=True,
    help="Sequences that start, or sequences that each go on by one token.",
)
@click.option("--tokens-per-gpu", type=float, metavar="N", help="Tokens that start on each GPU.  [the instance's]")
@click.option(
    "--context",
    type=float,
    metavar="N",
    default=4096,
    show_default=True,
    help="Tokens of a sequence (prefill), or that each token attends to (decode).",
)
@click.option(
    "--micro-batches",
    type=int,
    metavar="1|2",
    default=2,
    show_default=True,
    help="2: one half of the tokens communicates while the other computes.",
)
@click.option(
    "--require",
    "required",
    multiple=True,
    metavar="NAME=VALUE",
    help="Hold the step to a target: mfu=60%, bandwidth=80% (of memory), links=80%, shares=40/35/15/10, latency=500ms, "
    "throughput=2000 (tokens/s per GPU), memory=90%. Repeatable; the exit code is 6 where one does not hold.",
)
@click.option(
    "--kernels",
    type=click.Choice(["plain", "deepep"]),
    help="Preset of what kernels charge (docs/kernels.md).  [the instance's]",
)
@sharing_option
@what_if_options
@click.option(
    "--chrome-trace",
    "chrome_trace",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write what ran when, to open in Perfetto; FILE.gz is compressed.",
)
@click.option(
    "--pictures",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Also draw the step and one layer: schedule_step.svg, schedule_layer.svg.",
)
@click.option(
    "--chakra",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Also write the all-to-alls as Chakra execution traces for other simulators: step.GPU.json, send and receive "
    "nodes with each transfer's own bytes.",
)
@click.option(
    "--layer",
    type=int,
    metavar="N",
    help="Layer to draw, and the only one of --chakra.  [the one that needs the busiest link longest; all]",
)
@click.option(
    "--explain",
    "explained",
    metavar="OPERATION",
    help="Say which formula and values give the time of an operation, such as L3.attention.g0 or L3.expert.e0.r0.b1.",
)
@json_option
def schedule(
    instance: Path,
    placement: Path,
    traces: tuple[Path, ...],
    phase: str,
    tokens_per_gpu: float | None,
    context: float,
    micro_batches: int,
    kernels: str | None,
    sharing: Sharing,
    required: tuple[str, ...],
    slow_gpus: tuple[str, ...],
    slow_links: tuple[str, ...],
    failed: tuple[int, ...],
    replicas: int,
    chrome_trace: Path | None,
    pictures: Path | None,
    chakra: Path | None,
    layer: int | None,
    explained: str | None,
    json_: bool,
) -> None:
    """Simulate one step of PLACEMENT: latency, throughput, utilization, memory, and where the time goes.

    Every operation of the deployment DAG runs on its GPUs' streams, NVLink and the inter-node links as soon as its
    tensors are there (docs/schedule.md). Figures follow from the hardware parameters in INSTANCE.

    What-ifs simulate the step again: how much later is it, and which further replica of an expert would help most?
    Targets (--require) are held against the step without them: what was asked, what came out, what limits it.
    """
    from moe_placer.schedule.explain import explain, find_task
    from moe_placer.schedule.step_figures import find_figures
    from moe_placer.schedule.targets import read_target
    from moe_placer.schedule.workload import Workload

    record = chrome_trace is not None or pictures is not None
    _refuse(layer, drawn=pictures is not None or chakra is not None, recorded=record, sharing=sharing)
    workload = Workload(phase, tokens_per_gpu, context, micro_batches)  # type: ignore[arg-type]  # click checks it
    targets = [read_target(text) for text in required]
    question = build_question(slow_gpus, slow_links, failed)
    opened, placed, traffic = open_placed(instance, placement, traces)
    parts = opened.with_kernels(kernels), placed, traffic
    timeline = _simulated(*parts, workload, record=record, sharing=sharing, json_=json_)
    explanation = None if explained is None else explain(timeline, find_task(timeline, explained))
    figures = find_figures(timeline)
    answers = held_to(targets, timeline, figures)
    # Files first: where one cannot be written, nothing else is said.
    written = list(_written(timeline, placed.solver.name, chrome_trace, pictures, layer))
    if chakra is not None:
        from moe_placer.engines.simulators.chakra import write_execution_traces

        write_execution_traces(*parts, chakra, layer)
        written.append(chakra)
    answer = _answered(*parts, timeline, question, figures.latency_us, replicas) if question else None
    beside = list(_beside(parts[0], explanation, question, answer, answers))
    _print(timeline, figures, placed.solver.name, beside, json_)
    for path in written:
        log.info(f"Written: {path}", file=str(path))
    refuse_missed(answers)


def _refuse(layer: int | None, *, drawn: bool, recorded: bool, sharing: Sharing) -> None:
    """Refuse options that do not go together."""
    from moe_placer.errors import UsageError

    if layer is not None and not drawn:
        raise UsageError("--layer says what to draw or trace, and needs --pictures DIR or --chakra DIR")
    if recorded and sharing == "coarse":
        raise UsageError("--chrome-trace and --pictures show links over time, and need --sharing fine or exact")


def _simulated(
    instance: Instance,
    placement: Placement,
    traffic: Traffic,
    workload: Workload,
    *,
    record: bool,
    sharing: Sharing,
    json_: bool,
) -> Timeline:
    from moe_placer.schedule.program import compile_program
    from moe_placer.schedule.simulate import simulate

    program, tell = compile_program(instance, placement, traffic), telling_progress(json_)
    return simulate(program, workload, record=record, sharing=sharing, tell=tell)


def _answered(
    instance: Instance,
    placement: Placement,
    traffic: Traffic,
    timeline: Timeline,
    question: Question,
    before_us: float,
    most: int,
) -> WhatIfAnswer:
    from moe_placer.schedule.what_if import ask
    from moe_placer.solve.estimate import useful_workers

    return ask(
        instance,
        placement,
        traffic,
        timeline.workload,
        question,
        before_us=before_us,
        most=most,
        workers=useful_workers(instance),
        sharing=timeline.sharing,
    )


def _beside(
    instance: Instance,
    explanation: Explanation | None,
    question: Question,
    answer: WhatIfAnswer | None,
    targets: Sequence[TargetAnswer],
) -> Iterator[tuple[str, Any, list[str]]]:
    """Yield key, content for JSON and lines of text of everything that was asked beside the figures of the step."""
    if explanation:
        from moe_placer.schedule.step_text import explanation_lines

        yield "explained", explanation, explanation_lines(explanation)
    if answer:
        yield "what_if", answer_content(instance, question, answer), list(answer_lines(instance, question, answer))
    if targets:
        yield "required", target_content(targets), target_lines(targets)


def _print(
    timeline: Timeline, figures: Figures, name: str, beside: list[tuple[str, Any, list[str]]], json_: bool
) -> None:
    """Print the figures of the step, and what was asked beside them.

    Parameters
    ----------
    timeline : Timeline
    figures : Figures
    name : str
        Of the solver.
    beside : list of tuples
        Key, what JSON says, and what text says of each.
    json_ : bool
        Whether to print JSON.
    """
    from moe_placer.schedule.step_text import print_figures

    if json_:
        click.echo(as_json({**_content(timeline, figures, name), **{key: content for key, content, _ in beside}}))
        return
    print_figures(timeline, figures, name)
    click.echo("Verified: rules and loads. Bounds were not derived anew: they do not matter here (`verify` does it).")
    for _, _, lines in beside:
        click.echo("\n" + "\n".join(lines))


def _written(
    timeline: Timeline, name: str, chrome_trace: Path | None, pictures: Path | None, layer: int | None
) -> Iterator[Path]:
    """Write the files that were asked for, and yield their paths."""
    if pictures is not None:
        from moe_placer.schedule.timeline_pictures import write_pictures

        yield from write_pictures(timeline, name, pictures, layer)
    if chrome_trace is not None:
        from moe_placer.schedule.trace import write_chrome_trace

        write_chrome_trace(timeline, chrome_trace)
        yield chrome_trace


def _content(timeline: Timeline, figures: Figures, name: str) -> ScheduleResult:
    from moe_placer.schedule.explain import FORMULAS, formula_of, hardware_of
    from moe_placer.schedule.step_figures import plan_holds, planned_shares

    program, workload, memory = timeline.program, timeline.workload, figures.memory
    planned = planned_shares(program.instance)
    path = [(timeline.operation(task), task) for task in timeline.critical_path()]
    return {
        "schema": "moe-placer/schedule/1",
        "instance": {"name": program.instance.name, "sha256": program.instance.sha256},
        "placed_by": name,
        "workload": {
            "phase": workload.phase,
            "tokens_per_gpu": workload.batch(program.instance),
            "context": workload.context,
            "micro_batches": workload.micro_batches,
        },
        "timing": timeline.timing,
        "sharing": timeline.sharing,
        "not_rederived": ["bounds"],
        "latency_us": figures.latency_us,
        "layer_us": figures.layer_us.tolist(),
        "tokens": figures.tokens,
        "tokens_per_s": figures.tokens_per_s,
        "tokens_per_s_per_gpu": figures.tokens_per_s_per_gpu,
        "mfu": figures.mfu,
        "communication_us": figures.communication_us,
        "shares": dict(figures.shares),
        "planned_shares": planned,
        "plan_holds": None if planned is None else plan_holds(figures.shares, planned),
        "links": dict(zip(figures.links, figures.link_utilization.tolist(), strict=True)),
        "busiest_link": figures.busiest_link,
        "memory_bytes": {
            "weights": memory.weights.tolist(),
            "kv_cache": memory.kv_cache.tolist(),
            "kv_reserved": memory.kv_reserved.tolist(),
            "activations": memory.activations.tolist(),
            "size": memory.size.tolist(),
            "fits": memory.fits,
        },
        "formulas": dict(FORMULAS),
        "hardware": hardware_of(program.instance),
        "critical_path": [
            {
                "operation": program.names[operation],
                "kind": program.kinds[operation],
                "formula": formula_of(program.kinds[operation]),
                "micro_batch": timeline.batch(task),
                "start_us": float(timeline.start[task]),
                "end_us": float(timeline.end[task]),
            }
            for operation, task in path
        ],
    }
