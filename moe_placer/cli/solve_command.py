"""``moe-placer solve``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moe_placer.cli import log
from moe_placer.cli.gap_gate import check_gap_asked, hold_gap
from moe_placer.cli.interrupts import StopRequest, finish, listen
from moe_placer.cli.json_text import as_json
from moe_placer.cli.left_out import LeftOut
from moe_placer.cli.options import (
    check_sharing_asked,
    checked_executor,
    engine_option,
    executor_option,
    gap_option,
    instance_argument,
    json_option,
    open_instance,
    refute_dags,
    share,
    shared_lines,
    sharing_option,
    trace_option,
    trace_words,
    with_workers,
    work_option,
    workers_option,
)
from moe_placer.cli.windowed import WINDOWED, over_windows, scenario_z, tell_of_windows, write_windowed
from moe_placer.errors import InfeasibleError, visible

if TYPE_CHECKING:
    from moe_placer.cli.plans import PlanFigures
    from moe_placer.cli.results.placing import CoolingDone, LayerSolved, SolveResult
    from moe_placer.errors import VerificationError
    from moe_placer.instance import Instance
    from moe_placer.instance.schema import Engine
    from moe_placer.limits import Limits
    from moe_placer.placement import Placement
    from moe_placer.schedule.coarse_network import Sharing
    from moe_placer.solve.estimate import Estimate
    from moe_placer.solve.solve import Solution

__all__ = ["solve"]

PLACEMENT = "placement.json"

EXAMPLES = """
\b
Examples:
  moe-placer solve instances/h100-128.yaml
  moe-placer solve instances/dsv2-lite-128.yaml --trace intent.npz --trace summary.npz --time-limit 30
  moe-placer solve instances/dsv2-lite-128.yaml --trace day.npz --windows 4
