"""``moe-placer check-file``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moe_placer.cli import log
from moe_placer.cli.export_command import FORMATS
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import json_option, open_instance, trace_option

if TYPE_CHECKING:
    from moe_placer.cli.results.engine_files import CheckFileResult, MistakeInFile
    from moe_placer.engines.plans.export import CheckedFile
    from moe_placer.errors import InputError
    from moe_placer.instance import Instance
    from moe_placer.verifier import Verification

__all__ = ["check_file"]


@click.command(name="check-file")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMATS), required=True, help="What FILE is (docs/engines.md).")
@click.option(
    "--instance",
    metavar="INSTANCE",
    type=click.Path(path_type=Path),
    help="What the plan should fit: layers, ranks, slots.",
)
@click.option(
    "-o",
    "--output",
    metavar="PLACEMENT",
    type=click.Path(path_type=Path),
    help="Also write it as a placement of INSTANCE, with recomputed figures, for verify and schedule.",
)
@trace_option
@json_option
def check_file(
    file: Path, form: str, instance: Path | None, output: Path | None, traces: tuple[Path, ...], json_: bool
) -> int:
    """Check FILE, which an inference engine is to load, whoever made it.

    Finds what engines accept in silence or die of without a hint: too few layers, missing experts, ids that do not
    exist, wrong slot counts, further keys. Exit code 1 if anything is wrong, with one message for each kind of fault.
    """
    from moe_placer.engines.plans.export import check_file as check
    from moe_placer.errors import InputError, UsageError

    if instance is None and (output is not None or traces):
        raise UsageError("-o and --trace need --instance INSTANCE")
    opened = None if instance is None else open_instance(instance, traces)
    try:
        checked = check(form, file, opened)
    except InputError as error:
        if not json_:
            raise
        click.echo(as_json(_refused(form, file, error)))
        return error.exit_code
    verification = None if opened is None or output is None else _write(checked, opened, form, output)
    if json_:
        click.echo(as_json(_content(checked, form, file, verification)))
    else:
        for line in _lines(checked, file, opened, verification):
            click.echo(line)
    if output is not None:
        log.info(f"Written: {output}", file=str(output))
    return 0


def _write(checked: CheckedFile, instance: Instance, form: str, output: Path) -> Verification:
    """Write the plan as a placement; return what the verifier recomputed."""
    from moe_placer.engines.plans.plan import read_deployment
    from moe_placer.engines.plans.to_placement import placement_from_plan
    from moe_placer.errors import UsageError
    from moe_placer.traffic import load_traffic

    if checked.plan is None:
        raise UsageError(f"-o has no meaning for {form}, which holds no plan")
    placement, verification = placement_from_plan(
        instance, load_traffic(instance), checked.plan, read_deployment(instance), form, checked.raw
    )
    placement.write(output)
    return verification


def _refused(form: str, file: Path, error: InputError) -> CheckFileResult:
    mistakes: list[MistakeInFile] = [
        {"found": mistake.found, "expected": mistake.expected, "path": mistake.path, "text": str(mistake)}
        for mistake in error.mistakes
    ]
    return {"schema": "moe-placer/file-check/1", "ok": False, "format": form, "file": str(file), "mistakes": mistakes}


def _content(checked: CheckedFile, form: str, file: Path, verification: Verification | None) -> CheckFileResult:
    plan = checked.plan
    content: CheckFileResult = {
        "schema": "moe-placer/file-check/1",
        "ok": True,
        "format": form,
        "file": str(file),
        "engine": checked.engine,
        "mistakes": [],
        "warnings": list(checked.warnings),
        "ranks": checked.ranks if checked.ranks_known else None,
        "layers": None if plan is None else plan.layers,
        "experts": None if plan is None else plan.experts,
        "slots_by_layer": None if plan is None else list(plan.slots_by_layer),
    }
    if verification is not None:
        content |= {
            "total_z": verification.total_z,
            "total_bound": verification.total_bound,
            "max_z": verification.max_z,
            "aggregate": verification.aggregate,
            "aggregate_link": verification.aggregate_link,
        }
    return content


def _lines(checked: CheckedFile, file: Path, instance: Instance | None, verification: Verification | None) -> list[str]:
    from moe_placer.fabric import link_words

    plan = checked.plan
    lines = [f"{file}: good. {checked.engine} can load it."]
    if plan is None:
        lines.append(f"  costs between {checked.ranks} ranks")
    else:
        slots = sorted(set(plan.slots_by_layer))
        counts = f"{slots[0]}" if len(slots) == 1 else f"{slots[0]} to {slots[-1]}"
        lines.append(f"  {plan.layers} layers of {plan.experts} experts in {counts} slots")
        replicas = [held.count(expert) for held in map(plan.flat, range(plan.layers)) for expert in set(held)]
        lines.append(
            f"  1 to {max(replicas)} replicas of an expert" if max(replicas) > 1 else "  one replica of every expert"
        )
    if instance is None:
        lines.append("  not checked: whether it fits the model and the number of ranks (--instance INSTANCE)")
    lines += [f"  warning: {warning}" for warning in checked.warnings]
    if verification is not None:
        lines.append(f"  busiest links       {verification.total_z:,.1f} (cost, sum over layers)")
        lines.append(f"  dispatch            {verification.dispatch_us / 1e3:,.3f} ms per step, one way")
        lines.append(f"  lower bound         {verification.total_bound:,.1f}, a quick one: no placement has less")
        total = link_words(verification.aggregate_tokens, verification.aggregate_us, verification.aggregate)
        lines.append(f"  busiest link total  {verification.aggregate_link or 'no link'}: {total}")
    return lines
