"""``moe-placer inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from moe_placer.cli.options import as_json, instance_argument, json_option, open_instance, trace_option

__all__ = ["inspect"]


@click.command()
@instance_argument
@trace_option
@json_option
def inspect(instance: Path, traces: tuple[Path, ...], json_: bool) -> None:
    """Tell in plain words what INSTANCE asks, and whether it can be feasible."""
    from moe_placer.cli.describe import describe
    from moe_placer.traffic import load_traffic

    opened = open_instance(instance, traces)
    # A trace instance without its files can still be told about, but for the skew of its demand.
    recorded = getattr(opened.traffic, "files", None)
    described = describe(opened, None if recorded == () else load_traffic(opened))
    click.echo(as_json(described.to_dict()) if json_ else described.to_text())
