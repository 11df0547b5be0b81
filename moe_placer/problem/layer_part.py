"""What a problem's layers have alike, and what a single one has of its own: a worker gets the first once.

The second is small, so that it can travel with a task: the table of costs is compiled where the layer is placed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.problem.compile import Problem
from moe_placer.problem.coverage import Coverage
from moe_placer.traffic.token_sets import TokenSets

__all__ = ["LayerPart", "part_of", "with_part", "without_layers"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerPart:
    """The traffic of one layer.

    Attributes
    ----------
    shares : tuple of float array [recordings, experts]
        How often a token of each recording chooses each expert: of the problem, then of each of its scenarios.
    sets : TokenSets or None
        Where a token goes once to each node: what tokens choose, counted in numbers of as few bytes as hold them.
    """

    shares: tuple[Floats, ...]
    sets: TokenSets | None


def without_layers(problem: Problem) -> Problem:
    """Return what all layers have alike; nothing that was worked out since is in it."""
    empty = [Coverage(_without_tokens(one.sets), replace(one.sending)) for one in problem.coverage[:1]]
    return replace(
        problem,
        demand=problem.demand.without_layers(),
        coverage=tuple(empty * len(problem)),
        by_node=None if problem.by_node is None else without_layers(problem.by_node),
        scenarios=tuple(without_layers(one) for one in problem.scenarios),
    )


def part_of(problem: Problem, index: int) -> LayerPart:
    """Return what the index-th MoE layer has of its own."""
    sets = problem.coverage[index].sets if problem.coverage else None
    shares = [problem.demand.share[index], *(one.demand.share[index] for one in problem.scenarios)]
    return LayerPart(tuple(shares), None if sets is None else _packed(sets))


def with_part(problem: Problem, index: int, part: LayerPart) -> Problem:
    """Return `without_layers` and the one layer that has this part."""
    own, *of_scenarios = part.shares
    by_node, coverage = problem.by_node, list(problem.coverage)
    if part.sets is not None:
        coverage[index] = Coverage(_unpacked(part.sets), coverage[index].sending)
    pairs = zip(problem.scenarios, of_scenarios, strict=True)
    return replace(
        problem,
        demand=problem.demand.with_layer(index, own),
        coverage=tuple(coverage),
        by_node=None if by_node is None else replace(by_node, demand=by_node.demand.with_layer(index, own)),
        scenarios=tuple(replace(one, demand=one.demand.with_layer(index, share)) for one, share in pairs),
    )


def _without_tokens(sets: TokenSets) -> TokenSets:
    return replace(sets, choice=sets.choice[:0], file=sets.file[:0], count=sets.count[:0])


def _packed(sets: TokenSets) -> TokenSets:
    return replace(sets, file=_in_few_bytes(sets.file), count=_in_few_bytes(sets.count))


def _unpacked(sets: TokenSets) -> TokenSets:
    return replace(sets, file=sets.file.astype(np.int64), count=sets.count.astype(np.int64))


def _in_few_bytes(numbers: npt.NDArray[np.integer]) -> Any:
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))