"""


@click.command(epilog=EXAMPLES)
@instance_argument
@trace_option
@engine_option
@click.option(
    "--windows",
    type=click.IntRange(2, 64),
    metavar="N",
    help="Place for the worst of N windows of the recordings, in the order of their tokens, instead of for the mean.",
)
@click.option(
    "--solver",
    metavar="NAME",
    show_default="auto; quick with --quick",
    help="Method, see `moe-placer solvers`.",
)
@click.option("--time-limit", default=60.0, show_default=True, metavar="S", help="Seconds for the whole solve.")
@gap_option
@workers_option
@executor_option
@click.option("--seed", default=0, show_default=True, metavar="N", help="Same seed and limits, same placement.")
@work_option
@click.option(
    "--memory", metavar="GB", type=float, show_default="what is left", help="Refuse a solve estimated to need more."
)
@click.option("--start", metavar="FILE", type=click.Path(path_type=Path), help="A placement to improve on.")
@click.option("-o", "--output", metavar="DIR", type=click.Path(path_type=Path), help="Folder to write to.  [out/NAME]")
@click.option(
    "--cool-gpus/--keep-gpus",
    "cool_gpus",
    default=None,
    help="After the search, trade replicas between GPUs so that the busiest ones cool, with busiest links within the "
    "gap.  [default: where the solver is auto]",
)
@click.option("--no-dag", is_flag=True, help="Write no DAGs.")
@click.option("--no-bound", is_flag=True, help="Bound no layer that SOLVER leaves unbounded: quick, but without a gap.")
@click.option(
    "--quick",
    is_flag=True,
    help="The verified plan in its own time: as --no-bound --no-dag, and no heuristics to compare with.",
)
@click.option(
    "--step", is_flag=True, help="Simulate a step of the placement and of every heuristic beside it: seconds each."
)
@sharing_option
@click.option(
    "--fail-above-gap",
    metavar="G",
    type=share,
    help="Exit code 6 if the objective is not within this of its re-checkable bound: 1% or 0.01.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress on standard error.")
@json_option
def solve(
    instance: Path,
    traces: tuple[Path, ...],
    engine: Engine | None,
    windows: int | None,
    solver: str | None,
    time_limit: float,
    gap: float,
    workers: int | None,
    executor: str | None,
    seed: int,
    work: float | None,
    memory: float | None,
    start: Path | None,
    output: Path | None,
    cool_gpus: bool | None,
    no_dag: bool,
    no_bound: bool,
    quick: bool,
    step: bool,
    sharing: Sharing,
    fail_above_gap: float | None,
    quiet: bool,
    json_: bool,
) -> None:
    """Place every expert of INSTANCE, verify the placement, and write it with its DAGs.

    Ctrl-C (or SIGTERM) stops early: the best placement so far is verified and written. The folder appears whole, or
    stays as it was; a result that it has is replaced, DAGs included.
    """
    from moe_placer.cli.plans import measured
    from moe_placer.limits import Limits
    from moe_placer.placement import load_placement
    from moe_placer.solve.folder import only_writer, replaced_folder

    left_out = LeftOut(quick, bounds=no_bound or quick, dags=no_dag or quick)
    bounds, solver = not left_out.bounds, solver or ("quick" if quick else "auto")
    executor, count = checked_executor(executor), 1 if workers is None else workers
    limits = Limits(time_limit, gap, count, work, memory and 1e9 * memory, bounds=bounds, executor=executor)
    check_gap_asked(fail_above_gap)
    check_sharing_asked(step, "--step")
    opened = over_windows(open_instance(instance, traces, engine), windows)
    limits = with_workers(limits, workers, opened)
    before = load_placement(start) if start else None
    quiet = log.silent(quiet, json_)
    estimated = _estimate(opened, solver, limits, left_out, quiet)
    folder = output or Path("out") / opened.name
    with only_writer(folder):
        solution = _place(opened, solver, limits, seed, before, cool_gpus, not quick, quiet)
        stop_request = listen("stopping: drawing no more, keeping the placement (again to give up)")
        with replaced_folder(folder, PLACEMENT, _is_result) as new:
            flaw = _write(opened, solution, new, stop_request, left_out)
            write_windowed(opened, windows, new)
            names = sorted((path.name for path in new.iterdir()), key=lambda name: (name != PLACEMENT, name))
        plans, step_s = measured(opened, solution, sharing if step else None, quiet)
        finish()  # from here on all is there that was asked for
    _tell(opened, solution, (estimated, plans, step_s, sharing), [folder / name for name in names], left_out, json_)
    if not json_:
        tell_of_windows(instance, traces, folder / PLACEMENT, windows)
    if not json_ and not left_out.dags:
        parts = ["moe-placer", "dag", instance, folder / PLACEMENT, "-o", folder, *trace_words(traces)]
        click.echo(f"The DAGs of all layers, comprehensive and complete: {visible(shlex.join(map(str, parts)))}")
    if flaw is not None:
        raise flaw
    hold_gap(solution.gap, fail_above_gap)


def _place(
    instance: Instance,
    solver: str,
    limits: Limits,
    seed: int,
    start: Placement | None,
    cool_gpus: bool | None,
    baselines: bool,
    quiet: bool,
) -> Solution:
    """Place until the limits are reached, or somebody asks to stop."""
    from moe_placer.cli.progress_display import show_progress
    from moe_placer.solve.solve import solve as place

    stop_request = listen("stopping: keeping the best placement so far (again to give up)")
    with show_progress(instance.name, limits.time_s, quiet) as progress:
        try:
            return place(
                instance,
                solver=solver,
                limits=limits,
                seed=seed,
                start=start,
                progress=progress,
                interrupted=stop_request,
                cool_gpus=cool_gpus,
                baselines=baselines,
            )
        except InfeasibleError as error:
            from moe_placer.problem.advice import advise

            advice = advise(instance)
            raise error if advice is None else InfeasibleError(f"{error} {advice}") from None


def _estimate(instance: Instance, solver: str, limits: Limits, left_out: LeftOut, quiet: bool) -> Estimate:
    """Estimate a solve with its DAGs, and refuse what the memory cannot hold, before hours are spent on it."""
    from moe_placer.solve.estimate import estimate, refuse_too_large
    from moe_placer.solve.registry import find_solver

    searches = not getattr(find_solver(solver), "quick", False)
    estimated = estimate(instance, limits.workers, searches, dags=not left_out.dags)
    refuse_too_large(instance.name, estimated, limits.memory_bytes, "" if left_out.dags else "--no-dag, ")
    if not quiet:
        log.info(f"{instance.name}: {estimated.to_text()}", estimate=estimated)
    return estimated


def _is_result(name: str) -> bool:
    """Whether a file in a result folder is of a result: the placement, or a DAG, whoever has drawn it."""
    from moe_placer.dag import VIEWS

    stem, _, suffix = name.rpartition(".")
    return name in {PLACEMENT, WINDOWED} or (stem in VIEWS and suffix in {"dot", "json", "svg", "html"})


def _write(
    instance: Instance, solution: Solution, folder: Path, stop_request: StopRequest, left_out: LeftOut
) -> VerificationError | None:
    """Write the placement, then its DAGs until somebody asks to stop; return what is wrong with a DAG, if anything.

    A DAG that fails verification is not written, and those after it are not tried: the placement is good without.
    """
    from moe_placer.errors import VerificationError

    placement, traffic = solution.placement, solution.traffic
    placement.write(folder / PLACEMENT)
    if left_out.dags:
        return None
    from moe_placer.dag import write_dags

    try:
        write_dags(
            instance,
            placement,
            traffic,
            folder,
            only=("simplified_moe_dag", "detailed_expert_dag"),
            note=log.warn,
            check=refute_dags(instance, placement, traffic),
            stopped=stop_request,
        )
    except VerificationError as error:
        return error
    if stop_request():
        log.warn("stopped drawing; `moe-placer dag` draws what is missing")
    return None


def _tell(
    instance: Instance,
    solution: Solution,
    measured: tuple[Estimate, dict[str, PlanFigures], float | None, Sharing],
    files: list[Path],
    left_out: LeftOut,
    json_: bool,
) -> None:
    """Print the summary, or JSON: of what was estimated before, every plan's figures, and seconds of simulating."""
    estimated, plans, step_s, sharing = measured
    simulated = None if step_s is None else sharing
    if json_:
        click.echo(as_json(_report(instance, solution, plans, files, estimated, left_out, simulated)))
        return
    from moe_placer.cli.summary import print_summary

    print_summary(instance, solution, plans, step_s, files, left_out)
    for line in shared_lines(simulated):
        click.echo(line)


