"""``moe-placer verify``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import (
    counted,
    json_option,
    open_instance,
    placed_arguments,
)
from moe_placer.errors import InputError, Mistake, UsageError, VerificationError

if TYPE_CHECKING:
    from moe_placer.cli.results.verified import VerifyResult
    from moe_placer.verifier import Verification
    from moe_placer.verifier.dags import DagCheck

__all__ = ["verify"]

_SHOWN = 50


@click.command()
@placed_arguments
@click.option(
    "--dags",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the DAGs to check too.  [where PLACEMENT is]",
)
@click.option("--no-dag", is_flag=True, help="Check no DAGs.")
@click.option(
    "--current",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The placement that ran before: check moves from it, their budget, and the bound within that.",
)
@click.option(
    "--transfers",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Transfers from --current, to replay.",
)
@json_option
def verify(
    instance: Path,
    placement: Path,
    traces: tuple[Path, ...],
    folder: Path | None,
    no_dag: bool,
    current: Path | None,
    transfers: Path | None,
    json_: bool,
) -> int:
    """Check PLACEMENT against INSTANCE, trusting nothing in it, and the DAGs that lie beside it.

    Recomputes every constraint, every link's load, each layer's busiest link and each bound from the definitions, and
    lists every violation with layer, expert and GPU. What only the solver vouches for, and what cannot be checked, is
    named as such. Of a good placement, DAGs (NAME_dag.json with NAME_dag.dot) are read back: no cycles, no loose ends,
    shapes, FLOPs and bytes, GPUs, communication, every replica once, tokens per edge.
    Exit code 5 if anything is violated.
    """
    from moe_placer.placement import load_placement
    from moe_placer.traffic import load_traffic
    from moe_placer.verifier import verify as check
    from moe_placer.verifier.dags import verify_dags
    from moe_placer.verifier.transfer_file import load_transfers

    opened, placed = open_instance(instance, traces), load_placement(placement)
    traffic = load_traffic(opened)
    if transfers is not None and current is None:
        raise UsageError("--transfers lead from one placement to another, and need --current FILE")
    before = load_placement(current) if current else None
    found = check(opened, placed, traffic, before, load_transfers(transfers) if transfers else None)
    dags = () if no_dag or not found.ok else verify_dags(opened, placed, folder or placement.parent, traffic)
    if folder is not None and found.ok and not no_dag and not dags:
        raise InputError(Mistake("no *_dag.json", "DAGs that `moe-placer dag` has written", file=folder))
    good = found.ok and not any(dag.violations for dag in dags)
    if json_:
        click.echo(as_json(_content(found, dags, good)))
        return 0 if good else VerificationError.exit_code
    if found.ok:
        from moe_placer.fabric import COST

        for line in _findings(str(placement), found, COST[opened.objective.metric]):
            click.echo(line)
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


def _content(found: Verification, dags: Sequence[DagCheck], good: bool) -> VerifyResult:
    """Return what ``--json`` prints."""
    gaps = _gaps(found)
    content = {
        "schema": "moe-placer/verification/1",
        "ok": good,
        "violations": [vars(violation) | {"text": str(violation)} for violation in found.violations],
        "total_z": found.total_z,
        "total_bound": found.total_bound,
        "max_z": found.max_z,
        "aggregate": found.aggregate,
        "dispatch_us": found.dispatch_us,
        "combine_us": found.combine_us,
        "layer_time_us": found.total_layer_us,
        "layer_time_bound_us": found.layer_us_bound,
        "aggregate_link": found.aggregate_link,
        "aggregate_tokens": found.aggregate_tokens,
        "aggregate_us": found.aggregate_us,
        "aggregate_bound": found.aggregate_bound or None,
        "memory_bound": found.memory_bound or None,
        "budget_bound": found.budget_bound or None,
        "max_gap": max(gaps, default=0.0),
        "bounds": {
            "rederived_layers": sum(layer.rederived for layer in found.layers),
            "given_replicas_only_layers": sum(layer.bound_given_replicas is not None for layer in found.layers),
            "claimed_only_layers": len(_claimed_only(found)),
            "claimed_higher_layers": len(_claimed_higher(found)),
        },
        "facts": {"checked": found.facts_checked, "not_checked": found.facts_not_checked},
        "layers": [
            vars(layer) | {"rederived": layer.rederived, "gap": gap}
            for layer, gap in zip(found.layers, gaps, strict=True)
        ],
        "dags": [
            vars(dag) | {"violations": [vars(one) | {"text": str(one)} for one in dag.violations]} for dag in dags
        ],
    }
    return cast(
        "VerifyResult", content
    )  # of dataclasses, whose keys mypy does not follow; a test holds the output to it


def _gaps(found: Verification) -> list[float]:
    from moe_placer.result import gap

    return [gap(layer.z, layer.bound) for layer in found.layers]


def _claimed_only(found: Verification) -> list[float]:
    """Bounds of layers that have no other than the solver's word."""
    return [layer.claimed_bound or 0.0 for layer in found.layers if layer.proof == "solver"]


