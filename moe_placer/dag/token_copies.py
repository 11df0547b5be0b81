"""How many copies of tokens a node sends where a token goes once to every place that holds any of its experts.

A place is a GPU or a node. A token that goes to place p for its expert e with chance ``c[e, p]`` misses p with
probability ``prod over its experts e of (1 - c[e, p])``: 0 or 1 where it has one replica of each expert to go to.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.traffic.recording import Traffic
from moe_placer.traffic.token_sets import TokenSets, token_sets

__all__ = ["copies_to_places"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BLOCK = 2_000_000  # numbers in one temporary array


def copies_to_places(traffic: Traffic, row: int, started: float, share: Floats, to: tuple[Ints, Ints]) -> Floats:
    """Count the copies per step from every node to every place [nodes, places], a node's own places included.

    Parameters
    ----------
    traffic : Traffic
        Of recordings that have every token's choice.
    row : int
        The MoE layer, counted among MoE layers.
    started : float
        Tokens that start on each node.
    share : float array [nodes, replicas]
        Share of a node's tokens for an expert that goes to each of its replicas.
    to : tuple of int array
        Expert of each replica [replicas], and place of each [replicas]; both are counted from 0, and the highest of
        each is there.
    """
    expert, place = to
    views, view = np.unique(share, axis=0, return_inverse=True)
    sets = token_sets(traffic, row, int(expert.max()) + 1)
    sent = np.zeros((len(share), int(place.max()) + 1))
    for index, shares in enumerate(views):
        chance = np.zeros((sets.experts, sent.shape[1]))
        np.add.at(chance, (expert, place), shares)
        mine = view.ravel() == index
        sent[mine] = started * traffic.mix[mine] @ _reached(sets, chance)
    return sent


def _reached(sets: TokenSets, chance: Floats) -> Floats:
    """Share of each file's tokens that go to each place at least once [files, places]."""
    misses, weight = 1.0 - chance, sets.weight
    reached = np.zeros((len(sets.tokens), chance.shape[1]))
    step = max(1, _BLOCK // chance.shape[1])
    for first in range(0, len(sets.choice), step):
        some = slice(first, first + step)
        missed = np.ones((len(sets.choice[some]), chance.shape[1]))
        for column in sets.choice[some].T:
            missed *= misses[column]
        missed = weight[some, None] * (1.0 - missed)
        for file in np.unique(sets.file[some]).tolist():
            reached[file] += missed[sets.file[some] == file].sum(axis=0)
    return reached
