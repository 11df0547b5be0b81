"""``moe-placer inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import instance_argument, json_option, open_instance, trace_option
from moe_placer.errors import InfeasibleError

__all__ = ["inspect"]


@click.command()
@instance_argument
@trace_option
@json_option
def inspect(instance: Path, traces: tuple[Path, ...], json_: bool) -> int:
    """Tell in plain words what INSTANCE asks, whether it can be feasible, and what solving it takes.

    The exit code is 3 where counting slots and memory proves that no placement can exist.
    """
    from moe_placer.cli.describe import describe
    from moe_placer.solve.estimate import demand_bytes
    from moe_placer.traffic import load_traffic
    from moe_placer.workers import available_memory

    opened = open_instance(instance, traces)
    # An instance without its traces, or too large for this machine, can still be told about, but for its demand.
    unread = getattr(opened.traffic, "files", None) == () or demand_bytes(opened) > available_memory()
    described = describe(opened, None if unread else load_traffic(opened))
    click.echo(as_json(described) if json_ else described.to_text())
    return InfeasibleError.exit_code if described.infeasible else 0
