"""One look at a folder of recordings: read what is new, replan, and put the new plan in force if that pays."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.errors import MoePlacerError, UsageError
from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.replan.budget import Budget
from moe_placer.replan.change import Change
from moe_placer.replan.replan import Replanned, replan
from moe_placer.replan.task import Minimise
from moe_placer.watch.nic_costs import busiest_nics
from moe_placer.watch.recordings import Arrival, arrivals, load_shares, read_arrival
from moe_placer.watch.store import WatchStore

__all__ = ["WatchPolicy", "Watcher"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WatchPolicy:
    """When a new plan takes the place of the one in force.

    Attributes
    ----------
    steps : float
        Steps for which a plan is expected to serve.
    factor : float
        What these steps gain must be at least so many times the time of the transfers.
    settle_s : float
        Seconds for which a recording must not have changed before it is read.
    least_choices : float
        Choices for each expert, on average, that a recording must have in every layer.
    budget : Budget
    minimise : str or None
        As for `moe_placer.replan`.
    limits : Limits
        Of one replan.

    Raises
    ------
    UsageError
        A number is out of range.
    """

    steps: float = 10_000.0
    factor: float = 2.0
    settle_s: float = 2.0
    least_choices: float = 50.0
    budget: Budget = field(default_factory=Budget)
    minimise: Minimise | None = None
    limits: Limits = field(default_factory=lambda: Limits(time_s=4.0))

    def __post_init__(self) -> None:
        for name in ("steps", "factor", "settle_s", "least_choices"):
            if not 0 <= getattr(self, name) < np.inf:
                raise UsageError(f"{name} is {getattr(self, name):g}, expected 0 or more")

    def refuses(self, found: Replanned) -> str | None:
        """Say why the plan in force stays; None where the new one takes its place."""
        if found.loss is not None:
            return None  # the plan in force cannot run
        if not found.gains:
            return "nothing to gain"
        gain, cost = (found.transfers.gain_us or 0.0) * self.steps, found.transfers.us
        if gain < self.factor * cost:
            return (
                f"not worth it: {self.steps:,.0f} steps gain {gain:,.0f} us, the transfers take {cost:,.0f} us, and "
                f"the gain must be {self.factor:g} times that"
            )
        return None


class Watcher:
    """Looks at a folder of recordings again and again; its own folder must have no other writer.

    Parameters
    ----------
    folder : Path
        Of the recordings.
    store : WatchStore
    instance : Instance
    policy : WatchPolicy
    clock : callable
        Seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        store: WatchStore,
        instance: Instance,
        policy: WatchPolicy,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.store, self.instance, self.policy, self.clock = folder, store, instance, policy, clock
        self.last: Replanned | None = None
        self.drift = 0.0

    def begin(self, current: Placement | None) -> None:
        """Put the first plan in force, unless there is one already.

        Raises
        ------
        InputError
            The one in force is damaged.
        UsageError
            There is none.
        """
        if self.store.version >= 0:
            self.store.current()
            self._planned_load()
            return
        if current is None:
            raise UsageError("no plan is in force yet: give the one that runs now as --current")
        self.store.put(current, self.instance, None, None, {"at": self.clock(), "reason": "given at the start"})

    def look(self, again: bool = False) -> list[dict[str, Any]]:
        """Look once; return what was added to the journal.

        Of several new recordings the newest is planned for, the others are superseded. ``again`` plans for the newest
        recording even where that has been done: the instance has changed.
        """
        known = {entry.get("fingerprint") for entry in self.store.journal.entries}
        before = len(self.store.journal.entries)
        until = (self.clock() - self.policy.settle_s) * 1e9
        settled = [one for one in arrivals(self.folder) if one.changed_ns <= until]
        new = [one for one in settled if one.fingerprint not in known] or (settled[-1:] if again else [])
        for old in new[:-1]:
            self._note(old, "superseded", f"{new[-1].path.name} is newer")
        if new:
            self._plan_for(new[-1])
        return self.store.journal.entries[before:]

    def reread(self, read: Callable[[], Instance]) -> list[dict[str, Any]]:
        """Take the instance that ``read`` returns, and plan again; one that is refused changes nothing."""
        try:
            self.instance = read()
        except MoePlacerError as error:
            self.store.journal.append(
                {"at": self.clock(), "event": "refused", "reason": f"the instance stays as it was: {error}"}
            )
            return self.store.journal.entries[-1:]
        return self.look(again=True)

    def _plan_for(self, arrival: Arrival) -> None:
        policy = self.policy
        try:
            traffic = read_arrival(self.instance, arrival, policy.least_choices)
            load, planned = load_shares(traffic), self._planned_load()
            self.drift = 0.0 if planned is None else float(np.abs(load - planned).sum(axis=1).mean() / 2)
            current = self.store.current()
            found = replan(
                self.instance,
                current,
                traffic,
                budget=policy.budget,
                minimise=policy.minimise,
                change=self._out_of_service(),
                limits=policy.limits,
            )
        except MoePlacerError as error:
            self._note(arrival, "refused", str(error))
            return
        self.last = found
        reason, figures = policy.refuses(found), self._figures(found, current)
        if reason is not None:
            self._note(arrival, "kept", reason, figures)
            return
        won = "what was out of service came back" if found.loss is not None else "the gain exceeds the cost"
        about = {**self._about(arrival, won), **figures}
        self.store.put(found.placement, found.instance, found.transfers, load, about)

    def _planned_load(self) -> Floats | None:
        return self.store.planned_load((len(self.instance.moe_layers), self.instance.model.experts))

    def _out_of_service(self) -> Change:
        """Return as a change what the instance says already: fewer slots may hold fewer replicas."""
        placement = self.instance.placement
        drained = placement.drained_gpus
        return Change(failed=tuple(gpu for gpu in placement.failed_gpus if gpu not in drained), drained=drained)

    def _figures(self, found: Replanned, current: Placement) -> dict[str, Any]:
        serving = (found.placement if found.loss is not None else current, found.placement)
        nics = [busiest_nics(found.instance, found.traffic, plan) for plan in serving]
        return {
            "moves": found.after.moves,
            "bytes": found.after.bytes,
            "total_z": [found.before.total_z, found.after.total_z],
            "nic_z": None if None in nics else nics,
            "busiest_gpu": [found.before.busiest_gpu, found.after.busiest_gpu],
            "gain_us": found.transfers.gain_us,
            "transfers_us": found.transfers.us,
            "serving_loss_us": found.transfers.serving_loss_us,
            "bound": None if found.bound is None else found.bound.value,
            "drift": self.drift,
        }

    def _about(self, arrival: Arrival, reason: str) -> dict[str, Any]:
        return {
            "at": self.clock(),
            "recording": arrival.path.name,
            "fingerprint": arrival.fingerprint,
            "reason": reason,
        }

    def _note(self, arrival: Arrival, event: str, reason: str, figures: dict[str, Any] | None = None) -> None:
        self.store.journal.append({**self._about(arrival, reason), "event": event, **(figures or {})})
