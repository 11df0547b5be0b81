"""Predicts the time of one step of a placement, and of its communication."""

from __future__ import annotations

from dataclasses import dataclass

from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.schedule.coarse_network import Sharing
from moe_placer.schedule.simulate import simulate_placement
from moe_placer.schedule.step_figures import Figures, find_figures
from moe_placer.schedule.workload import Workload
from moe_placer.traffic.recording import Traffic

__all__ = ["EQUAL_STEPS", "StepTime", "simulate", "step_time"]


# Steps closer than this, as a share, count as equally long: list scheduling has anomalies (docs/schedule.md).
EQUAL_STEPS = 0.02


@dataclass(frozen=True)
class StepTime:
    """Predicted times of one step.

    Attributes
    ----------
    step_us : float
        From the first operation to the last.
    communication_us : float
        Sum over layers and micro-batches of the time from the first send of a dispatch or combine to its last byte,
        computed over or not: with two micro-batches it can be longer than the step.
    """

    step_us: float
    communication_us: float


def step_time(
    instance: Instance,
    placement: Placement,
    traffic: Traffic,
    workload: Workload | None = None,
    *,
    sharing: Sharing = "fine",
) -> StepTime:
    """Predict one step of a placement; absent, the workload is a prefill of the instance's own tokens.

    Takes about 3 s of CPU time for 61 layers on 128 GPUs; the same arguments always give the same figures.

    Parameters
    ----------
    instance : Instance
    placement : Placement
    traffic : Traffic
        Routing statistics of the instance's sources.
    workload : Workload or None
        Tokens per GPU, contexts and micro-batches of the step; None: a prefill of the instance's own tokens.
    sharing : str
        How finely links are shared out over time (`moe_placer.schedule.coarse_network.Sharing`).

    Raises
    ------
    InputError
        Placement or traffic do not fit the instance.
    """
    figures = simulate(instance, placement, traffic, workload, sharing=sharing)
    return StepTime(figures.latency_us, figures.communication_us)


def simulate(
    instance: Instance,
    placement: Placement,
    traffic: Traffic,
    workload: Workload | None = None,
    *,
    sharing: Sharing = "fine",
) -> Figures:
    """Simulate one step of a placement: latency, throughput, MFU, memory, shares of time, critical path.

    Parameters
    ----------
    instance, placement, traffic
        What runs where, and which tokens choose which experts.
    workload : Workload, optional
        Prefill or decode, tokens per GPU, context, micro-batches; absent: a prefill of the instance's own tokens.
    sharing : str
        How finely links are shared out over time (`moe_placer.schedule.coarse_network.Sharing`).

    Raises
    ------
    InputError
        Placement or traffic do not fit the instance.
    """
    return find_figures(simulate_placement(instance, placement, traffic, workload, sharing=sharing))