def _claimed_higher(found: Verification) -> list[float]:
    """Bounds by the solver's word where there is a re-derived one, which is lower."""
    return [one.claimed_bound for one in found.layers if one.proof != "solver" and one.claimed_bound is not None]


def _findings(name: str, found: Verification, cost: str) -> list[str]:
    """Say of a good placement what was recomputed, what that proves, and what nobody has checked."""
    from moe_placer.result import gap
    from moe_placer.verifier import RULES

    worst = max(_gaps(found), default=0.0)
    lines = [
        f"{name}: good. {len(RULES)} rules hold in all {len(found.layers)} layers.",
        f"  busiest links       {found.total_z:,.1f} (cost, sum over layers)",
        f"  cost                {cost}",
        f"  dispatch            {found.dispatch_us / 1e3:,.3f} ms per step, one way: each layer's slowest link in turn",
        f"  combine             {found.combine_us / 1e3:,.3f} ms: dispatch reversed, {found.back:.4g} times its bytes",
        f"  re-derived bound    {found.total_bound:,.1f}: no placement has less" if found.total_bound else "",
        f"  gap                 {_share(worst)} in the worst layer (re-checked here)",
        f"  layer times         {found.total_layer_us / 1e3:,.3f} ms: dispatch, slowest GPU, combine of layers in turn",
        f"  re-derived bound    {found.layer_us_bound / 1e3:,.3f} ms in any placement" if found.layer_us_bound else "",
        *_provenance(found),
        *_busiest_links(found),
    ]
    if found.aggregate_bound:
        above = gap(found.aggregate, found.aggregate_bound)
        lines.append(f"  re-derived bound    {found.aggregate_bound:,.1f}: no placement has less over all layers")
        lines.append(f"  gap                 {above:.3%} (re-checked here)")
    if found.budget_bound:
        bound = f"{found.budget_bound:,.1f}: no placement within its budget of moves has less over all layers"
        lines.append(f"  re-derived bound    {bound}")
    lines.append(f"  facts               checked: {_listed(found.facts_checked)}")
    lines.append(f"                      not checked: {_listed(found.facts_not_checked)}")
    return [line for line in lines if line]


def _busiest_links(found: Verification) -> list[str]:
    """Name the busiest link of the costliest layer, and the busiest link over all layers."""
    from moe_placer.fabric import link_words

    worst = max(found.layers, key=lambda check: check.z, default=None)
    if worst is None or not worst.z:
        return ["  busiest link        none: nothing crosses between nodes"]
    of_layer = link_words(worst.worst_link_tokens, worst.worst_link_us, worst.worst_link_cost)
    in_all = link_words(found.aggregate_tokens, found.aggregate_us, found.aggregate)
    return [
        f"  busiest link        {worst.worst_link} in layer {worst.layer}: {of_layer}",
        f"  busiest link total  {found.aggregate_link} over all layers: {in_all}",
    ]


def _provenance(found: Verification) -> list[str]:
    """Say of how many layers the bound was derived here, and of how many it is only claimed."""
    layers, claimed, higher = len(found.layers), _claimed_only(found), _claimed_higher(found)
    given = [layer.bound_given_replicas for layer in found.layers if layer.bound_given_replicas is not None]
    lines = [f"  re-derived          {sum(layer.rederived for layer in found.layers)} of {layers} layers"]
    if claimed:
        text = f"{counted(len(claimed), 'layer')}, bounds of {sum(claimed):,.1f} in all"
        lines.append(f"                      claimed by the solver only, not checked: {text}")
    if higher:
        text = f"higher bounds of {counted(len(higher), 'layer')}, {sum(higher):,.1f} in all"
        lines.append(f"                      claimed by the solver only, not checked: {text}")
    if given:
        text = f"{sum(given):,.1f} in {counted(len(given), 'layer')}; other numbers of replicas may have less"
        lines.append(f"  for these replicas  {text}")
    return lines


def _share(gap: float) -> str:
    return f"{gap:.3%}" if gap < float("inf") else "not known"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _list(name: str, violations: list[str]) -> None:
    """Print what is wrong, as far as anyone would read it."""
    for violation in violations[:_SHOWN]:
        click.echo(violation)
    if len(violations) > _SHOWN:
        click.echo(f"... and {len(violations) - _SHOWN:,} more")
    click.echo(f"{name}: NOT good, {len(violations):,} violation{'s' if len(violations) > 1 else ''}")
