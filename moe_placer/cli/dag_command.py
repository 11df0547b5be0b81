"""``moe-placer dag``."""

from __future__ import annotations

from pathlib import Path

import click

from moe_placer.cli import log
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import (
    json_option,
    open_verified,
    placed_arguments,
    refute_dags,
    written_files,
)

__all__ = ["dag"]


@click.command()
@placed_arguments
@click.option(
    "-o", "--output", metavar="DIR", type=click.Path(path_type=Path), default=Path(), help="Folder to write to.  [.]"
)
@click.option(
    "--operators",
    is_flag=True,
    help="Write the graph down to operators instead: one layer in full (layer_operators), the whole model as data "
    "(model_operators).",
)
@click.option("--layer", type=int, metavar="N", help="Layer of --operators.  [the one with the busiest link]")
@click.option(
    "--phase",
    type=click.Choice(["prefill", "decode"]),
    default="prefill",
    show_default=True,
    help="Phase of the step that --operators shows.",
)
@click.option(
    "--context",
    type=click.FloatRange(1, 1e9),
    metavar="N",
    default=4096,
    show_default=True,
    help="Of --operators: tokens of a sequence (prefill), or that each token attends to (decode).",
)
@json_option
def dag(
    instance: Path,
    placement: Path,
    traces: tuple[Path, ...],
    output: Path,
    operators: bool,
    layer: int | None,
    phase: str,
    context: float,
    json_: bool,
) -> None:
    """Draw the deployment DAGs of PLACEMENT (.dot, .svg and .json), each verified before it is written.

    The large ones are also written as .html: one file with search, zoom and details, which needs no network. Of a very
    large deployment, drawings show some of the layers; standard error names them.
    """
    from moe_placer.dag import write_dags
    from moe_placer.dag.operators import Attended, write_operators
    from moe_placer.errors import UsageError
    from moe_placer.solve.folder import only_writer

    if layer is not None and not operators:
        raise UsageError("--layer says which layer --operators draws")

    opened, placed, traffic = open_verified(instance, placement, traces)
    files: list[Path] = []
    wrote, check = files.append if json_ else click.echo, refute_dags(opened, placed, traffic)
    with only_writer(output):
        if operators:
            attended = Attended(phase, context)
            write_operators(
                opened, placed, traffic, output, attended, layer=layer, wrote=wrote, note=log.warn, check=check
            )
        else:
            write_dags(opened, placed, traffic, output, wrote=wrote, note=log.warn, check=check)
    if json_:
        click.echo(as_json(written_files(files)))
