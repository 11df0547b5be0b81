"""Does placing pay? Plans on some of a recording, scores on the rest, and gives one verdict with its evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_placer.decisions.resampling import Interval, LayerTimes, draw_weights, find_gain, time_layers
from moe_placer.decisions.units import Units, pool, read_units, read_units_by_node
from moe_placer.errors import InputError, Mistake, UsageError
from moe_placer.experiments.compare.current_plan import check_plan, plan_of
from moe_placer.instance import Instance
from moe_placer.instance.sizes import GB, expert_bytes
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.schedule.step import EQUAL_STEPS
from moe_placer.solve.solve import Solution, solve
from moe_placer.traffic.recording import Traffic

__all__ = ["FEWEST_UNITS", "LayerGain", "Migration", "ScreenSettings", "Screening", "Verdict", "screen"]

Floats = npt.NDArray[np.float64]

FEWEST_UNITS = 8  # to score on; an interval from fewer says nothing


class Verdict(StrEnum):
    """The recommendation of a screening."""

    RECOMMEND_TRIAL = "recommend_trial"
    NOT_RECOMMENDED_NOW = "not_recommended_now"
    INSUFFICIENT_EVIDENCE = "insufficient_evidence"


@dataclass(frozen=True)
class ScreenSettings:
    """The settings of a screening: windows, confidence and limits.

    Attributes
    ----------
    solver : str
        Whose plan is screened; ``eplb`` is what engines would do themselves.
    limits : Limits
        Of its search.
    seed : int
        Of the search and of the draws.
    min_gain : float
        Gain in layer time from which on a trial is worth it: 0.02 is 2%.
    confidence : float
        Of all intervals: 0.95 is 95%.
    draws : int
        Draws of units with replacement.
    horizon_steps : float or None
        Steps that the recorded traffic is expected to last; a plan that is not paid back within them is not worth it.

    Raises
    ------
    UsageError
        A value makes no sense.
    """

    solver: str = "auto"
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    min_gain: float = EQUAL_STEPS
    confidence: float = 0.95
    draws: int = 1000
    horizon_steps: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_gain < 1:
            raise UsageError(f"min-gain is {self.min_gain:g}, expected a share of at least 0, below 1")
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"confidence is {self.confidence:g}, expected 50% or more, below 100%")
        if not 100 <= self.draws <= 100_000:
            raise UsageError(f"{self.draws:,} draws, expected 100 to 100,000")
        if self.horizon_steps is not None and not 0 < self.horizon_steps < math.inf:
            raise UsageError(f"horizon is {self.horizon_steps:g} steps, expected a number above 0")


@dataclass(frozen=True)
class LayerGain:
    """The gain of a placement in one MoE layer.

    Attributes
    ----------
    layer : int
        Index in the model, dense layers counted.
    time : Interval
        Gain in the time of dispatch, busiest GPU and combine.
    current_us, planned_us : float
        That time, in microseconds.
    """

    layer: int
    time: Interval
    current_us: float
    planned_us: float


@dataclass(frozen=True)
class Migration:
    """What it takes to get from the current plan to the new one.

    Attributes
    ----------
    replicas : int
        Replicas that GPUs load, because they do not hold such an expert today.
    total_gb, largest_gpu_gb : float
        Their weights on all GPUs, and on the GPU that loads most.
    ms : float
        Milliseconds that this GPU's share of its node's NICs needs for them, with nothing else on them.
    payback_steps : float or None
        Steps after which the gain has made up for that; None where there is no gain.
    """

    replicas: int
    total_gb: float
    largest_gpu_gb: float
    ms: float
    payback_steps: float | None


@dataclass(frozen=True, eq=False)
class Screening:
    """A verdict, and everything that it follows from.

    Attributes
    ----------
    verdict : Verdict
    reason : str
        Why, in a sentence.
    units : tuple of Units
        How each recording was cut, or each node's part of one; what was planned on was not scored on.
    time, links, gpus : Interval or None
        Gain over all layers: in layer time; in dispatch alone; in what busiest GPUs compute. None where too little was
        recorded to score on.
    layers : tuple of LayerGain
        MoE layers in order; empty likewise.
    current : str
        What runs today: ``contiguous``, or the name of a given plan's solver.
    migration : Migration or None
    solution : Solution or None
        The plan that was screened.
    """

    verdict: Verdict
    reason: str
    units: tuple[Units, ...]
    time: Interval | None = None
    links: Interval | None = None
    gpus: Interval | None = None
    layers: tuple[LayerGain, ...] = ()
    current: str = ""
    migration: Migration | None = None
    solution: Solution | None = None


def screen(
    instance: Instance,
    recordings: Sequence[str | Path],
    current: Placement | None = None,
    settings: ScreenSettings | None = None,
) -> Screening:
    """Plan on some windows of recordings, score on the others, and say whether a trial is worth it.

    Parameters
    ----------
    instance : Instance
        Model, cluster and slots. Its traffic gives the tokens of a step and, where it has as many columns as there are
        recordings, the mix of these on each node; else they are mixed evenly. With ``sources: recorded`` and one
        recording of whole tokens, each node has the tokens of its own ranks.
    recordings : sequence of paths
        What `import_recording` wrote, or recorded tokens, one per domain.
    current : Placement, optional
        What runs today; absent, the contiguous plan, which engines run without a map.
    settings : ScreenSettings, optional

    Returns
    -------
    Screening

    Raises
    ------
    InputError
        A recording is damaged or not of this model, or the current plan cannot serve the instance.
    UsageError
        There is no recording.
    """
    chosen = settings or ScreenSettings()
    if not recordings:
        raise UsageError("no recording is given, expected at least one")
    if len(recordings) == 1:
        units = read_units_by_node(Path(recordings[0]), instance)
    else:
        units = tuple(read_units(Path(file), instance) for file in recordings)
    few = next((one for one in units if len(one.score) < FEWEST_UNITS), None)
    if few is not None:
        found = f"{few.name} has {len(few.plan) + len(few.score)} {few.kind if few.kind != 'whole' else 'unit'}"
        reason = f"{found}, expected at least {2 * FEWEST_UNITS}: {FEWEST_UNITS} to score on; record longer"
        return Screening(Verdict.INSUFFICIENT_EVIDENCE, reason, units)
    mix = np.eye(len(units)) if len(units) > len(recordings) else _mix(instance, len(units))
    past = Traffic(tuple(pool(one.plan) for one in units), mix)
    solution = solve(instance, past, solver=chosen.solver, limits=chosen.limits, seed=chosen.seed)
    before, name = _current(instance, solution, current)
    scored = [one.score for one in units]
    weights = draw_weights(scored, chosen.draws, chosen.seed)
    old = time_layers(instance, before, scored, mix, weights)
    new = time_layers(instance, solution.placement, scored, mix, weights)
    return _judge(instance, chosen, units, (old, new), (before, name), solution)


def _mix(instance: Instance, columns: int) -> Floats:
    """Return the instance's own mix where it fits, else an even one [nodes, recordings]."""
    rows = getattr(instance.traffic, "mix", None)
    if rows is not None and len(rows[0]) == columns:
        return np.array(rows, dtype=np.float64)
    return np.full((instance.cluster.nodes, columns), 1 / columns)


