"""The matrix of a comparison's runs; mistakes in it are reported before the first run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_placer.errors import UsageError
from moe_placer.experiments.compare.cell import (
    ROW,
    Cell,
    Settings,
    load_beside,
    read_instance,
    without,
)
from moe_placer.experiments.compare.current_plan import check_plan
from moe_placer.fabric import build_fabric, nic_bandwidths
from moe_placer.fabric.graph import link_name
from moe_placer.instance import Instance
from moe_placer.instance.sizes import combine_wire, dispatch_wire
from moe_placer.limits import Limits
from moe_placer.placement import Placement, load_placement
from moe_placer.solve.nic_words import floors_of, nic_lines
from moe_placer.solve.registry import find_solver, solver_version
from moe_placer.traffic import Traffic, load_traffic

__all__ = ["Given", "Matrix", "build_matrix"]

_Plans = dict[str, tuple[Path, Placement]]  # by the name of an instance


@dataclass(frozen=True)
class Matrix:
    """The runs of a comparison: instances, solvers and seeds.

    Attributes
    ----------
    config : dict
        The comparison's content of config.json, but for its name and question.
    instances : tuple of dict
        Rows of kind ``instance``.
    cells : tuple of Cell
        In the order in which they are begun.
    """

    config: dict[str, Any]
    instances: tuple[dict[str, Any], ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Given:
    """Traffic to solve for, traffic to measure on, and the current plan, beside those that instances name.

    Attributes
    ----------
    traces, held_out : sequence of Path
        Recorded traces to solve for and to measure on beside, one per domain; for instances with ``traffic.kind:
        trace``, of which there must then be one.
    next_window : bool
        Whether to measure on the next tokens beside, for instances with ``traffic.kind: synthetic``, of which there
        must then be one.
    current : sequence of Path
        Placement files of what runs today, at most one for each instance, whose name each bears.
    leave_one_out : bool
        Whether to solve instances with ``traffic.kind: trace`` once without each of their recordings, and to measure on
        this one beside.
    """

    traces: Sequence[Path] = ()
    held_out: Sequence[Path] = ()
    next_window: bool = False
    current: Sequence[Path] = ()
    leave_one_out: bool = False


def build_matrix(
    instances: Sequence[Path],
    solvers: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    given: Given | None = None,
) -> Matrix:
    """Check and combine what is to be compared.

    Parameters
    ----------
    instances : sequence of Path
        Instance files.
    solvers : sequence of str
        Names, as `solver_names` has them.
    seeds : sequence of int
        One run of every solver for each.
    settings : Settings
        Limits of every run.
    given : Given
        Recordings and current plans.

    Raises
    ------
    UsageError
        A solver, seed or limit makes no sense, something is named twice, or traces or plans apply to no instance.
    InputError
        An instance, its traffic or its current plan is wrong.
    """
    given = given or Given()
    Limits(time_s=settings.time_limit_s, gap=settings.gap, workers=settings.workers)  # refuses what makes no sense
    _refuse_repeats("solver", solvers)
    _refuse_repeats("seed", seeds)
    for seed in seeds:
        if seed < 0:
            raise UsageError(f"seed is {seed}, expected 0 or more")
    versions = {name: (find_solver(name), solver_version(name))[1] for name in solvers}
    plans = _current_plans(given.current)
    rows: list[dict[str, Any]] = []
    cells: list[Cell] = []
    names = []
    for path, whole, left_out in _with_left_out(instances, given):
        row, fields = _opened(path, whole, given, plans, left_out)
        names.append(whole.name)
        rows.append(row)
        cells += [
            Cell(**fields, solver=solver, version=versions[solver], seed=seed, **asdict(settings))
            for solver in solvers
            for seed in seeds
        ]
    _refuse_repeats("instance", [row["name"] for row in rows])
    _refuse_idle(given, cells, plans)
    config = {
        "instances": list(dict.fromkeys(names)),
        "solvers": list(solvers),
        "seeds": list(seeds),
        "parameters": asdict(settings),
        "traces": [path.name for path in given.traces],
        "held_out": [path.name for path in given.held_out],
        "next_window": given.next_window,
        "current": [path.name for path in given.current],
        **({"leave_one_out": True} if given.leave_one_out else {}),
    }
    return Matrix(config, tuple(rows), tuple(cells))


def _with_left_out(instances: Sequence[Path], given: Given) -> Iterator[tuple[Path, Instance, int | None]]:
    """Read instances, and yield each once for every recording to leave out of it, or once with all."""
    if not given.leave_one_out:
        yield from ((path, read_instance(path, given.traces), None) for path in instances)
        return
    if given.held_out or given.next_window or given.current:
        found = "--leave-one-out with --held-out, --next-window or --current"
        raise UsageError(f"{found}: it has its own held-out traffic, and instances of its own")
    read = {path: read_instance(path, given.traces) for path in instances}
    counts = {path: len(one.trace_files) if one.traffic.kind == "trace" else 0 for path, one in read.items()}
    for path, count in counts.items():
        if count < 2:
            raise UsageError(f"--leave-one-out needs two recordings or more (--trace); {path.name} has {count}")
    yield from ((path, read[path], index) for path, count in counts.items() for index in range(count))


def _opened(
    path: Path, whole: Instance, given: Given, plans: _Plans, left_out: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an instance's row, and what all of its cells have alike.

    Parameters
    ----------
    path : Path
        Of the instance.
    whole : Instance
        With all of its recordings.
    given : Given
        What is measured beside, and what runs today.
    plans : mapping
        Current plans by the instance's name.
    left_out : int or None
        The recording to leave out.
    """
    instance = without(whole, left_out)
    traffic, recorded = load_traffic(instance), instance.traffic.kind == "trace"
    beside = load_beside(whole, given.held_out if recorded else (), given.next_window, left_out)
    if beside is not None and beside.sha256 == traffic.sha256:
        raise UsageError(f"{instance.name}: the held-out traffic is the traffic solved for; give other recordings")
    runs_today, plan = plans.get(instance.name, (None, None))
    if plan is not None:
        check_plan(instance, plan)
    fields = {
        "path": str(path),
        "name": instance.name,
        "traces": tuple(map(str, given.traces)) if recorded else (),
        "held_out": tuple(map(str, given.held_out)) if recorded else (),
        "next_window": given.next_window and instance.traffic.kind == "synthetic",
        "instance_sha256": instance.sha256,
        "traffic_sha256": traffic.sha256,
        "held_out_sha256": beside.sha256 if beside else None,
        "current": str(runs_today) if runs_today else None,
        "current_sha256": plan.gpu_sha256 if plan else None,
        "left_out": left_out,
    }
    return instance_row(instance, traffic, beside, runs_today), fields


