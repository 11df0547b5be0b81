"""Verifies a placement again, then holds its figures to limits: a yes or no for pipelines."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from moe_placer.decisions.evaluate import check_servable, costs_of
from moe_placer.errors import UsageError
from moe_placer.experiments.compare.current_plan import check_plan, count_moves, plan_of
from moe_placer.experiments.compare.metrics import find_flows
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.result import gap
from moe_placer.schedule.coarse_network import Sharing
from moe_placer.schedule.step import step_time
from moe_placer.traffic import Traffic, load_traffic
from moe_placer.verifier import Verification, verify

__all__ = ["UNITS", "Gate", "GateCheck", "GateLimits", "gate"]

UNITS = {
    "max_gap": "share",
    "max_layer_gap": "share",
    "max_z": "cost",
    "max_total_z": "cost",
    "max_aggregate": "cost",
    "max_dispatch_ms": "ms",
    "max_layer_time_ms": "ms",
    "max_busiest_gpu": "tokens",
    "max_imbalance": "share",
    "max_step_ms": "ms",
    "min_gain": "share",
    "max_moves": "replicas",
}


@dataclass(frozen=True)
class GateLimits:
    """The limits that a placement's figures must not exceed; None is no limit.

    Attributes
    ----------
    max_gap : float or None
        Gap of what the instance minimises to its re-derived bound: 0.01 is 1%.
    max_layer_gap : float or None
        Largest gap of a layer, likewise.
    max_z : float or None
        Largest z of a layer: cost of its busiest link, tokens per step at node-link speed.
    max_total_z : float or None
        Sum of z over layers.
    max_aggregate : float or None
        Largest cost of any link over all layers together.
    max_dispatch_ms : float or None
        Dispatch of all layers in turn, one way, each as long as its slowest link needs.
    max_layer_time_ms : float or None
        Sum over layers of dispatch, slowest GPU and combine, one after the other.
    max_busiest_gpu : float or None
        Tokens per step on the busiest GPU of any layer.
    max_imbalance : float or None
        Largest, over layers, of (tokens of the busiest GPU / mean of working GPUs) - 1: 0.2 is 20%.
    max_step_ms : float or None
        A simulated step: prefill of the instance's own tokens.
    min_gain : float or None
        Share by which what the instance minimises has to be below the current placement's, on the same traffic.
    max_moves : int or None
        Replicas that GPUs have to load, coming from the current placement.

    Raises
    ------
    UsageError
        A limit is below 0 or not finite, or there is none.
    """

    max_gap: float | None = None
    max_layer_gap: float | None = None
    max_z: float | None = None
    max_total_z: float | None = None
    max_aggregate: float | None = None
    max_dispatch_ms: float | None = None
    max_layer_time_ms: float | None = None
    max_busiest_gpu: float | None = None
    max_imbalance: float | None = None
    max_step_ms: float | None = None
    min_gain: float | None = None
    max_moves: int | None = None

    def __post_init__(self) -> None:
        given = self.given()
        if not given:
            names = ", ".join(_named(field.name) for field in fields(self))
            raise UsageError(f"no limit is given, expected at least one of {names}")
        for name, value in given.items():
            if not 0 <= value < math.inf:
                raise UsageError(f"{_named(name)} is {value:g}, expected 0 or more")

    def given(self) -> dict[str, float]:
        """Return the limits that there are, by name."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in pairs if value is not None}


@dataclass(frozen=True)
class GateCheck:
    """One limit, and the placement's figure that it applies to.

    Attributes
    ----------
    limit : str
        Name of the limit, as options of `moe-placer gate` have it.
    value : float or None
        What the placement has; None where nothing is known, such as a gap without a bound.
    allowed : float
        The limit.
    unit : str
        Of both: ``share``, ``cost``, ``tokens``, ``ms``, ``replicas``.
    ok : bool
        Whether it holds; what is not known does not.
    """

    limit: str
    value: float | None
    allowed: float
    unit: str
    ok: bool