def _current(instance: Instance, solution: Solution, current: Placement | None) -> tuple[Placement, str]:
    if current is None:
        contiguous = solution.baseline_placements().get("contiguous")
        if contiguous is None:
            why = solution.baselines.get("contiguous")
            found = f"no contiguous plan ({why})" if isinstance(why, str) else "no contiguous plan"
            raise InputError(Mistake(found, "--current PLACEMENT, what runs today", instance.name))
        return contiguous, "contiguous"
    check_plan(instance, current)
    for layer, experts in zip(instance.moe_layers, current.gpu, strict=True):
        if not all(experts):
            expert = next(index for index, replicas in enumerate(experts) if not replicas)
            raise InputError(Mistake(f"a current plan without layer {layer} expert {expert}", "every expert"))
    return current, current.solver.name


def _judge(
    instance: Instance,
    settings: ScreenSettings,
    units: tuple[Units, ...],
    times: tuple[LayerTimes, LayerTimes],
    current: tuple[Placement, str],
    solution: Solution,
) -> Screening:
    """Compare two plans' times, and come to a verdict."""
    old, new = times
    sure = settings.confidence
    time = find_gain(old.total_us.sum(axis=1), new.total_us.sum(axis=1), sure)
    layers = tuple(
        LayerGain(
            layer,
            find_gain(old.total_us[:, row], new.total_us[:, row], sure),
            float(old.total_us[0, row]),
            float(new.total_us[0, row]),
        )
        for row, layer in enumerate(instance.moe_layers)
    )
    saved = float(old.total_us[0].sum() - new.total_us[0].sum())
    moved = _migration(instance, current[0], solution.placement, saved)
    verdict, reason = _verdict(settings, time, moved)
    return Screening(
        verdict,
        reason,
        units,
        time,
        find_gain(old.link_us.sum(axis=1), new.link_us.sum(axis=1), sure),
        find_gain(old.gpu_us.sum(axis=1), new.gpu_us.sum(axis=1), sure),
        layers,
        current[1],
        moved,
        solution,
    )


def _migration(instance: Instance, before: Placement, after: Placement, saved_us: float) -> Migration:
    loaded = np.zeros(instance.gpus)
    for held, had in zip(plan_of(after), plan_of(before), strict=True):
        for (_, gpu), count in (held - had).items():
            loaded[gpu] += count
    size, fabric = expert_bytes(instance), instance.cluster.fabric
    per_gpu_gb_s = fabric.node_gb_per_s * fabric.link_utilization / instance.cluster.gpus_per_node
    largest_gb = float(loaded.max()) * size / GB
    ms = 1e3 * largest_gb / per_gpu_gb_s
    steps = 1e3 * ms / saved_us if saved_us > 0 else None
    return Migration(int(loaded.sum()), float(loaded.sum()) * size / GB, largest_gb, ms, steps)


def _verdict(settings: ScreenSettings, time: Interval, moved: Migration) -> tuple[Verdict, str]:
    least = f"{settings.min_gain:.1%}"
    where = f"between {time.low:.1%} and {time.high:.1%} with {settings.confidence:.0%} confidence"
    if time.high < settings.min_gain:
        return Verdict.NOT_RECOMMENDED_NOW, f"the gain in layer time lies {where}, below {least}"
    if time.low < settings.min_gain:
        why = f"the gain in layer time lies {where}, which is neither above nor below {least}; record longer"
        return Verdict.INSUFFICIENT_EVIDENCE, why
    horizon = settings.horizon_steps
    steps = math.inf if moved.payback_steps is None else moved.payback_steps
    if horizon is not None and steps > horizon:
        why = f"the gain in layer time lies {where}, but loading takes {steps:,.0f} steps to pay back"
        return Verdict.NOT_RECOMMENDED_NOW, f"{why}, more than the horizon of {horizon:,.0f}"
    return Verdict.RECOMMEND_TRIAL, f"the gain in layer time lies {where}, above {least}"
