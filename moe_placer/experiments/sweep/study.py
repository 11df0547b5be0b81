"""A study: several sweeps over placements that it solves for, as a report folder's config.json says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, ValidationError

from moe_placer.errors import InputError, Mistake, UsageError
from moe_placer.experiments.environment import describe_environment
from moe_placer.experiments.sweep.sweep import Grid, Plan, list_points, make_plan, run_points
from moe_placer.files import read_bounded
from moe_placer.instance import load_instance
from moe_placer.instance.section import ListOf, Section
from moe_placer.limits import Limits
from moe_placer.schedule.workload import Phase
from moe_placer.solve.solve import solve
from moe_placer.traffic import load_traffic

__all__ = ["Study", "read_study", "run_study"]

Row = dict[str, Any]
Tell = Callable[[str], None]

_MOST_BYTES = 1_000_000


class Choice(Section):
    """A plan: an instance file, relative to the study's folder, and who places its experts."""

    instance: str
    solver: str
    seed: int = 0
    time_limit_s: PositiveFloat = 60.0


class Sweep(Section):
    """One sweep: plans by name, and a grid as that of ``moe-placer sweep``; absent is what an instance says."""

    title: str
    plans: ListOf[str] = Field(min_length=1)
    phases: ListOf[Phase] = ("prefill",)
    tokens_per_gpu: ListOf[float] | None = None
    contexts: ListOf[float] = (4096.0,)
    oversubscriptions: ListOf[float] | None = None
    micro_batches: int = 2

    @property
    def grid(self) -> Grid:
        """The combinations to simulate."""
        return Grid(
            self.phases,
            self.tokens_per_gpu or (None,),
            self.contexts,
            self.oversubscriptions or (None,),
            self.micro_batches,
        )


class Study(Section):
    """What a report folder's config.json holds."""

    title: str
    workers: int = Field(2, ge=1)
    plans: Mapping[str, Choice]
    sweeps: ListOf[Sweep] = Field(min_length=1)


def read_study(file: Path) -> Study:
    """Read a study.

    Raises
    ------
    InputError
        It is missing or wrong.
    """
    expected = "a study (see reports/*-schedule/config.json)"
    try:
        study = Study.model_validate_json(read_bounded(file, _MOST_BYTES, expected))
    except ValidationError as error:
        raise InputError(Mistake(f"what cannot be read ({error})", expected, file=file)) from None
    for sweep in study.sweeps:
        for name in sweep.plans:
            if name not in study.plans:
                raise InputError(Mistake(f"the plan {name}", f"one of {', '.join(study.plans)}", "sweeps", file))
    return study


def run_study(study: Study, folder: Path, tell: Tell) -> tuple[list[Row], Row]:
    """Solve, compile and simulate everything; return the rows, in the order of the sweeps, and the environment.

    Parameters
    ----------
    folder : Path
        What instance files are relative to.
    tell : callable
        Told of progress, a line at a time.

    Raises
    ------
    InputError, UsageError, NothingFoundError
        An instance, a solver or a value is wrong; all values are checked before the first step is simulated.
    """
    plans = {name: _solved(name, choice, folder, study.workers, tell) for name, choice in study.plans.items()}
    todo = []
    for sweep in study.sweeps:
        here = [plans[name] for name in sweep.plans]
        todo.append((sweep.title, here, list_points(here, sweep.grid)))
    every = list(plans.values())
    # One pool for all sweeps: points name their plan by its index among all.
    points = [replace(point, plan=every.index(here[point.plan])) for _, here, found in todo for point in found]
    titles = [title for title, _, found in todo for _ in found]
    if len(set(titles)) < len(todo):
        raise UsageError("two sweeps have the same title")
    started, rows = time.monotonic(), {}
    for index, row in run_points(every, points, study.workers):
        rows[index] = {"sweep": titles[index], **row}
        tell(f"{len(rows)}/{len(points)} {titles[index]}: {row['plan']}, {row['latency_us'] / 1e3:,.2f} ms")
    seconds = round(time.monotonic() - started, 1)
    run = {"points": len(points), "seconds": seconds, "workers": study.workers}
    return [rows[index] for index in sorted(rows)], describe_environment() | run


def _solved(name: str, choice: Choice, folder: Path, workers: int, tell: Tell) -> Plan:
    instance = load_instance(folder / choice.instance)
    traffic = load_traffic(instance)
    limits = Limits(time_s=choice.time_limit_s, workers=workers)
    solution = solve(instance, traffic, solver=choice.solver, limits=limits, seed=choice.seed)
    tell(f"{name}: placed by {choice.solver}")
    return make_plan(instance, solution.placement, traffic, name)