@dataclass(frozen=True, eq=False)
class Gate:
    """The result of a gate: the verification, and every limit with the figure held against it.

    Attributes
    ----------
    verification : Verification
        Everything that was recomputed.
    checks : tuple of GateCheck
        One per limit; empty where the placement breaks a rule, since its figures mean nothing then.
    """

    verification: Verification
    checks: tuple[GateCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether the placement is good and all limits hold."""
        return self.verification.ok and all(check.ok for check in self.checks)


def gate(
    instance: Instance,
    placement: Placement,
    limits: GateLimits,
    traffic: Traffic | None = None,
    current: Placement | None = None,
    *,
    sharing: Sharing = "fine",
) -> Gate:
    """Verify a placement again, and hold its recomputed figures to limits.

    Parameters
    ----------
    instance : Instance
        What the placement was made for.
    placement : Placement
        Nothing that it states of itself is believed.
    limits : GateLimits
        At least one.
    traffic : Traffic, optional
        Absent: what the instance names.
    current : Placement, optional
        What runs today; ``min_gain`` and ``max_moves`` compare with it.
    sharing : str
        How finely a simulated step shares links out over time (`moe_placer.schedule.coarse_network.Sharing`).

    Returns
    -------
    Gate

    Raises
    ------
    UsageError
        A limit needs a current placement.
    InputError
        The current placement cannot serve the instance.
    """
    given = limits.given()
    if current is None and given.keys() & {"min_gain", "max_moves"}:
        raise UsageError("--min-gain and --max-moves compare with the placement that runs today: give it as --current")
    traffic = traffic or load_traffic(instance)
    verification = verify(instance, placement, traffic)
    if not verification.ok:
        return Gate(verification, ())
    measured = _Measured(instance, placement, traffic, verification, current, sharing)
    return Gate(verification, tuple(_check(name, allowed, measured) for name, allowed in given.items()))


@dataclass(frozen=True, eq=False)
class _Measured:
    """The figures that limits are about, each worked out when it is asked for."""

    instance: Instance
    placement: Placement
    traffic: Traffic
    found: Verification
    current: Placement | None
    sharing: Sharing

    def max_gap(self) -> float:
        return gap(self.found.aggregate, self.found.aggregate_bound) if self._is_aggregate else self._total_gap

    def max_layer_gap(self) -> float:
        return max((gap(layer.z, layer.bound) for layer in self.found.layers), default=0.0)

    def max_z(self) -> float:
        return self.found.max_z

    def max_total_z(self) -> float:
        return self.found.total_z

    def max_aggregate(self) -> float:
        return self.found.aggregate

    def max_dispatch_ms(self) -> float:
        return self.found.dispatch_us / 1e3

    def max_layer_time_ms(self) -> float:
        return self.found.total_layer_us / 1e3

    def max_busiest_gpu(self) -> float:
        return float(self._gpu_tokens.max(initial=0.0))

    def max_imbalance(self) -> float:
        tokens = self._gpu_tokens
        mean = tokens.mean(axis=1)
        return float((tokens.max(axis=1)[mean > 0] / mean[mean > 0]).max(initial=1.0)) - 1

    def max_step_ms(self) -> float:
        return step_time(self.instance, self.placement, self.traffic, sharing=self.sharing).step_us / 1e3

    def min_gain(self) -> float:
        assert self.current is not None
        before = _objective_of(self.instance, self.current, self.traffic)
        now = self._objective
        return 1 - now / before if before > 0 else (0.0 if now == 0 else -math.inf)

    def max_moves(self) -> float:
        assert self.current is not None
        check_plan(self.instance, self.current)
        return count_moves(self.placement, plan_of(self.current)) or 0

    @property
    def _is_aggregate(self) -> bool:
        return self.instance.objective.minimise == "aggregate"

    @property
    def _objective(self) -> float:
        if self.instance.objective.minimise == "layer-time":
            return self.found.total_layer_us
        return self.found.aggregate if self._is_aggregate else self.found.total_z

    @property
    def _total_gap(self) -> float:
        if self.instance.objective.minimise == "layer-time":
            return gap(self.found.total_layer_us, self.found.layer_us_bound)
        return gap(self.found.total_z, self.found.total_bound)

    @property
    def _gpu_tokens(self) -> npt.NDArray[np.float64]:
        """Tokens of each working GPU [MoE layers, working GPUs]."""
        works = np.full(self.instance.gpus, True)
        works[list(self.instance.placement.failed_gpus)] = False
        return find_flows(self.instance, self.placement, self.traffic).gpu[:, works]


def _named(field: str) -> str:
    """Name a limit as the command line does."""
    return field.removesuffix("_ms").replace("_", "-")


def _objective_of(instance: Instance, current: Placement, traffic: Traffic) -> float:
    """Recompute what a plan comes to; it may be of other traffic and other numbers of replicas, and may state anything.

    Raises
    ------
    InputError
        It cannot serve the instance.
    """
    check_servable(instance, current)
    costs = costs_of(instance, current, traffic)
    if instance.objective.minimise == "layer-time":
        return costs.layer_time_us
    return costs.aggregate if instance.objective.minimise == "aggregate" else costs.total_z


def _check(name: str, allowed: float, measured: _Measured) -> GateCheck:
    value = float(getattr(measured, name)())
    known = value if math.isfinite(value) else None
    holds = value >= allowed if name.startswith("min_") else value <= allowed
    return GateCheck(_named(name), known, allowed, UNITS[name], holds and known is not None)
