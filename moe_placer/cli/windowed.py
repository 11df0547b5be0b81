"""What ``solve --windows`` adds: the instance with windows, what each window costs, and the commands to run next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moe_placer.cli.options import trace_words
from moe_placer.errors import visible
from moe_placer.files import write_atomically

if TYPE_CHECKING:
    from moe_placer.instance import Instance
    from moe_placer.solve.solve import Solution

__all__ = ["WINDOWED", "over_windows", "scenario_z", "tell_of_windows", "write_windowed"]

WINDOWED = "windows-instance.yaml"


def over_windows(instance: Instance, windows: int | None) -> Instance:
    """Return the instance judged on so many windows; without any, as it is."""
    return instance if windows is None else instance.over_windows(windows)


def write_windowed(instance: Instance, windows: int | None, folder: Path) -> None:
    """Write the instance with windows beside its placement, where windows were asked for."""
    from moe_placer.instance.writer import dump_instance

    if windows is not None:
        write_atomically(folder / WINDOWED, dump_instance(instance))


def tell_of_windows(instance: Path, traces: tuple[Path, ...], placement: Path, windows: int | None) -> None:
    """Print the commands that verify a plan for windows and measure how long it lasts; nothing without windows.

    Parameters
    ----------
    instance : Path
        As it was given.
    traces : tuple of Path
        Likewise.
    placement : Path
        That was written.
    windows : int or None
    """
    if windows is None:
        return
    check = shlex.join(map(str, ["moe-placer", "verify", placement.parent / WINDOWED, placement]))
    follow = ["moe-placer", "follow", instance, placement, *trace_words(traces), "--windows", windows]
    last = shlex.join(map(str, follow))
    click.echo(f"Placed for the worst of {windows} windows, as {WINDOWED} says: {visible(check)}")
    click.echo(f"How long it lasts, and what re-planning gains (name later recordings): {visible(last)}")


def scenario_z(instance: Instance, solution: Solution) -> list[float] | None:
    """Sum over layers the cost of the busiest link of every scenario; None where the mix counts."""
    from moe_placer.verifier.scenarios import count_scenarios

    if instance.objective.scenarios == "mix":
        return None
    count = count_scenarios(instance, solution.traffic)
    cost = solution.verification.cost
    return [float(value) for value in cost.reshape(len(cost), count, -1).max(axis=2, initial=0.0).sum(axis=0)]
