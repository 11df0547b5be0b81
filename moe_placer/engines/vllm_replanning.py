"""Plans for vLLM's rebalances, from arrays to arrays: within a budget of moves from what runs, and within a deadline.

vLLM asks every rank for a plan at every rebalance, with the summed loads of experts and the map that runs. All ranks
must answer alike, and a deadline strikes at different moments on different ranks. So one of them plans, and the others
are told its answer.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_placer.engines.old_slots import rows_in_old_slots
from moe_placer.engines.plans.plan import Deployment, Plan, plan_of, read_deployment
from moe_placer.engines.slot_rows import mismatch, plan_rows
from moe_placer.errors import MoePlacerError, UsageError
from moe_placer.instance import Instance, load_instance
from moe_placer.limits import Limits
from moe_placer.placement import SCHEMA, InstanceKey, Placement, SolverRecord
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.replan.budget import Budget
from moe_placer.replan.replan import replan
from moe_placer.solve.assemble import bare_placement
from moe_placer.solve.gpu_assignment import fit_to_gpus
from moe_placer.solve.registry import find_solver
from moe_placer.traffic import Traffic, make_traffic

__all__ = ["Answer", "Asked", "Replanner", "Settings", "first_map"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_SHARE = 0.9  # of the deadline for planning; the rest is for handing the plan over
_BUDGET = 0.1  # of all slots: moves that a rebalance has where nothing is said


@dataclass(frozen=True)
class Settings:
    """What the environment says of replanning.

    Attributes
    ----------
    instance : Path
        The instance file of the deployment.
    deadline_s : float
        Seconds from vLLM's question to the answer.
    max_moves : int or None
        Experts that ranks may load at a rebalance, over all layers; None: a tenth of all slots.
    work : float or None
        Deterministic effort of a replan, as in `moe_placer.Limits`; None: one from the deadline.
    first_plan : Path or None
        Of the plan for the first rebalance; None: it is made from scratch.

    Raises
    ------
    UsageError
        A number is out of range.
    """

    instance: Path
    deadline_s: float = 2.0
    max_moves: int | None = None
    work: float | None = None
    first_plan: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.deadline_s < threading.TIMEOUT_MAX:
            raise UsageError(f"the deadline is {self.deadline_s:g} s, expected 0 or more")
        if self.max_moves is not None and self.max_moves < 0:
            raise UsageError(f"{self.max_moves} moves, expected 0 or more")

    @classmethod
    def from_environment(cls, values: Mapping[str, str], prefix: str) -> Settings:
        """Read ``INSTANCE``, ``DEADLINE_S``, ``MAX_MOVES``, ``WORK`` and ``PLAN``, all of them after the prefix."""
        deadline, moves, work, plan = (
            values.get(f"{prefix}{name}", "") for name in ("DEADLINE_S", "MAX_MOVES", "WORK", "PLAN")
        )
        try:
            numbers = float(deadline or cls.deadline_s), int(moves) if moves else None, float(work) if work else None
        except ValueError:
            asked = f"{prefix}DEADLINE_S={deadline} {prefix}MAX_MOVES={moves} {prefix}WORK={work}"
            raise UsageError(f"the environment says {asked}, expected numbers") from None
        return cls(Path(values[f"{prefix}INSTANCE"]), *numbers, Path(plan) if plan else None)


class Asked(NamedTuple):
    """What vLLM asks at a rebalance.

    Attributes
    ----------
    load : float array [MoE layers, experts]
        How many tokens chose each expert.
    slots, ranks : int
        Physical experts of a layer, and expert-parallel ranks.
    running : int array [MoE layers, slots] or None
        The expert in each slot now.
    """

    load: Floats
    slots: int
    ranks: int
    running: Ints | None


class Answer(NamedTuple):
    """What all ranks do: follow ``rows``, keep what runs, or leave the rebalance to vLLM's own policy; and why."""

    kind: Literal["plan", "keep", "default"]
    reason: str
    rows: Ints | None = None


def first_map(layers: int, experts: int, slots: int) -> Ints:
    """Return the map that vLLM starts with [layers, slots]: experts in order, then the first ones again."""
    return np.tile(np.arange(slots, dtype=np.int64) % experts, (layers, 1))


