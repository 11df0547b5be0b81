"""``moe-placer dag``."""

from __future__ import annotations

from pathlib import Path

import click

from moe_placer.cli.options import instance_argument, open_verified, placement_argument, trace_option

__all__ = ["dag"]


@click.command()
@instance_argument
@placement_argument
@trace_option
@click.option(
    "-o", "--output", metavar="DIR", type=click.Path(path_type=Path), default=Path(), help="Folder to write to.  [.]"
)
def dag(instance: Path, placement: Path, traces: tuple[Path, ...], output: Path) -> None:
    """Draw the deployment DAGs of PLACEMENT (.dot, .svg and .json).

    The large ones are also written as .html: one file with search, zoom and details, which needs no network. What a
    very large deployment has too much of is left out, and said on standard error.
    """
    from moe_placer.dag import write_dags

    opened, placed, traffic = open_verified(instance, placement, traces)
    write_dags(
        opened, placed, traffic, output, wrote=click.echo, note=lambda text: click.echo(f"moe-placer: {text}", err=True)
    )
