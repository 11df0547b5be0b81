"""Ways to follow drifting traffic, side by side: a plan made on what was seen, measured on the window that follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moe_placer.errors import InputError, Mistake, UsageError
from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import compile_problem
from moe_placer.replan.budget import Budget
from moe_placer.replan.fresh import measure
from moe_placer.replan.migration import migrate
from moe_placer.replan.replan import replan
from moe_placer.replan.task import Figures, Minimise, default_goal
from moe_placer.solve.solve import solve
from moe_placer.traffic import Recording, Traffic

__all__ = ["WAYS", "Followed", "cut_in_windows", "follow"]

WAYS = {
    "never": "what runs now, unchanged",
    "once": "replanned for the first window, then unchanged: how long a plan lasts",
    "replan": "replanned for the last window, within the budget",
    "history": "replanned for all windows so far together, within the budget",
    "eplb": "EPLB from scratch for the last window, as engines do; whether slots of a GPU are kept moves no weights",
}


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
    """

    way: str
    window: int
    figures: Figures
    transfers_us: float


def cut_in_windows(traffic: Traffic, windows: int) -> list[Traffic]:
    """Cut recordings in the order of their tokens, each into as many parts of equal length.

    Raises
    ------
    UsageError
        Fewer than two windows.
    InputError
        A recording has no token choices, or fewer tokens than windows.
    """
    if windows < 2:
        raise UsageError(f"{windows} windows, expected 2 or more: a plan for one is measured on the next")
    parts: list[list[Recording]] = [[] for _ in range(windows)]
    for recording in traffic.recordings:
        topk = recording.topk
        if topk is None or len(topk) < windows:
            found = "no token choices (topk)" if topk is None else f"{len(topk):,} tokens"
            raise InputError(Mistake(f"{recording.name} with {found}", f"tokens in order for {windows} windows"))
        for at, rows in enumerate(np.array_split(topk, windows)):
            load = np.stack(
                [np.bincount(layer.ravel(), minlength=recording.load.shape[1]) for layer in rows.swapaxes(0, 1)]
            )
            tokens = np.full(len(load), float(len(rows)))
            parts[at].append(Recording(f"{recording.name}, window {at}", load.astype(np.float64), tokens, rows))
    return [Traffic(tuple(part), traffic.mix) for part in parts]


def follow(
    instance: Instance,
    current: Placement,
    windows: Sequence[Traffic],
    *,
    ways: Sequence[str] = tuple(WAYS),
    budget: Budget | None = None,
    minimise: Minimise | None = None,
    limits: Limits | None = None,
    seed: int = 0,
) -> list[Followed]:
    """Follow windows of traffic in several ways; the plan for each window is made from those before it.

    Parameters
    ----------
    instance : Instance
    current : Placement
        What runs before the first window.
    windows : sequence of Traffic
        In the order of time, two or more.
    ways : sequence of str
        Of `WAYS`.
    budget : Budget, optional
        Of each replan; absent: as many moves as gain anything.
    minimise : str, optional
        As for `moe_placer.replan`.
    limits : Limits, optional
        Of each replan; absent: 4 s.
    seed : int

    Raises
    ------
    UsageError
        An unknown way, or fewer than two windows.
    InputError, NothingFoundError
        As for `moe_placer.replan`.
    """
    for way in ways:
        if way not in WAYS:
            raise UsageError(f"{way!r} is no way to follow traffic, expected some of {', '.join(WAYS)}")
    if len(windows) < 2:
        raise UsageError(f"{len(windows)} windows, expected 2 or more: a plan for one is measured on the next")
    minimise = minimise or default_goal(compile_problem(instance, windows[0]), False)
    limits = limits or Limits(time_s=4.0)

    def replanned(plan: Placement, seen: Traffic) -> Placement:
        found = replan(instance, plan, seen, budget=budget, minimise=minimise, limits=limits, seed=seed, check=False)
        return found.placement

    def eplb(_plan: Placement, seen: Traffic) -> Placement:
        scratch = Limits(time_s=limits.time_s, bounds=False)
        return solve(instance, seen, solver="eplb", limits=scratch, seed=seed).placement

    next_of: dict[str, Callable[[int, Placement], Placement]] = {
        "never": lambda _at, plan: plan,
        "once": lambda at, plan: replanned(plan, windows[0]) if at == 1 else plan,
        "replan": lambda at, plan: replanned(plan, windows[at - 1]),
        "history": lambda at, plan: replanned(plan, _together(windows[:at])),
        "eplb": lambda at, plan: eplb(plan, windows[at - 1]),
    }
    rows = []
    for way in ways:
        plan = current
        for at in range(1, len(windows)):
            before, plan = plan, next_of[way](at, plan)
            figures = measure(instance, before, plan, windows[at], minimise)
            rows.append(Followed(way, at, figures, _transfers_us(instance, before, plan)))
    return rows


def _transfers_us(instance: Instance, before: Placement, after: Placement) -> float:
    """Return how long the transfers take."""
    if before.gpu == after.gpu:
        return 0.0
    return migrate(instance, before, after).us


def _together(windows: Sequence[Traffic]) -> Traffic:
    """Return windows as one traffic, each of them with the same weight."""
    recordings = tuple(one for window in windows for one in window.recordings)
    return Traffic(recordings, np.hstack([window.mix for window in windows]) / len(windows))