class Replanner:
    """Answers vLLM's questions on the rank that plans.

    Parameters
    ----------
    settings : callable
        Returns the settings; it is called at the first question, so that whatever is wrong with them becomes an answer.
    plan : callable, optional
        Makes the rows of a plan from the instance, the question and seconds; absent: `next_rows`.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        plan: Callable[[Instance, Asked, Settings, float], Ints] | None = None,
    ) -> None:
        self._settings, self._plan = settings, plan or next_rows
        self._instance: Instance | None = None
        self._busy: threading.Thread | None = None

    def answer(self, asked: Asked) -> Answer:
        """Return what all ranks do, before the deadline; where time runs out, what runs stays."""
        begun = time.monotonic()
        try:
            settings = self._settings()
        except MoePlacerError as error:
            return Answer("default", str(error))
        if self._busy is not None and self._busy.is_alive():
            return Answer("keep", "the plan of the rebalance before is still being made")
        found: list[Answer] = []
        self._busy = threading.Thread(
            target=lambda: found.append(self._made(asked, settings, begun)), name="moe-placer-replan", daemon=True
        )
        self._busy.start()
        self._busy.join(max(0.0, begun + settings.deadline_s - time.monotonic()))
        late = Answer("keep", f"no plan within {settings.deadline_s:g} s")
        return found[0] if found else late

    def _made(self, asked: Asked, settings: Settings, begun: float) -> Answer:
        """Make a plan, or say why there is none; nothing that goes wrong here may end the engine."""
        try:
            self._instance = instance = self._instance or load_instance(settings.instance)
            reason = _mismatch(instance, asked)
            if reason:
                return Answer("default", reason)
            if settings.first_plan is not None and _runs_first_map(asked):
                return _given(settings.first_plan, asked)
            left = max(0.0, _SHARE * settings.deadline_s - (time.monotonic() - begun))
            return Answer("plan", "", self._plan(instance, asked, settings, left))
        except MoePlacerError as error:
            return Answer("default", str(error))
        except Exception as error:
            return Answer("keep", f"a defect of moe-placer: {type(error).__name__}: {error}")


def next_rows(instance: Instance, asked: Asked, settings: Settings, seconds: float) -> Ints:
    """Return the next plan [MoE layers, slots]: from scratch where vLLM's first map runs, else within the budget.

    Parameters
    ----------
    instance : Instance
    asked : Asked
    settings : Settings
    seconds : float
        For all of it, about.
    """
    until = time.monotonic() + seconds
    load = np.where(asked.load.sum(axis=1, keepdims=True) > 0, asked.load, 1.0)  # vLLM's trial run has counted nothing
    traffic = make_traffic(instance, load=[load])
    problem = compile_problem(instance, traffic)
    deployment, running = read_deployment(instance), asked.running
    if running is None or _runs_first_map(asked) or _repeats(running, asked.ranks):
        budget, current = Budget(), _from_scratch(instance, traffic, problem)
    else:
        most = settings.max_moves if settings.max_moves is not None else math.ceil(_BUDGET * running.size)
        budget, current = Budget(moves=most), _placement_of(instance, deployment, running)
    limits = Limits(time_s=max(0.0, until - time.monotonic()), work=settings.work, bounds=False)
    found = replan(instance, current, traffic, budget=budget, limits=limits, check=False, problem=problem)
    plan = plan_of(found.placement, deployment)
    return rows_in_old_slots([plan.flat(layer) for layer in range(plan.layers)], plan.layers, asked.ranks, running)


def _mismatch(instance: Instance, asked: Asked) -> str:
    """Say why the instance is not of what vLLM asks for; empty where it is."""
    deployment, (layers, experts) = read_deployment(instance), asked.load.shape
    own = len(deployment.moe_layers), deployment.experts, deployment.ranks
    if own != (layers, experts, asked.ranks):
        return (
            f"{instance.name} has {own[0]} MoE layers of {own[1]} experts on {own[2]} GPUs, and vLLM {layers} of "
            f"{experts} on {asked.ranks} ranks"
        )
    if deployment.slots_by_layer is None or set(deployment.slots_by_layer) != {asked.slots}:
        return (
            f"vLLM has {asked.slots} physical experts in every layer, and {instance.name} another number: set "
            f"placement.replicas to {{redundant_slots: {asked.slots - experts}}}"
        )
    each = asked.slots // asked.ranks
    if asked.slots % asked.ranks or instance.placement.slots_per_gpu != each:
        return f"every rank of vLLM has {each} slots: set placement.slots_per_gpu of {instance.name} to {each}"
    return ""


def _runs_first_map(asked: Asked) -> bool:
    """Whether nothing was planned yet."""
    layers, experts = asked.load.shape
    return asked.running is None or bool((asked.running == first_map(layers, experts, asked.slots)).all())


def _given(path: Path, asked: Asked) -> Answer:
    """Answer with the plan in a file."""
    try:
        rows = plan_rows(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return Answer("default", f"the plan in {path} cannot be read: {error}")
    layers, experts = asked.load.shape
    reason = mismatch(rows, layers, experts, asked.slots, asked.ranks)
    if reason:
        return Answer("default", f"the plan in {path} does not fit: {reason}")
    return Answer("plan", "", rows_in_old_slots(rows, layers, asked.ranks, asked.running))


def _repeats(running: Ints, ranks: int) -> bool:
    """Whether a rank holds an expert twice, as vLLM's own plans may: that is no placement to go on from."""
    held = np.sort(running.reshape(len(running), ranks, -1), axis=2)
    return bool((held[:, :, 1:] == held[:, :, :-1]).any())


def _from_scratch(instance: Instance, traffic: Traffic, problem: Problem) -> Placement:
    """Return EPLB's plan, from which replanning without a budget goes on."""
    results = find_solver("eplb").solve(problem, Limits(bounds=False), 0, None, lambda _at, _result: None)
    return bare_placement(instance, traffic, problem, "eplb", 0, fit_to_gpus(problem, results))


def _placement_of(instance: Instance, deployment: Deployment, running: Ints) -> Placement:
    """Return what runs as a placement, of which only the GPUs count."""
    slots = running.reshape(len(running), deployment.ranks, -1).tolist()
    plan = Plan(deployment.experts, tuple(tuple(map(tuple, ranks)) for ranks in slots))
    return Placement(
        schema=SCHEMA,
        instance=InstanceKey(name=instance.name, sha256=instance.sha256, traffic_sha256=""),
        solver=SolverRecord(name="vllm", version="", seed=0),
        gpu=plan.gpus(deployment),
        layers=(),
    )