def _cooling(solution: Solution) -> CoolingDone | None:
    done = solution.cooling
    if done is None:
        return None
    return {
        "busiest_before": done.busiest_before,
        "busiest_after": done.busiest_after,
        "z_before": done.z_before,
        "z_after": done.z_after,
    }


def _report(
    instance: Instance,
    solution: Solution,
    plans: dict[str, PlanFigures],
    files: list[Path],
    estimated: Estimate,
    left_out: LeftOut,
    sharing: Sharing | None,
) -> SolveResult:
    from moe_placer.cli.plans import bound_us, verdict
    from moe_placer.cli.summary import name_deaths

    verification, solver = solution.verification, solution.placement.solver
    gaps, own = solution.gaps.tolist(), solution.solver_gaps.tolist()
    contiguous = solution.baselines.get("contiguous")
    better = 1 - solution.objective / contiguous if isinstance(contiguous, float) and contiguous > 0 else None
    return {
        "schema": "moe-placer/solve/1",
        "instance": {"name": instance.name, "sha256": instance.sha256},
        "solver": {
            "name": solver.name,
            "version": solver.version,
            "seed": solver.seed,
            "parameters": dict(solver.parameters),
        },
        "verified": verification.ok,
        "total_z": verification.total_z,
        "total_bound": verification.total_bound,
        "max_z": verification.max_z,
        "minimise": solution.minimise,
        "layer_time_us": verification.total_layer_us,
        "layer_time_bound_us": verification.layer_us_bound,
        "aggregate": verification.aggregate,
        "aggregate_link": verification.aggregate_link,
        "aggregate_tokens": verification.aggregate_tokens,
        "aggregate_us": verification.aggregate_us,
        "aggregate_bound": verification.aggregate_bound or None,
        "memory_bound": verification.memory_bound or None,
        "scenario_z": scenario_z(instance, solution),
        "objective_gap": solution.gap,
        "gap": {"max": max(gaps), "median": sorted(gaps)[len(gaps) // 2], "proof": "re-checkable"},
        "solver_gap": {"max": max(own), "median": sorted(own)[len(own) // 2], "proof": "the solver's word"},
        "baselines": dict(solution.baselines),
        "plans": plans,
        "sharing": sharing,
        "verdict": verdict(plans, verification.back),
        "dispatch_us": verification.dispatch_us,
        "combine_us": verification.combine_us,
        "bound_us": bound_us(instance, solution),
        "better_than_contiguous": better,
        "cooling": _cooling(solution),
        "repaired": solution.repaired,
        "workers_died_of": name_deaths(solution.deaths),
        "seconds": solution.seconds,
        "layers": _layers(solution),
        "files": [str(path) for path in files],
        "left_out": left_out.names,
        "estimate": {"memory_bytes": estimated.peak_bytes, "seconds": dict(estimated.seconds)},
    }


def _layers(solution: Solution) -> list[LayerSolved]:
    """Say of every MoE layer what was found, what is proved, and why its search stopped."""
    rows = zip(solution.placement.layers, solution.verification.layers, solution.gaps.tolist(), strict=True)
    return [
        {
            "layer": record.layer,
            "z": record.z,
            "bound": record.bound,
            "proof": record.proof,
            "solver_bound": record.solver_bound,
            "gap": gap,
            "worst_link": check.worst_link,
            "worst_link_tokens": check.worst_link_tokens,
            "worst_link_us": check.worst_link_us,
            "status": str(status),
            "stop": str(stop),
        }
        for (record, check, gap), status, stop in zip(rows, solution.status, solution.stop, strict=True)
    ]
