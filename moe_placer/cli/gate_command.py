"""``moe-placer gate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import (
    check_sharing_asked,
    json_option,
    open_instance,
    placed_arguments,
    share,
    shared_lines,
    sharing_option,
)
from moe_placer.errors import GateError, VerificationError

if TYPE_CHECKING:
    from moe_placer.cli.results.deciding import GateResult
    from moe_placer.decisions.gate import Gate, GateCheck
    from moe_placer.schedule.coarse_network import Sharing

__all__ = ["gate"]

_SHOWN = 20

EXAMPLES = """
\b
Examples:
  moe-placer gate instance.yaml out/placement.json --max-gap 1% --max-imbalance 25%
  moe-placer gate instance.yaml out/placement.json --current deployed.json --min-gain 2% --max-moves 500
"""

_LIMITS: tuple[Callable[[Any], Any], ...] = (
    click.option("--max-gap", type=share, metavar="G", help="Gap of the objective to its re-derived bound, as 1%."),
    click.option("--max-layer-gap", type=share, metavar="G", help="Gap of every layer to its re-derived bound, as 1%."),
    click.option("--max-z", type=float, metavar="N", help="Cost of the busiest link of every layer."),
    click.option("--max-total-z", type=float, metavar="N", help="Sum over layers of the costs of busiest links."),
    click.option("--max-aggregate", type=float, metavar="N", help="Cost of the busiest link over all layers together."),
    click.option(
        "--max-dispatch",
        "max_dispatch_ms",
        type=float,
        metavar="MS",
        help="Milliseconds of all layers' dispatch, one after the other, one way.",
    ),
    click.option(
        "--max-layer-time",
        "max_layer_time_ms",
        type=float,
        metavar="MS",
        help="Milliseconds of dispatch, slowest GPU and combine of all layers, one after the other.",
    ),
    click.option("--max-busiest-gpu", type=float, metavar="N", help="Tokens per step of the busiest GPU in any layer."),
    click.option(
        "--max-imbalance",
        type=share,
        metavar="X",
        help="Tokens of the busiest GPU above the mean of working GPUs, in any layer, as 25%.",
    ),
    click.option(
        "--max-step",
        "max_step_ms",
        type=float,
        metavar="MS",
        help="Milliseconds of a simulated step (which takes seconds to simulate).",
    ),
    click.option(
        "--min-gain",
        type=share,
        metavar="X",
        help="How far the objective must be below that of --current, on the same traffic, as 2%.",
    ),
    click.option("--max-moves", type=int, metavar="N", help="Replicas that GPUs load, coming from --current."),
)


def _limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_LIMITS):
        command = option(command)
    return command


@click.command(epilog=EXAMPLES)
@placed_arguments
@_limit_options
@click.option(
    "--current", metavar="PLACEMENT", type=click.Path(path_type=Path), help="Placement file of what runs today."
)
@sharing_option
@json_option
def gate(
    instance: Path,
    placement: Path,
    traces: tuple[Path, ...],
    current: Path | None,
    sharing: Sharing,
    json_: bool,
    **limits: Any,
) -> None:
    """Verify PLACEMENT again, trusting nothing in it, and hold its recomputed figures to limits.

    Exit code 0: good, and all limits hold; 5: it breaks a rule, and no limit is looked at; 6: a limit does not hold. A
    gap that is not known, for want of a bound, does not hold.
    """
    from moe_placer.decisions.gate import GateLimits
    from moe_placer.decisions.gate import gate as check
    from moe_placer.placement import load_placement

    asked = GateLimits(**limits)
    check_sharing_asked(asked.max_step_ms is not None, "--max-step")
    opened, placed = open_instance(instance, traces), load_placement(placement)
    before = None if current is None else load_placement(current)
    found = check(opened, placed, asked, current=before, sharing=sharing)
    simulated = None if asked.max_step_ms is None or not found.verification.ok else sharing
    if json_:
        click.echo(as_json(_content(opened.name, placement, found, simulated)))
    else:
        for line in (*_lines(placement, found), *shared_lines(simulated)):
            click.echo(line)
    if not found.verification.ok:
        rules = [violation.rule for violation in found.verification.violations]
        raise VerificationError(f"{placement} breaks a rule: {found.verification.violations[0]}", rules)
    exceeded = [check for check in found.checks if not check.ok]
    if exceeded:
        raise GateError(f"{placement} does not hold {_count(len(exceeded))}: {'; '.join(map(_said, exceeded))}")


def _count(limits: int) -> str:
    return "a limit" if limits == 1 else f"{limits} limits"


def _said(check: GateCheck) -> str:
    most = "at least" if check.limit.startswith("min-") else "at most"
    return f"{_name(check)} is {_figure(check.value, check.unit)}, {most} {_figure(check.allowed, check.unit)} allowed"


def _name(check: GateCheck) -> str:
    return check.limit.removeprefix("max-").removeprefix("min-").replace("-", " ")


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "not known"
    return f"{value:.3%}" if unit == "share" else f"{value:,.6g} {unit}"


def _lines(placement: Path, found: Gate) -> list[str]:
    verification = found.verification
    if not verification.ok:
        broken = [f"  {violation}" for violation in verification.violations[:_SHOWN]]
        more = len(verification.violations) - _SHOWN
        return [f"{placement}: NOT good", *broken, *([f"  ... and {more:,} more"] if more > 0 else [])]
    held = sum(check.ok for check in found.checks)
    lines = [f"{placement}: good; {held} of {len(found.checks)} limits hold"]
    for check in found.checks:
        most = "at least" if check.limit.startswith("min-") else "at most"
        text = f"{_figure(check.value, check.unit)}, {most} {_figure(check.allowed, check.unit)}"
        lines.append(f"  {'holds' if check.ok else 'FAILS':<7}{_name(check):<14}{text}")
    return lines


def _content(instance: str, placement: Path, found: Gate, sharing: Sharing | None) -> GateResult:
    verification = found.verification
    return {
        "schema": "moe-placer/gate/1",
        "ok": found.ok,
        "instance": instance,
        "placement": str(placement),
        "verified": verification.ok,
        "violations": [
            {
                "rule": violation.rule,
                "message": violation.message,
                "layer": violation.layer,
                "expert": violation.expert,
                "replica": violation.replica,
                "gpu": violation.gpu,
                "text": str(violation),
            }
            for violation in verification.violations
        ],
        "checks": list(found.checks),
        "sharing": sharing,
    }
