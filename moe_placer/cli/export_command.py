"""``moe-placer export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moe_placer.cli import log
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import instance_argument, json_option

if TYPE_CHECKING:
    from moe_placer.cli.results.engine_files import ExportResult
    from moe_placer.engines.launchers.launch import Launch
    from moe_placer.engines.plans.export import Export

__all__ = ["FORMATS", "export"]

# What `moe_placer.engines.plans.export` has; it is not imported here, so that help answers at once.
FORMATS = ("sglang", "vllm-plan", "vllm-initial-map", "vllm-jsonl", "trtllm", "vllm-ascend", "omni", "rank-cost-matrix")
LAUNCHERS = ("slurm", "mpi", "kubernetes")


@click.command()
@instance_argument
@click.argument("placement", required=False, type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(FORMATS), required=True, help="The engine's file (docs/engines.md)."
)
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option(
    "--mtp-layers",
    type=click.IntRange(0, 16),
    default=0,
    metavar="N",
    help="Add N layers for multi-token prediction, where the engine takes them from the file.",
)
@click.option("--launcher", type=click.Choice(LAUNCHERS), help="Also write which host runs which rank.")
@click.option(
    "--hosts",
    metavar="FILE|LIST",
    help="For --launcher: host of each node, in the instance's order: a file, one a line, or node[01-16].",
)
@click.option("--cores-per-node", type=click.IntRange(1, 4096), metavar="N", help="For --launcher mpi.")
@json_option
def export(
    instance: Path,
    placement: Path | None,
    form: str,
    output: Path,
    mtp_layers: int,
    launcher: str | None,
    hosts: str | None,
    cores_per_node: int | None,
    json_: bool,
) -> None:
    """Write PLACEMENT as the file that an inference engine loads, with how to start the engine.

    The placement's constraints and the engine's own rules are checked first: slot counts, layer numbering, replicas on
    one GPU. FILE.start.txt says what is printed: flags, environment, warnings. rank-cost-matrix needs no PLACEMENT.
    """
    from moe_placer.cli.options import open_instance
    from moe_placer.engines.launchers.hosts import find_hosts
    from moe_placer.engines.launchers.launch import plan_launch
    from moe_placer.engines.plans.export import RANK_COSTS, export_plan
    from moe_placer.engines.plans.forms import FORMS
    from moe_placer.errors import UsageError
    from moe_placer.files import write_atomically
    from moe_placer.placement import load_placement

    if (launcher is None) != (hosts is None):
        raise UsageError("--launcher and --hosts go together")
    opened = open_instance(instance, ())
    placed = None if placement is None or form == RANK_COSTS else load_placement(placement)
    exported = export_plan(opened, placed, form, output, mtp_layers)
    launch = None
    if launcher is not None and hosts is not None:
        engine = "sglang" if form == RANK_COSTS else FORMS[form].layout.engine
        names = find_hosts(hosts, opened.cluster.nodes)
        launch = plan_launch(launcher, exported.deployment, names, engine, cores_per_node)
    beside = None if launch is None else output.with_name(f"{output.name}.{launch.ending}")
    start = output.with_name(f"{output.name}.start.txt")
    text = _text(exported, launch, beside, output)
    write_atomically(output, exported.content)
    if launch is not None and beside is not None:
        write_atomically(beside, launch.content)
    write_atomically(start, text)
    if json_:
        click.echo(as_json(_content(exported, launch, form, output, start, beside)))
    else:
        click.echo(text, nl=False)
    for path in (output, *([beside] if beside else []), start):
        log.info(f"Written: {path}", file=str(path))


def _text(exported: Export, launch: Launch | None, beside: Path | None, output: Path) -> str:
    plan, deployment = exported.plan, exported.deployment
    lines = [f"# {output.name}: for {exported.engine}, instance {deployment.name}"]
    if plan is not None:
        each = sorted({len(held) for ranks in plan.slots for held in ranks})
        slots = (
            f"{plan.redundant} redundant slots, " + " to ".join(map(str, {each[0]: 0, each[-1]: 0})) + " slots a rank"
        )
        lines.append(f"# {plan.layers} MoE layers, {plan.experts} experts, {slots}")
    nodes, per_node = len(deployment.nodes), deployment.gpus_per_node
    lines.append(
        f"# Rank r is GPU r % {per_node} of node r // {per_node}, of {nodes} nodes; the file must be on all of them."
    )
    lines += [f"# Warning: {warning}" for warning in exported.warnings]
    if launch is not None and beside is not None:
        lines += [f"# Launch: {line}" for line in launch.usage_of(beside)]
    return "\n".join(lines) + "\n\n" + exported.start.to_text()


def _content(
    exported: Export, launch: Launch | None, form: str, output: Path, start: Path, beside: Path | None
) -> ExportResult:
    plan, deployment = exported.plan, exported.deployment
    return {
        "schema": "moe-placer/export/1",
        "format": form,
        "engine": exported.engine,
        "instance": deployment.name,
        "file": str(output),
        "start_file": str(start),
        "ranks": deployment.ranks,
        "nodes": len(deployment.nodes),
        "layers": None if plan is None else plan.layers,
        "experts": None if plan is None else plan.experts,
        "redundant_slots": None if plan is None else plan.redundant,
        "command": exported.start.command,
        "flags": list(exported.start.flags),
        "environment": dict(exported.start.environment),
        "config": exported.start.config or None,
        "warnings": list(exported.warnings),
        "launcher_file": None if beside is None else str(beside),
        "launch": None if launch is None or beside is None else launch.usage_of(beside),
    }
