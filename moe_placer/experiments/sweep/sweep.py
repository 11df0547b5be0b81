"""Sweeps: the steps of several placements over batches, contexts and fabrics, on worker processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from pydantic import ValidationError

from moe_placer.errors import UsageError
from moe_placer.experiments.compare.metrics import find_dispatch_us
from moe_placer.instance import Instance
from moe_placer.instance.schema import FatTree, RailPods, ThreeLevelTree
from moe_placer.placement import Placement
from moe_placer.schedule.coarse_network import Sharing
from moe_placer.schedule.memory_limits import most_tokens
from moe_placer.schedule.program import Program, compile_program
from moe_placer.schedule.simulate import simulate
from moe_placer.schedule.step_figures import find_figures, planned_shares
from moe_placer.schedule.workload import Phase, Workload
from moe_placer.traffic.recording import Traffic
from moe_placer.workers import run_each

__all__ = [
    "ROW",
    "Grid",
    "Kernel",
    "Plan",
    "Point",
    "expert_parallelism",
    "list_points",
    "make_plan",
    "run_points",
    "sweep",
]

ROW = "moe-placer/sweep/1"
Row = dict[str, Any]
Kernel: TypeAlias = tuple[str | None, str | None]
"""Unit of dispatch, and which NIC receives; None is what the instance says."""

_MOST_POINTS = 10_000


@dataclass(frozen=True, eq=False)
class Plan:
    """A placement that takes part in a sweep, compiled once.

    Attributes
    ----------
    label : str
        Its name on pages and plots.
    program : Program
    placed_by : str
        Name of its solver.
    total_z : float
        Sum over layers of the busiest link's cost, for the instance's own tokens and fabric.
    dispatch_us : float
        Microseconds of all layers' dispatch, each as long as the link that needs longest, for the same.
    others : mapping
        The same placement compiled for other kernels.
    """

    label: str
    program: Program
    placed_by: str
    total_z: float
    dispatch_us: float
    others: Mapping[Kernel, Program] = field(default_factory=dict)

    def under(self, kernel: Kernel) -> Program:
        """Return the program for a kernel.

        Raises
        ------
        UsageError
            The plan was not compiled for it.
        """
        if kernel == (None, None):
            return self.program
        if kernel not in self.others:
            raise UsageError(f"{self.label} was not compiled for dispatch {kernel[0]}, receive {kernel[1]}")
        return self.others[kernel]


@dataclass(frozen=True)
class Grid:
    """Every combination of these is a point, for every plan; None is what the instance says.

    Attributes
    ----------
    phases : tuple of str
    tokens_per_gpu : tuple of float or None
    contexts : tuple of float
        Tokens.
    oversubscriptions : tuple of float or None
        Of the fat tree: the same placement on other fabrics.
    micro_batches : int
    dispatches : tuple of str or None
        Units of dispatch: the same placement under other kernels.
    receives : tuple of str or None
        Which NIC receives, likewise.
    sharing : str
        How finely links are shared out over time, in all.
    """

    phases: tuple[Phase, ...] = ("prefill",)
    tokens_per_gpu: tuple[float | None, ...] = (None,)
    contexts: tuple[float, ...] = (4096.0,)
    oversubscriptions: tuple[float | None, ...] = (None,)
    micro_batches: int = 2
    dispatches: tuple[str | None, ...] = (None,)
    receives: tuple[str | None, ...] = (None,)
    sharing: Sharing = "fine"

    @property
    def kernels(self) -> list[Kernel]:
        """The kernels to compile plans for."""
        return list(itertools.product(self.dispatches, self.receives))


@dataclass(frozen=True)
class Point:
    """One step to simulate: the index of its plan, its fabric's oversubscription, its workload, its kernel, and how."""

    plan: int
    oversubscription: float | None
    workload: Workload
    kernel: Kernel = (None, None)
    sharing: Sharing = "fine"


def make_plan(
    instance: Instance,
    placement: Placement,
    traffic: Traffic,
    label: str | None = None,
    kernels: Sequence[Kernel] = (),
) -> Plan:
    """Compile a verified placement for sweeps.

    Parameters
    ----------
    instance : Instance
    placement : Placement
        Verified for this instance.
    traffic : Traffic
        What it was made for.
    label : str, optional
        Its name on pages and plots.  [instance and solver]
    kernels : sequence of tuple
        What else to compile it for: `Grid.kernels`.

    Raises
    ------
    InputError
        Placement or traffic do not fit the instance, or the instance cannot be served by a kernel.
    """
    named = label or f"{instance.name} by {placement.solver.name}"
    total = float(sum(record.z for record in placement.layers))
    program = compile_program(instance, placement, traffic)
    label = f"{named} (EP={expert_parallelism(instance)})"
    others = {
        (unit, receive): compile_program(instance.with_serving(dispatch=unit).with_receive(receive), placement, traffic)
        for unit, receive in kernels
        if (unit, receive) != (None, None)
    }
    us = find_dispatch_us(instance, placement, traffic)
    return Plan(label, program, placement.solver.name, total, us, others)


def expert_parallelism(instance: Instance) -> int:
    """Return the EP degree: GPUs that hold all experts of a layer between them (with redundant slots: all GPUs)."""
    groups = instance.parallelism.dp if instance.placement.replicas == "dp" else 1
    return instance.gpus // groups