def _refuse_idle(given: Given, cells: Sequence[Cell], plans: _Plans) -> None:
    """Refuse options that would have no effect."""
    if (given.traces or given.held_out) and not any(cell.traces or cell.held_out for cell in cells):
        raise UsageError("--trace and --held-out apply to instances with traffic.kind: trace, and none is given")
    if given.next_window and not any(cell.next_window for cell in cells):
        raise UsageError("--next-window applies to instances with traffic.kind: synthetic, and none is given")
    for name in sorted(plans.keys() - {cell.name for cell in cells}):
        raise UsageError(f"the current plan {plans[name][0].name} is for {name}, which is none of the instances")


def _current_plans(files: Sequence[Path]) -> _Plans:
    """Read what runs today, by the name of its instance."""
    plans = [(path, load_placement(path)) for path in files]
    if plans:
        _refuse_repeats("current plan of", [plan.instance.name for _, plan in plans])
    return {plan.instance.name: (path, plan) for path, plan in plans}


def _refuse_repeats(what: str, names: Sequence[object]) -> None:
    if not names:
        raise UsageError(f"no {what} is given, expected at least one")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the {what} {name} is given twice")


def instance_row(
    instance: Instance, traffic: Traffic, held_out: Traffic | None, current: Path | None
) -> dict[str, Any]:
    """Return the row of an instance: what readers of its runs need, no paths."""
    cluster, placement = instance.cluster, instance.placement
    links = [
        {"name": link_name(source, target), "source": source, "target": target, "bandwidth": float(data["bandwidth"])}
        for source, target, data in build_fabric(instance).edges(data=True)
    ]
    for name, bandwidth in nic_bandwidths(instance).items():
        source, _, target = name.partition("->")
        links.append({"name": name, "source": source, "target": target, "bandwidth": bandwidth})
    return {
        "schema": ROW,
        "kind": "instance",
        "name": instance.name,
        "sha256": instance.sha256,
        "traffic_sha256": traffic.sha256,
        "held_out_sha256": held_out.sha256 if held_out else None,
        "layers": len(instance.moe_layers),
        "experts": instance.model.experts,
        "replicas": instance.replicas_per_layer,
        "nodes": cluster.nodes,
        "gpus": instance.gpus,
        "gpus_per_node": cluster.gpus_per_node,
        "slots_per_gpu": placement.slots_per_gpu,
        "fabric": cluster.fabric.model_dump(mode="json"),
        "dispatch": placement.dispatch,
        "replica_routing": placement.replica_routing,
        "metric": instance.objective.metric,
        "bytes_per_token": dispatch_wire(instance).token_bytes,
        "bytes_per_result": combine_wire(instance).token_bytes,
        "node_bandwidth": cluster.fabric.node_gb_per_s,
        "recordings": [recording.name for recording in traffic.recordings],
        "held_out": [recording.name for recording in held_out.recordings] if held_out else [],
        "current": current.name if current else None,
        "layer_index": list(instance.moe_layers),
        "gpu_node": [gpu // cluster.gpus_per_node for gpu in range(instance.gpus)],
        "links": links,
        "nics": nic_lines(instance, floors_of(instance, traffic)),
    }
