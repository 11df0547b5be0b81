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
from moe_placer.errors import InputError, Mistake, VerificationError

__all__ = ["verify"]

_SHOWN = 50


@click.command()
@instance_argument
@placement_argument
@trace_option
@click.option(
    "--dags",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the DAGs to check too.  [where PLACEMENT is]",
)
@click.option("--no-dag", is_flag=True, help="Check no DAGs.")
@json_option
def verify(
    instance: Path, placement: Path, traces: tuple[Path, ...], folder: Path | None, no_dag: bool, json_: bool
) -> int:
    """Check PLACEMENT against INSTANCE, trusting nothing in it, and the DAGs that lie beside it.

    Recomputes every constraint, every link's load, each layer's worst link and each bound from the definitions, and
    lists every violation with layer, expert and GPU. Of a good placement, DAGs (*_dag.json with *_dag.dot) are read
    back: no cycles, no loose ends, shapes, FLOPs and bytes, GPUs, communication, every replica once, tokens per edge.
    Exit code 5 if anything is violated.
    """
    from moe_placer.placement import load_placement
    from moe_placer.result import gap
    from moe_placer.traffic import load_traffic
    from moe_placer.verifier import RULES
    from moe_placer.verifier import verify as check
    from moe_placer.verifier.dags import verify_dags

    opened, placed = open_instance(instance, traces), load_placement(placement)
    traffic = load_traffic(opened)
    found = check(opened, placed, traffic)
    gaps = [gap(layer.z, layer.bound) for layer in found.layers]
    dags = () if no_dag or not found.ok else verify_dags(opened, placed, folder or placement.parent, traffic)
    if folder is not None and found.ok and not no_dag and not dags:
        raise InputError(Mistake("no *_dag.json", "DAGs that `moe-placer dag` has written", file=folder))
    good = found.ok and not any(dag.violations for dag in dags)
    if json_:
        content = {
            "schema": "moe-placer/verification/1",
            "ok": good,
            "violations": [vars(violation) | {"text": str(violation)} for violation in found.violations],
            "total_z": found.total_z,
            "total_bound": found.total_bound,
            "max_z": found.max_z,
            "aggregate": found.aggregate,
            "max_gap": max(gaps, default=0.0),
            "layers": [vars(layer) | {"gap": g} for layer, g in zip(found.layers, gaps, strict=True)],
            "dags": [
                vars(dag) | {"violations": [vars(one) | {"text": str(one)} for one in dag.violations]} for dag in dags
            ],
        }
        click.echo(as_json(content))
        return 0 if good else VerificationError.exit_code
    if found.ok:
        click.echo(f"{placement}: good. {len(RULES)} rules hold in all {len(found.layers)} layers.")
        click.echo(f"  sum of worst links  {found.total_z:,.1f} tokens per step at node-link speed")
        click.echo(f"  re-derived bound    {found.total_bound:,.1f}: no placement has less")
        click.echo(f"  gap                 {max(gaps, default=0.0):.3%} in the worst layer (re-checked here)")
    else:
        _list(str(placement), list(map(str, found.violations)))
    for dag in dags:
        if dag.violations:
            _list(dag.name, list(map(str, dag.violations)))
        else:
            click.echo(
                f"{dag.name}: good. {dag.operations:,} operations and {dag.edges:,} edges agree with the placement."
            )
    return 0 if good else VerificationError.exit_code


def _list(name: str, violations: list[str]) -> None:
    """Print what is wrong, as far as anyone would read it."""
    for violation in violations[:_SHOWN]:
        click.echo(violation)
    if len(violations) > _SHOWN:
        click.echo(f"... and {len(violations) - _SHOWN:,} more")
    click.echo(f"{name}: NOT good, {len(violations):,} violation{'s' if len(violations) > 1 else ''}")
