"""``moe-placer plan-report``."""

from __future__ import annotations

from pathlib import Path

import click

from moe_placer.cli import log
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import json_option, open_verified, refute_dags, trace_option, written_files

__all__ = ["plan_report"]

EXAMPLES = """
\b
Examples:
  moe-placer plan-report instance.yaml out/placement.json -o plan
  moe-placer plan-report instance.yaml out/placement.json -o plan --sweeps out/batches/results.jsonl
  moe-placer plan-report --rebuild -o plan
"""


@click.command("plan-report", epilog=EXAMPLES)
@click.argument("instance", required=False, type=click.Path(path_type=Path))
@click.argument("placement", required=False, type=click.Path(path_type=Path))
@trace_option
@click.option(
    "-o", "--output", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder to write to."
)
@click.option(
    "--sweeps",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Rows of `moe-placer sweep` to show: sweeps called Batches, Oversubscription, Contexts against another plan, "
    "and Sizes. Repeatable.",
)
@click.option(
    "--beside",
    nargs=3,
    multiple=True,
    metavar="NAME I P",
    type=click.Path(path_type=Path),
    help="Another plan, of which a step, a failure and a straggler are simulated too. Repeatable.",
)
@click.option("--no-dag", is_flag=True, help="Draw no deployment DAGs (DIR/dags) for the page to show.")
@click.option("--rebuild", is_flag=True, help="Only make the page anew, from the rows that are in DIR.")
@json_option
def plan_report(
    instance: Path | None,
    placement: Path | None,
    traces: tuple[Path, ...],
    output: Path,
    sweeps: tuple[Path, ...],
    beside: tuple[tuple[Path, Path, Path], ...],
    no_dag: bool,
    rebuild: bool,
    json_: bool,
) -> None:
    """Hold a deployment plan against what is computed of it: one page (index.html, README.md) with pictures.

    It shows assumptions, placement, memory, steps with and without overlap, targets, conditions, failures, kernels,
    where statements contradict each other, and a verdict on every statement. Everything is computed, and kept as rows
    in DIR; the page is made from these alone, and the same rows give the same bytes. Beside it, DIR/dags has the four
    drawings of the deployment, which the page shows small. Takes about a minute and a half of CPU time.
    """
    from moe_placer.dag import write_dags
    from moe_placer.errors import UsageError
    from moe_placer.experiments.environment import describe_environment
    from moe_placer.experiments.plan.measure import measure_plan
    from moe_placer.experiments.plan.page import DRAWINGS
    from moe_placer.experiments.plan.plan_folder import read_rows, write_plan_page
    from moe_placer.experiments.row_files import write_rows
    from moe_placer.experiments.sweep.sweep import ROW
    from moe_placer.solve.folder import only_writer
    from moe_placer.verifier import verify

    if rebuild == (instance is not None):
        raise UsageError("give INSTANCE and PLACEMENT, or --rebuild and none of them")
    files: list[Path] = []
    with only_writer(output):
        if instance is not None:
            if placement is None:
                raise UsageError("PLACEMENT is missing")
            swept = [row for file in sweeps for row in read_rows(file, [ROW])]
            others = tuple((str(name), *open_verified(i, p, ())) for name, i, p in beside)
            opened, placed, traffic = open_verified(instance, placement, traces)
            found = verify(opened, placed, traffic)
            rows = [*measure_plan(opened, placed, traffic, found, log.info, others), *swept]
            write_rows(output, rows, describe_environment())
            if not no_dag:
                check = refute_dags(opened, placed, traffic)
                files += write_dags(
                    opened, placed, traffic, output / DRAWINGS, thumbnails=True, note=log.warn, check=check
                )
        files += write_plan_page(output)
    if json_:
        click.echo(as_json(written_files(files)))
    else:
        for path in files:
            click.echo(path)