def list_points(plans: Sequence[Plan], grid: Grid) -> list[Point]:
    """List every combination, plan by plan.

    Raises
    ------
    UsageError
        Nothing is to be swept, or too much; a value makes no sense, or stands twice; oversubscription of what is no fat
        tree; a kernel that a plan was not compiled for.
    """
    axes = (
        *(grid.phases, grid.tokens_per_gpu, grid.contexts, grid.oversubscriptions),
        *(grid.dispatches, grid.receives),
    )
    for axis in (*axes, [plan.label for plan in plans]):
        _refuse_repeats(axis)
    count = len(plans) * int(np.prod([len(axis) for axis in axes]))
    if count > _MOST_POINTS:
        raise UsageError(f"a sweep of {count:,} points, expected at most {_MOST_POINTS:,}: give fewer values")
    for plan, value, kernel in itertools.product(plans, grid.oversubscriptions, grid.kernels):
        on_fabric(plan.under(kernel), value)
    return [
        Point(index, over, Workload(phase, tokens, context, grid.micro_batches), kernel, grid.sharing)
        for index, _ in enumerate(plans)
        for kernel, phase, context, over, tokens in itertools.product(
            grid.kernels, grid.phases, grid.contexts, grid.oversubscriptions, grid.tokens_per_gpu
        )
    ]


def _refuse_repeats(values: Sequence[object]) -> None:
    if not values:
        raise UsageError("nothing to sweep: an option has no value")
    for value in values:
        if list(values).count(value) > 1:
            raise UsageError(f"{value} is given twice")


def on_fabric(program: Program, oversubscription: float | None) -> Program:
    """Return the same program on leaves with another oversubscription.

    Raises
    ------
    UsageError
        The fabric has no leaves, or the value is out of range.
    """
    if oversubscription is None:
        return program
    instance = program.instance
    fabric = instance.cluster.fabric
    if not isinstance(fabric, FatTree | ThreeLevelTree | RailPods):
        raise UsageError(f"oversubscription is of leaves, and {instance.name} has a {fabric.kind}")
    try:
        other = type(fabric).model_validate({**fabric.model_dump(), "oversubscription": float(oversubscription)})
    except ValidationError:
        raise UsageError(f"oversubscription is {oversubscription:g}, expected 0.01 to 1000") from None
    cluster = instance.cluster.model_copy(update={"fabric": other})
    return replace(program, instance=instance.model_copy(update={"cluster": cluster}))


def run_points(
    plans: Sequence[Plan],
    points: Sequence[Point],
    workers: int,
    stopped: Callable[[], bool] = lambda: False,
    executor: str | None = None,
) -> Iterator[tuple[int, Row]]:
    """Yield the index and the row of each point as it ends; workers, stopping and errors are those of `run_each`.

    Parameters
    ----------
    plans : sequence of Plan
        The placements to simulate.
    points : sequence of Point
        Batch, context, phase and fabric of each simulation.
    workers : int
        Processes.
    stopped : callable
        Asked now and then; once it says True, no further point begins.
    executor : str or None
        What runs them; None: processes of this machine.
    """
    return run_each(simulate_point, plans, points, workers, stopped, executor)


def sweep(plans: Sequence[Plan], grid: Grid, workers: int = 1) -> list[Row]:
    """Simulate a step of every plan for every combination of the grid.

    Parameters
    ----------
    plans : sequence of Plan
        As `make_plan` compiles them from verified placements.
    grid : Grid
        Phases, batches, contexts and fabrics.
    workers : int
        Worker processes.

    Returns
    -------
    list of dict
        One row per point, plan by plan, as ``moe-placer schema --of sweep`` describes points.

    Raises
    ------
    UsageError
        As `list_points`.
    """
    rows = dict(run_points(plans, list_points(plans, grid), workers))
    return [{"sweep": "Sweep", **rows[index]} for index in sorted(rows)]


def simulate_point(plans: Sequence[Plan], point: Point) -> Row:
    """Simulate one point, and return its row: memory is that of the fullest GPU, in bytes."""
    plan = plans[point.plan]
    program = on_fabric(plan.under(point.kernel), point.oversubscription)
    instance, workload = program.instance, point.workload
    figures = find_figures(simulate(program, workload, sharing=point.sharing))
    memory = figures.memory
    tokens = workload.batch(instance)
    fullest = int((memory.high_water - memory.size).argmax())
    return {
        "schema": ROW,
        "plan": plan.label,
        "instance": instance.name,
        "instance_sha256": plan.program.instance.sha256,
        "placed_by": plan.placed_by,
        "total_z": plan.total_z,
        "dispatch_us": plan.dispatch_us,
        "gpus": instance.gpus,
        "expert_parallelism": expert_parallelism(instance),
        "slots_per_gpu": instance.placement.slots_per_gpu,
        "phase": workload.phase,
        "tokens_per_gpu": float(tokens),
        "context": float(workload.context),
        "micro_batches": workload.micro_batches,
        "sharing": point.sharing,
        "fabric": instance.cluster.fabric.kind,
        "oversubscription": getattr(instance.cluster.fabric, "oversubscription", None),
        "dispatch": instance.placement.dispatch,
        "receive": instance.cluster.nics.receive if instance.cluster.nics is not None else "shared",
        "latency_us": figures.latency_us,
        "tokens_per_s_per_gpu": figures.tokens_per_s_per_gpu,
        "mfu": figures.mfu,
        "communication_us": figures.communication_us,
        "shares": dict(figures.shares),
        "planned_shares": planned_shares(plan.program.instance),
        "busiest_link": figures.busiest_link,
        "busiest_link_utilization": float(figures.link_utilization.max(initial=0.0)),
        "weights_bytes": float(memory.weights[fullest]),
        "high_water_bytes": float(memory.high_water[fullest]),
        "memory_bytes": float(memory.size[fullest]),
        "fits": memory.fits,
        "most_tokens_per_gpu": most_tokens(memory, tokens),
    }
