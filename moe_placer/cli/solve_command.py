"""``moe-placer solve``."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from moe_placer.cli.options import (
    as_json,
    engine_option,
    instance_argument,
    json_option,
    open_instance,
    trace_option,
)
from moe_placer.errors import GapError, UsageError
from moe_placer.workers import usable_cores

if TYPE_CHECKING:
    from moe_placer.cli.plans import PlanFigures
    from moe_placer.instance import Instance
    from moe_placer.instance.schema import Engine
    from moe_placer.limits import Limits
    from moe_placer.solve.estimate import Estimate
    from moe_placer.solve.solve import Solution

__all__ = ["solve"]

_ONE_WISH_S = 0.2  # `timeout` and job managers signal a process and its group: twice, but one wish


EXAMPLES = """
\b
Examples:
  moe-placer solve instances/h100-128.yaml
  moe-placer solve instances/dsv2-lite-128.yaml --trace intent.npz --trace summary.npz --time-limit 30
"""


@click.command(epilog=EXAMPLES)
@instance_argument
@trace_option
@engine_option
@click.option("--solver", default="auto", show_default=True, metavar="NAME", help="See `moe-placer solvers`.")
@click.option("--time-limit", default=60.0, show_default=True, metavar="S", help="Seconds for the whole solve.")
@click.option("--gap", default=0.001, show_default=True, metavar="G", help="Done within this of the bound: 0.01 is 1%.")
@click.option(
    "--workers", default=usable_cores, show_default="all cores", metavar="N", type=int, help="Worker processes."
)
@click.option("--seed", default=0, show_default=True, metavar="N", help="Same seed and limits, same placement.")
@click.option("--work", default=None, metavar="W", type=float, help="Deterministic effort instead of one from S and N.")
@click.option(
    "--memory", metavar="GB", type=float, show_default="what is left", help="Refuse what is estimated to take more."
)
@click.option("--start", metavar="FILE", type=click.Path(path_type=Path), help="A placement to improve on.")
@click.option("-o", "--output", metavar="DIR", type=click.Path(path_type=Path), help="Folder to write to.  [out/NAME]")
@click.option("--no-dag", is_flag=True, help="Write no DAGs.")
@click.option(
    "--step", is_flag=True, help="Simulate a step of the placement and of every heuristic beside it: seconds each."
)
@click.option(
    "--fail-above-gap",
    metavar="G",
    type=float,
    help="Exit code 6 if the objective is not within this of its re-checkable bound: 0.01 is 1%.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress on standard error.")
@json_option
def solve(
    instance: Path,
    traces: tuple[Path, ...],
    engine: Engine | None,
    solver: str,
    time_limit: float,
    gap: float,
    workers: int,
    seed: int,
    work: float | None,
    memory: float | None,
    start: Path | None,
    output: Path | None,
    no_dag: bool,
    step: bool,
    fail_above_gap: float | None,
    quiet: bool,
    json_: bool,
) -> None:
    """Place every expert of INSTANCE, verify the placement, and write it with its DAGs.

    Ctrl-C (or SIGTERM) stops early: the best placement so far is verified and written.
    """
    from moe_placer.cli.progress_display import show_progress
    from moe_placer.limits import Limits
    from moe_placer.placement import load_placement
    from moe_placer.solve.solve import solve as place

    allowed = None if memory is None else 1e9 * memory
    limits = Limits(time_s=time_limit, gap=gap, workers=workers, work=work, memory_bytes=allowed)
    _check_gate(fail_above_gap)
    opened = open_instance(instance, traces, engine)
    if step and opened.placement.counts_tokens_once:
        unit = opened.placement.dispatch
        raise UsageError(f"--step simulates a copy per chosen expert, and placement.dispatch is {unit}; leave it out")
    before = load_placement(start) if start else None
    estimated = _estimate(opened, solver, limits, no_dag)
    if not (quiet or json_):
        click.echo(f"{opened.name}: {estimated.to_text()}", err=True)
    with _stop_on_signal() as interrupted, show_progress(opened.name, time_limit, quiet or json_) as progress:
        solution = place(
            opened, solver=solver, limits=limits, seed=seed, start=before, progress=progress, interrupted=interrupted
        )
    # Now all is there that was asked for: a late Ctrl-C may cost drawings, but not the placement or its summary.
    with _on_signals(signal.SIG_IGN):
        files = _write(opened, solution, output or Path("out") / opened.name, no_dag)
        plans, step_s = _measure(opened, solution, step, quiet or json_)
        if json_:
            told = {"memory_bytes": estimated.peak_bytes, "seconds": dict(estimated.seconds)}
            click.echo(as_json({**_report(opened, solution, plans, files), "estimate": told}))
        else:
            from moe_placer.cli.summary import print_summary

            print_summary(opened, solution, plans, step_s, files)
    if fail_above_gap is not None and not solution.gap <= fail_above_gap:
        found = f"{solution.gap:.3%}" if math.isfinite(solution.gap) else "not known"
        raise GapError(f"the gap to the re-checkable bound is {found}, above --fail-above-gap {fail_above_gap:.3%}")


def _check_gate(gap: float | None) -> None:
    if gap is not None and not 0 <= gap < math.inf:
        raise UsageError(f"--fail-above-gap is {gap:g}, expected 0 or more (0.01 is 1%)")


def _measure(
    instance: Instance, solution: Solution, step: bool, quiet: bool
) -> tuple[dict[str, PlanFigures], float | None]:
    """Measure every plan, simulate their steps if asked to, and say how many seconds the steps took."""
    from moe_placer.cli.plans import measure_plans, simulate_steps

    plans = measure_plans(instance, solution)
    if not step:
        return plans, None
    begun = time.monotonic()

    def tell(name: str) -> None:
        if not quiet:
            click.echo(f"simulating a step: {name}", err=True)

    try:
        with _on_signals(signal.default_int_handler):
            return simulate_steps(instance, solution, plans, tell), time.monotonic() - begun
    except KeyboardInterrupt:
        click.echo("moe-placer: stopped simulating; `moe-placer schedule` simulates the placement's step", err=True)
        return plans, None


def _estimate(instance: Instance, solver: str, limits: Limits, no_dag: bool) -> Estimate:
    """Estimate a solve with its DAGs, and refuse what the memory cannot hold, before hours are spent on it."""
    from moe_placer.solve.estimate import estimate, refuse_too_large
    from moe_placer.solve.registry import find_solver

    searches = not getattr(find_solver(solver), "quick", False)
    estimated = estimate(instance, limits.workers, searches, dags=not no_dag)
    refuse_too_large(instance.name, estimated, limits.memory_bytes, "" if no_dag else "--no-dag, ")
    return estimated


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a wish to stop; a second one ends the program."""
    received: list[float] = []

    def note(_number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if received:
            if now - received[0] < _ONE_WISH_S:
                return
            raise KeyboardInterrupt
        received.append(now)
        sys.stderr.write("\nstopping: keeping the best placement so far (again to give up)\n")

    with _on_signals(note):
        yield lambda: bool(received)


@contextmanager
def _on_signals(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM do something else for a while."""
    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(instance: Instance, solution: Solution, folder: Path, no_dag: bool) -> list[Path]:
    """Write the placement, then its DAGs as far as no signal stops it; every file whole or not at all."""
    placement = folder / "placement.json"
    solution.placement.write(placement)
    if not no_dag and instance.placement.counts_tokens_once:
        unit = instance.placement.dispatch
        click.echo(f"moe-placer: no DAGs, which send a copy per chosen expert, not {unit} as the instance", err=True)
    if no_dag or instance.placement.counts_tokens_once:
        return [placement]
    from moe_placer.dag import write_dags

    written, views = [placement], ("simplified_moe_dag", "detailed_expert_dag")
    try:
        with _on_signals(signal.default_int_handler):
            write_dags(instance, solution.placement, solution.traffic, folder, only=views, wrote=written.append)
    except KeyboardInterrupt:
        click.echo("moe-placer: stopped drawing; `moe-placer dag` draws what is missing", err=True)
    return written


def _report(instance: Instance, solution: Solution, plans: dict[str, PlanFigures], files: list[Path]) -> dict[str, Any]:
    from moe_placer.cli.plans import bound_us, verdict
    from moe_placer.cli.summary import name_deaths

    verification, records = solution.verification, solution.placement.layers
    gaps, own = solution.gaps.tolist(), solution.solver_gaps.tolist()
    contiguous = solution.baselines.get("contiguous")
    better = 1 - solution.objective / contiguous if isinstance(contiguous, float) and contiguous > 0 else None
    return {
        "schema": "moe-placer/solve/1",
        "instance": {"name": instance.name, "sha256": instance.sha256},
        "solver": solution.placement.solver.model_dump(mode="json"),
        "verified": verification.ok,
        "total_z": verification.total_z,
        "total_bound": verification.total_bound,
        "max_z": verification.max_z,
        "minimise": solution.minimise,
        "aggregate": verification.aggregate,
        "aggregate_link": verification.aggregate_link,
        "aggregate_tokens": verification.aggregate_tokens,
        "aggregate_us": verification.aggregate_us,
        "aggregate_bound": verification.aggregate_bound or None,
        "memory_bound": verification.memory_bound or None,
        "objective_gap": solution.gap,
        "gap": {"max": max(gaps), "median": sorted(gaps)[len(gaps) // 2], "proof": "re-checkable"},
        "solver_gap": {"max": max(own), "median": sorted(own)[len(own) // 2], "proof": "the solver's word"},
        "baselines": dict(solution.baselines),
        "plans": {name: vars(figures) for name, figures in plans.items()},
        "verdict": verdict(plans),
        "dispatch_us": verification.dispatch_us,
        "bound_us": bound_us(instance, solution),
        "better_than_contiguous": better,
        "repaired": solution.repaired,
        "workers_died_of": name_deaths(solution.deaths),
        "seconds": solution.seconds,
        "layers": [
            {
                "layer": record.layer,
                "z": record.z,
                "bound": record.bound,
                "proof": record.proof,
                "solver_bound": record.solver_bound,
                "gap": gaps[index],
                "worst_link": check.worst_link,
                "worst_link_tokens": check.worst_link_tokens,
                "worst_link_us": check.worst_link_us,
                "status": str(solution.status[index]),
                "stop": str(solution.stop[index]),
            }
            for index, (record, check) in enumerate(zip(records, verification.layers, strict=True))
        ],
        "files": [str(path) for path in files],
    }
