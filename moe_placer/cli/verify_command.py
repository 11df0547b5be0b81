"""``moe-placer verify``."""

from __future__ import annotations

from pathlib import Path

import click

from moe_placer.cli.options import (
    as_json,
    instance_argument,
    json_option,
    open_instance,
    placement_argument,
    trace_option,
)
from moe_placer.errors import VerificationError

__all__ = ["verify"]

_SHOWN = 50


@click.command()
@instance_argument
@placement_argument
@trace_option
@json_option
def verify(instance: Path, placement: Path, traces: tuple[Path, ...], json_: bool) -> int:
    """Check PLACEMENT against INSTANCE, trusting nothing in it.

    Recomputes every constraint, every link's load, each layer's worst link and each bound from the definitions, and
    lists every violation with layer, expert and GPU. Exit code 5 if there is any.
    """
    from moe_placer.placement import load_placement
    from moe_placer.result import gap
    from moe_placer.verifier import RULES
    from moe_placer.verifier import verify as check

    opened, placed = open_instance(instance, traces), load_placement(placement)
    found = check(opened, placed)
    gaps = [gap(layer.z, layer.bound) for layer in found.layers]
    if json_:
        content = {
            "schema": "moe-placer/verification/1",
            "ok": found.ok,
            "violations": [vars(violation) | {"text": str(violation)} for violation in found.violations],
            "total_z": found.total_z,
            "total_bound": found.total_bound,
            "max_z": found.max_z,
            "aggregate": found.aggregate,
            "max_gap": max(gaps, default=0.0),
            "layers": [vars(layer) | {"gap": g} for layer, g in zip(found.layers, gaps, strict=True)],
        }
        click.echo(as_json(content))
        return 0 if found.ok else VerificationError.exit_code
    if found.ok:
        click.echo(f"{placement}: good. {len(RULES)} rules hold in all {len(found.layers)} layers.")
        click.echo(f"  sum of worst links  {found.total_z:,.1f} tokens per step at node-link speed")
        click.echo(f"  re-derived bound    {found.total_bound:,.1f}: no placement has less")
        click.echo(f"  gap                 {max(gaps, default=0.0):.3%} in the worst layer (re-checked here)")
        return 0
    for violation in found.violations[:_SHOWN]:
        click.echo(str(violation))
    if len(found.violations) > _SHOWN:
        click.echo(f"... and {len(found.violations) - _SHOWN:,} more")
    click.echo(f"{placement}: NOT good, {len(found.violations):,} violations")
    return VerificationError.exit_code
