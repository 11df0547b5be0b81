"""Ways to follow drifting traffic, side by side: a plan made on what was seen, measured on the window that follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_placer.errors import UsageError
from moe_placer.instance import Instance
from moe_placer.instance.schema import RedundantSlots
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import compile_problem
from moe_placer.replan.budget import Budget
from moe_placer.replan.current import read_current
from moe_placer.replan.fresh_plan import measure
from moe_placer.replan.migration import migrate
from moe_placer.replan.next_plans import Planner, SlotOrder, Window
from moe_placer.replan.task import Figures, Minimise
from moe_placer.traffic import Traffic
from moe_placer.workers import find_engine, run_each

__all__ = ["WAYS", "Followed", "follow", "gain_kept", "ways_for"]

WAYS = {
    "never": "what runs now, unchanged",
    "once": "replanned for the first window, then unchanged: how long a plan lasts",
    "replan": "replanned for the last window, within the budget",
    "history": "replanned for all windows so far together, within the budget",
    "eplb": "EPLB from scratch for the last window, its slots in the order in which it packs, as SGLang does",
    "vllm": "the same plan, but what stays on a GPU keeps its slot, as in vLLM",
    "flashlb": "vllm-ascend's FlashLB on all windows so far: layers whose balance is worse, matched with what runs",
}


_LASTS = (1, 2, 4, 8)  # windows after which it is told what is left of a gain


@dataclass(frozen=True)
class Followed:
    """One way on one window.

    Attributes
    ----------
    way : str
        As in `WAYS`.
    window : int
        The window that it is measured on, from 1; the plan was made from those before.
    figures : Figures
        What the plan costs on this window; its moves are those since the window before.
    transfers_us : float
        How long these take.
    slots : int
        Slots that are written, since they hold another expert than before; more than the moves where slots are not
        kept.
    """

    way: str
    window: int
    figures: Figures
    transfers_us: float
    slots: int

    def plain(self) -> dict[str, Any]:
        """Return its fields and its figures, by name."""
        own = {"way": self.way, "window": self.window, "slots": self.slots, "transfers_us": self.transfers_us}
        return own | vars(self.figures)


def gain_kept(values: Mapping[str, Sequence[float]]) -> dict[int, float | None]:
    """Return what is left of a plan's gain after some windows; None: replanning gained nothing there.

    Parameters
    ----------
    values : mapping
        Way to its cost in every window, in order; empty is returned unless never, once and replan are among them.
    """
    if not {"never", "once", "replan"} <= values.keys():
        return {}
    found: dict[int, float | None] = {}
    for after in (after for after in _LASTS if after <= len(values["never"])):
        never, once, each = (values[way][after - 1] for way in ("never", "once", "replan"))
        found[after] = (never - once) / (never - each) if never > each else None
    return found


def ways_for(instance: Instance, current: Placement | None = None) -> list[str]:
    """Return the ways that know this kind of instance, and what runs on it where that is given."""
    return [way for way in WAYS if way != "flashlb" or not flashlb_refuses(instance, current)]


def flashlb_refuses(instance: Instance, current: Placement | None = None) -> str:
    """Say why FlashLB does not know a kind of instance, or what runs on it; empty: it does."""
    placement = instance.placement
    if not isinstance(placement.replicas, RedundantSlots):
        return "it chooses the replicas of every expert in every layer: placement.replicas: {redundant_slots: N}"
    survives = placement.survives != "none"
    rules = {"pinned": placement.pinned, "survives": survives, "failed_gpus": placement.failed_gpus}
    if broken := [name for name, rule in rules.items() if rule]:
        return f"it does not know placement.{broken[0]}"
    if placement.replicas_apart == "node":
        return "it keeps replicas apart by GPUs only: placement.replicas_apart: gpu"
    slots = instance.model.experts + placement.replicas.redundant_slots
    if slots % instance.gpus:
        return f"GPUs must have equally many experts, and {slots} are no multiple of {instance.gpus} GPUs"
    for layer, row in zip(instance.moe_layers, () if current is None else current.gpu, strict=False):
        held = Counter(replica for replicas in row for replica in replicas)
        if len(held) < instance.gpus or len(set(held.values())) > 1:
            return f"GPUs must have equally many experts, and what runs has not in layer {layer}"
    return ""


def follow(
    instance: Instance,
    current: Placement,
    windows: Sequence[Traffic],
    *,
    ways: Sequence[str] | None = None,
    budget: Budget | None = None,
    minimise: Minimise | None = None,
    limits: Limits | None = None,
    seed: int = 0,
    executor: str | None = None,
) -> list[Followed]:
    """Follow windows of traffic in several ways; the plan for each window is made from those before it.

    Parameters
    ----------
    instance : Instance
    current : Placement
        What runs before the first window.
    windows : sequence of Traffic
        In the order of time, two or more.
    ways : sequence of str, optional
        Of `WAYS`; absent: all that know the instance.
    budget : Budget, optional
        Of each replan; absent: as many moves as gain anything.
    minimise : str, optional
        As for `moe_placer.replan`.
    limits : Limits, optional
        Of each replan; absent: 4 s.
    seed : int
    executor : str, optional
        What runs the ways, each over all of its windows, as ``--executor``; absent: this process, one after the other.

    Raises
    ------
    UsageError
        A way that is unknown, or does not know the instance, or fewer than two windows; an executor that is not there,
        or a shard.
    InputError, NothingFoundError
        As for `moe_placer.replan`: also where ``current`` is of another instance, or breaks a rule.
    """
    ways = ways_for(instance, current) if ways is None else ways
    for way in ways:
        if way not in WAYS:
            raise UsageError(f"{way!r} is no way to follow traffic, expected some of {', '.join(WAYS)}")
    if "flashlb" in ways and (reason := flashlb_refuses(instance, current)):
        raise UsageError(f"flashlb cannot follow {instance.name}: {reason}")
    if len(windows) < 2:
        raise UsageError(f"{len(windows)} windows, expected 2 or more: a plan for one is measured on the next")
    asked = _Asked(instance, current, windows, budget, minimise, limits or Limits(time_s=4.0), seed)
    if executor is None:
        planner = asked.planner()
        return [row for way in ways for row in _rows(planner, current, way)]
    engine = find_engine(executor)
    if engine.shard is not None:
        raise UsageError(
            f"--executor {executor} divides rows over commands; give each command some of the --way instead"
        )
    # Every plan of a way starts from the one before it, so a way is a task, and its windows are not.
    found = dict(run_each(_follow_one, asked, ways, len(ways), executor=executor))
    return [row for at in range(len(ways)) for row in found[at]]


@dataclass(frozen=True, eq=False)
class _Asked:
    """What all ways have alike."""

    instance: Instance
    current: Placement
    windows: Sequence[Traffic]
    budget: Budget | None
    minimise: Minimise | None
    limits: Limits
    seed: int

    def planner(self) -> Planner:
        """Compile all windows; refuse a current placement that cannot run."""
        each = [Window(window, compile_problem(self.instance, window)) for window in self.windows]
        read_current(each[0].problem, self.current)
        return Planner(self.instance, each, self.budget, self.minimise, self.limits, self.seed)


def _follow_one(asked: _Asked, way: str) -> list[Followed]:
    return _rows(asked.planner(), asked.current, way)


def _rows(planner: Planner, current: Placement, way: str) -> list[Followed]:
    """Follow the planner's windows in one way."""
    instance, each, rows = planner.instance, planner.windows, []
    before, slots = current, SlotOrder(current, instance.gpus)
    for at in range(1, len(each)):
        plan = planner.plans[way](at, before)
        now = each[at]
        figures = measure(instance, before, plan, now.traffic, planner.minimise, problem=now.problem)
        us = 0.0 if before.gpu == plan.gpu else migrate(instance, before, plan).us
        written = slots.written(plan, each[at - 1].problem) if way == "eplb" else figures.moves
        rows.append(Followed(way, at, figures, us, written))
        before = plan
    return rows
