"""``moe-placer dag``."""

from __future__ import annotations

from pathlib import Path

import click

from moe_placer.cli import log
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import (
    instance_argument,
    json_option,
    open_verified,
    placement_argument,
    refute_dags,
    trace_option,
    written_files,
)

__all__ = ["dag"]


@click.command()
@instance_argument
@placement_argument
@trace_option
@click.option(
    "-o", "--output", metavar="DIR", type=click.Path(path_type=Path), default=Path(), help="Folder to write to.  [.]"
)
@json_option
def dag(instance: Path, placement: Path, traces: tuple[Path, ...], output: Path, json_: bool) -> None:
    """Draw the deployment DAGs of PLACEMENT (.dot, .svg and .json), each verified before it is written.

    The large ones are also written as .html: one file with search, zoom and details, which needs no network. What a
    very large deployment has too much of is left out, and said on standard error.
    """
    from moe_placer.dag import write_dags
    from moe_placer.solve.folder import only_writer

    opened, placed, traffic = open_verified(instance, placement, traces)
    files: list[Path] = []
    with only_writer(output):
        write_dags(
            opened,
            placed,
            traffic,
            output,
            wrote=files.append if json_ else click.echo,
            note=log.warn,
            check=refute_dags(opened, placed, traffic),
        )
    if json_:
        click.echo(as_json(written_files(files)))
