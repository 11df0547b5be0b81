"""Several traffics at once: every link counts once for each of them, so that the busiest link is that of the worst.

A scenario is a recording that all nodes' tokens are like, or a window of time of all recordings. Link k of scenario j
is link ``j * K + k``, and its cost is linear in where items are, as without scenarios: search and bounds see more
links, and nothing else.

Where the mean over scenarios counts, plus so many standard deviations, that is the largest of ``sum_j p[j] z[j]`` over
all p with ``sum p = 1`` and ``|p - 1/J| <= sigmas / sqrt(J)``: the deviation from the mean is ``sqrt(J)`` times the
standard deviation long, and the best p points along it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.traffic import Traffic, cut_in_windows

__all__ = ["Judge", "costs_of_all", "links_of_all", "scenarios_of"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_NO_WEIGHT = 1e-100  # all links of a scenario together


@dataclass(frozen=True)
class Judge:
    """What a layer counts of its scenarios: the mean of their busiest links, and standard deviations on top.

    Attributes
    ----------
    scenarios : int
        Links come in as many equal parts.
    sigmas : float
        Standard deviations over scenarios that are added to the mean.
    """

    scenarios: int
    sigmas: float

    def value(self, cost: Floats) -> float:
        """Return what the costs of all links [J * K] come to."""
        each = self.each(cost)
        return float(each.mean() + self.sigmas * each.std())

    def each(self, cost: Floats) -> Floats:
        """Cost of the busiest link of each scenario [J]."""
        return np.asarray(cost.reshape(self.scenarios, -1).max(axis=1, initial=0.0))

    def steepest(self, each: Floats) -> Floats:
        """Return the weights of scenarios [J] whose weighted mean of ``each`` is their value."""
        away, count = each - each.mean(), self.scenarios
        length = float(np.sqrt(away @ away))
        even = np.full(count, 1 / count)
        return even if length <= 0 else even + self.sigmas / np.sqrt(count) * away / length

    def fitted(self, weights: Floats) -> Floats:
        """Return link weights [J * K] whose sums over scenarios weigh these as they may, near to ``weights``.

        Whatever weights are given, these prove something: those of every scenario are scaled, and a scenario without
        any has all of its weight on its first link.
        """
        parts = np.array(weights, dtype=np.float64).reshape(self.scenarios, -1)
        if not parts.size:
            return np.asarray(weights)
        sums, even = parts.sum(axis=1), np.full(self.scenarios, 1 / self.scenarios)
        away = sums / sums.sum() - even if sums.sum() >= _NO_WEIGHT else np.zeros(self.scenarios)
        length, most = float(np.sqrt(away @ away)), self.sigmas / np.sqrt(self.scenarios)
        allowed = even + away * min(1.0, most / length if length > 0 else 0.0)
        none = sums < _NO_WEIGHT
        parts[none], sums[none] = 0.0, 1.0
        parts[none, 0] = 1.0
        return np.asarray((parts / sums[:, None] * allowed[:, None]).ravel())


def scenarios_of(instance: Instance, traffic: Traffic) -> tuple[Traffic, ...]:
    """Return every recording alone, as what all nodes' tokens are like, or every window of time; none for the mix.

    Raises
    ------
    InputError
        A recording has no order of tokens to cut, or fewer tokens than windows.
    """
    if instance.objective.scenarios == "mix":
        return ()
    if instance.objective.windows is not None:
        return tuple(cut_in_windows(traffic, instance.objective.windows))
    alone = np.ones((len(traffic.mix), 1))
    return tuple(Traffic((recording,), alone) for recording in traffic.recordings)


def links_of_all(links: Sequence[str], multiplicity: Sequence[int], token_cost: Floats, times: int) -> dict[str, Any]:
    """Return ``links``, ``multiplicity`` and ``token_cost`` of a problem with so many scenarios.

    Parameters
    ----------
    links, multiplicity : sequence
        Names of links, and how many each stands for.
    token_cost : float array [K]
        Cost of a token on each.
    times : int
        Scenarios.
    """
    return {
        "links": tuple(f"{link}@{index}" for index in range(times) for link in links),
        "multiplicity": tuple(multiplicity) * times,
        "token_cost": np.tile(token_cost, times),
    }


def costs_of_all(scenarios: Sequence[tuple[Floats, Ints, Floats]]) -> dict[str, Any]:
    """Return ``base``, ``affected`` and ``delta`` of a layer with the links of all scenarios, given those of each.

    Items are the same in all, in the same order.
    """
    links = len(scenarios[0][0])
    last = links * len(scenarios)  # what stands for no link is the last one
    affected = [np.where(one == links, last, one + j * links) for j, (_, one, _) in enumerate(scenarios)]
    return {
        "base": np.concatenate([base for base, _, _ in scenarios]),
        "affected": np.hstack(affected),
        "delta": np.concatenate([delta for _, _, delta in scenarios], axis=2),
    }
