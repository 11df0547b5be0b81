"""The rows of a plan as its page reads them: the plan, its steps, what-ifs, kernels, and swept points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from moe_placer.experiments.sweep.crossing import Crossing, find_crossings

__all__ = ["Curve", "Figures", "State", "cross", "ms", "percent", "read_figures"]

Row = Mapping[str, Any]
EQUAL = 0.02  # steps closer than this count as equally long


def percent(share: float, digits: int = 0) -> str:
    """Write a share in percent."""
    return f"{100 * share:.{digits}f}%"


def ms(us: float) -> str:
    """Write microseconds as milliseconds."""
    return f"{us / 1e3:,.1f} ms"


class State(NamedTuple):
    """What a curve over batches has in common: context in tokens, leaf down over leaf up, and the kernel."""

    context: float
    oversubscription: float | None
    dispatch: str
    receive: str


class Curve(NamedTuple):
    """Figures by batch of one placement, told by the sum of its busiest links as its file states it (tokens)."""

    total_z: float
    ratios: dict[float, float]


@dataclass(frozen=True)
class Figures:
    """The rows of a plan's page, sorted by their kind.

    Attributes
    ----------
    plan : mapping
        The row of the plan.
    steps : tuple of mapping
        Simulated steps, of the plan and of those beside it.
    troubles : tuple of mapping
        What-ifs.
    kernels : tuple of mapping
        Sums of busiest links under other kernels.
    contiguous_us : float
        µs of a step with experts in order.
    points : tuple of mapping
        Rows of sweeps; empty where none were given.
    """

    plan: Row
    steps: tuple[Row, ...]
    troubles: tuple[Row, ...]
    kernels: tuple[Row, ...]
    contiguous_us: float
    points: tuple[Row, ...]

    @property
    def instance(self) -> Row:
        """The content of the instance file."""
        found: Row = self.plan["instance"]
        return found

    @property
    def ep(self) -> int:
        """GPUs that together hold all experts of a layer."""
        instance = self.instance
        replicas = instance["placement"]["replicas"]
        return int(self.plan["gpus"] // (instance["parallelism"]["dp"] if replicas == "dp" else 1))

    def step(self, *, micro_batches: int = 2, phase: str = "prefill", small: bool = False, plan: str = "plan") -> Row:
        """Return a simulated step.

        Parameters
        ----------
        micro_batches : int
        phase : str
        small : bool
            The small batch, in place of the instance's (prefill) or the large one (decode).
        plan : str
            Which plan.
        """
        found = [
            row
            for row in self.steps
            if (row["micro_batches"], row["phase"], row["plan"]) == (micro_batches, phase, plan)
        ]
        order = sorted(found, key=lambda row: float(row["tokens_per_gpu"]))
        return order[0] if small else order[-1]

    def target(self, name: str, **which: Any) -> Row:
        """Return how a step stands to a target."""
        found: Row = next(one for one in self.step(**which)["targets"] if one["name"] == name)
        return found

    def trouble(self, what: str, plan: str = "plan") -> Row:
        """Return a what-if (a slow or failed GPU) of a plan."""
        return next(row for row in self.troubles if row["trouble"] == what and row["plan"] == plan)

    @property
    def plans(self) -> list[str]:
        """Names of the plans that were simulated beside this one."""
        return list(dict.fromkeys(row["plan"] for row in self.steps if row["plan"] != "plan"))

    def swept(self, sweep: str, plan: str = "") -> list[Row]:
        """Points of the sweeps whose title begins so, of one plan."""
        return [row for row in self.points if row["sweep"].startswith(sweep) and row["plan"].startswith(plan)]

    def ratios(self, sweep: str, axis: str) -> dict[float, float]:
        """Return the step of the first plan over that of the second, by the value of an axis."""
        by_plan: dict[str, dict[float, float]] = {}
        for row in self.swept(sweep):
            by_plan.setdefault(row["plan"], {})[float(row[axis])] = float(row["latency_us"])
        if len(by_plan) != 2:
            return {}
        first, second = by_plan.values()
        return {x: first[x] / second[x] for x in sorted(first.keys() & second.keys())}

    def crossing(self, sweep: str) -> Crossing | None:
        """Return the batch from which on the other plan is the faster one."""
        ratios = self.ratios(sweep, "tokens_per_gpu")
        if len(ratios) < 2:
            return None
        found = cross(ratios)
        return found[0] if found else None

    @property
    def own_state(self) -> State:
        """The instance's own network and kernel, at the context that sweeps take where they say nothing."""
        cluster = self.instance["cluster"]
        receive = (cluster.get("nics") or {}).get("receive", "shared")
        over = cluster["fabric"].get("oversubscription")
        return State(4096.0, over, self.instance["placement"]["dispatch"], receive)

    def curves(self) -> dict[State, Curve]:
        """Return this plan's step over the other's by state and batch, prefill in two micro-batches.

        The other plan is that of the sweep of batches. Where it sends nothing between nodes, its step is the same on
        every network and under every kernel, and need not be simulated on each. A curve is of one placement of each
        plan: of several, the one swept at most batches.
        """
        own, others = self.plan["sha256"], self.swept("Batches, prefill")
        other = next((row["instance_sha256"] for row in others if row["instance_sha256"] != own), None)
        alone = all(row["dispatch_us"] == 0 for row in others if row["instance_sha256"] == other)
        mine, theirs = self._swept_steps(own), self._swept_steps(str(other), anywhere=alone)
        found: dict[State, Curve] = {}
        for state, (total_z, steps) in mine.items():
            at = self.own_state._replace(context=state.context) if alone else state
            beside = theirs[at].ratios if at in theirs else {}
            ratios = {batch: us / beside[batch] for batch, us in sorted(steps.items()) if batch in beside}
            if len(ratios) > 1:
                found[state] = Curve(total_z, ratios)
        return found

    def _swept_steps(self, instance_sha256: str, *, anywhere: bool = False) -> dict[State, Curve]:
        """Return µs by state and batch of a plan; ``anywhere``: they are those of the instance's own network."""
        found: dict[State, dict[float, dict[float, float]]] = {}
        for row in self.points:
            swept = row["instance_sha256"], row["phase"], row["micro_batches"]
            if swept == (instance_sha256, "prefill", 2):
                state = self._state_of(row)
                state = self.own_state._replace(context=state.context) if anywhere else state
                of_placement = found.setdefault(state, {}).setdefault(float(row["total_z"]), {})
                of_placement.setdefault(float(row["tokens_per_gpu"]), float(row["latency_us"]))
        # Placements of one instance are told apart by the sum of their busiest links, which every row has.
        return {state: Curve(*max(of.items(), key=lambda item: len(item[1]))) for state, of in found.items()}

    def at_batch(self, tokens_per_gpu: float) -> float | None:
        """Return this plan's µs at a swept batch, prefill in its own state; None where that was not swept."""
        for row in self.points:
            swept = row["phase"], row["micro_batches"], float(row["tokens_per_gpu"]), row["instance_sha256"]
            own = "prefill", 2, tokens_per_gpu, self.plan["sha256"]
            if swept == own and self._state_of(row) == self.own_state:
                return float(row["latency_us"])
        return None

    def third_plans(self) -> list[Row]:
        """Return swept steps of plans that are neither this one, nor its sizes, nor the one it is held against."""
        known = {row["instance_sha256"] for title in ("Batches, prefill", "Sizes") for row in self.swept(title)}
        return [row for row in self.points if row["instance_sha256"] not in {*known, self.plan["sha256"]}]

    def equal_at(self) -> tuple[float, float] | None:
        """Return the least and the most of the batches at which both steps are equally long, over all states."""
        found = [one.at for curve in self.curves().values() for one in cross(curve.ratios)]
        return (min(found), max(found)) if found else None

    def _state_of(self, row: Row) -> State:
        own = self.own_state  # rows of older sweeps state no kernel: it is the instance's
        kernel = row.get("dispatch", own.dispatch), row.get("receive", own.receive)
        return State(float(row["context"]), row["oversubscription"], *kernel)


def cross(curve: Mapping[float, float]) -> list[Crossing]:
    """List the batches at which one step over another, by batch, is 1."""
    return find_crossings(list(curve), list(curve.values()), [1.0] * len(curve))


def read_figures(rows: Sequence[Row]) -> Figures:
    """Sort rows.

    Raises
    ------
    KeyError, ValueError
        They are not those of a plan.
    """
    of: dict[str, list[Row]] = {}
    for row in rows:
        of.setdefault(row.get("kind", "point"), []).append(row)
    (plan,), (contiguous,) = of["plan"], of["contiguous"]
    return Figures(
        plan, tuple(of["step"]), tuple(of.get("what-if", [])), tuple(of.get("kernel", [])),
        float(contiguous["latency_us"]), tuple(of.get("point", [])),
    )  # fmt: skip
