"""Several traffics at once: every link counts once for each of them, so that the busiest link is that of the worst.

A scenario is a recording that all nodes' tokens are like. Link k of scenario j is link ``j * K + k``, and its cost is
linear in where items are, as without scenarios: search and bounds see more links, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from moe_placer.traffic.recording import Traffic

if TYPE_CHECKING:
    from moe_placer.problem.compile import LayerProblem, Problem

__all__ = ["over_scenarios", "scenarios_of", "worst_of"]


def scenarios_of(traffic: Traffic) -> tuple[Traffic, ...]:
    """Return every recording alone, as what all nodes' tokens are like."""
    alone = np.ones((len(traffic.mix), 1))
    return tuple(Traffic((recording,), alone) for recording in traffic.recordings)


def over_scenarios(problem: Problem, scenarios: Sequence[Problem]) -> Problem:
    """Return a problem that judges layers by the worst scenario; replicas and GPUs' loads stay those of the mix."""
    times = len(scenarios)
    return replace(
        problem,
        links=tuple(f"{link}@{index}" for index in range(times) for link in problem.links),
        multiplicity=problem.multiplicity * times,
        token_cost=np.tile(problem.token_cost, times),
        scenarios=tuple(scenarios),
    )


def worst_of(layer: LayerProblem, scenarios: Sequence[LayerProblem]) -> LayerProblem:
    """Return a layer with the links of all scenarios, which have the same items in the same order."""
    links, last = layer.links, layer.links * len(scenarios)  # what stands for no link is the last one
    affected = [np.where(one.affected == links, last, one.affected + j * links) for j, one in enumerate(scenarios)]
    return replace(
        layer,
        base=np.concatenate([one.base for one in scenarios]),
        affected=np.hstack(affected),
        delta=np.concatenate([one.delta for one in scenarios], axis=2),
    )
