"""What moves of replicas add to the weighted cost of links, for all experts at once: what trades are ranked by.

A table has an entry for every expert, node that a replica leaves (the last: none) and node that it comes to (the last:
none). With SGLang's rules a closed form is exact; under ``nearest`` it is so in small layers, and in large ones leaving
and coming are added up as if apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.problem.near_replicas import NearLayer

__all__ = ["move_table"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_EXACT = 300_000  # numbers up to which every move under ``nearest`` is computed by itself


def move_table(near: NearLayer, held: Ints, tokens: Floats, price: Floats) -> Floats:
    """Return what each move adds [experts, N + 1, N + 1]; of those that leave an expert without a replica, anything.

    Parameters
    ----------
    near : NearLayer
    held : int array [experts, nodes]
        Replicas of some experts on each node.
    tokens : float array [experts, nodes]
        Of each node, for these experts.
    price : float array [nodes, nodes]
        Weighted cost of a token from every node to every node, 0 on the diagonal.
    """
    if near.rule.rule != "nearest":
        return _of_draws(held, tokens, price)
    if held.size * (near.nodes + 1) ** 2 * near.nodes <= _EXACT:
        return _one_by_one(near, held, tokens, price)
    leaving, coming = _leaving(near.rule.hops, held, tokens, price), _coming(near.rule.hops, held, tokens, price)
    return _none_beside(leaving)[:, :, None] + _none_beside(coming)[:, None, :]


def _none_beside(values: Floats) -> Floats:
    """Add a last column of zeros."""
    return np.pad(values, ((0, 0), (0, 1)))


def _of_draws(held: Ints, tokens: Floats, price: Floats) -> Floats:
    """Tokens of nodes without a replica go to any: ``sum_s tokens[s] sum_n held[n] price[s, n] / replicas``."""
    nodes = held.shape[1]
    all_, without = held @ price.T, held == 0  # what a token to every replica costs; nodes that send
    now = (tokens * all_ * without).sum(axis=1)
    to = _none_beside((tokens * without) @ price)
    padded = np.pad(price, (0, 1))
    alone, sends = (_none_beside((held == 1) * tokens), _none_beside(without * tokens))
    every = _none_beside(all_)
    # The node left sends from now on, if that was its last replica; the node come to does so no more.
    cost = now[:, None, None] - to[:, :, None] + to[:, None, :]
    cost = cost + alone[:, :, None] * (every[:, :, None] + padded[None, :, :])
    cost -= sends[:, None, :] * (every[:, None, :] - padded.T[None, :, :])
    step = (np.arange(nodes + 1) < nodes).astype(np.int64)
    count = held.sum(axis=1)[:, None, None]
    table = cost / np.maximum(1, count - step[:, None] + step[None, :]) - now[:, None, None] / count
    table[:, np.arange(nodes + 1), np.arange(nodes + 1)] = 0.0
    return np.asarray(table)


def _one_by_one(near: NearLayer, held: Ints, tokens: Floats, price: Floats) -> Floats:
    """Count every move by itself."""
    nodes = near.nodes
    step = np.vstack([np.eye(nodes, dtype=np.int64), np.zeros((1, nodes), dtype=np.int64)])
    table = np.zeros((len(held), nodes + 1, nodes + 1))
    for gone in range(nodes + 1):
        can = np.flatnonzero(held[:, gone] > 0) if gone < nodes else np.arange(len(held))
        new = (held[can] - step[gone])[:, None, :] + step[None, :, :]
        new[new.sum(axis=2) == 0] = 1  # an expert keeps a replica: such moves are not asked for
        share = near.rule.of_nodes(new)
        table[can, gone] = ((share * price).sum(axis=3) * tokens[can][:, None, :]).sum(axis=2)
    table -= table[:, nodes, nodes][:, None, None].copy()
    return table


def _levels(hops: Ints, held: Ints, price: Floats, beyond: Ints) -> tuple[Ints, Ints, Floats]:
    """Find the nearest replicas that are further than ``beyond`` [experts, nodes]: how far, how many, the mean cost."""
    far = np.iinfo(np.int64).max
    way = np.where((held[:, None, :] > 0) & (hops > beyond[:, :, None]), hops, far)
    least = way.min(axis=2)
    there = np.where((way == least[:, :, None]) & (way < far), held[:, None, :], 0)
    count = there.sum(axis=2)
    mean = np.einsum("esn,sn->es", there, price) / np.maximum(1, count)
    return least, count, mean


def _coming(hops: Ints, held: Ints, tokens: Floats, price: Floats) -> Floats:
    """Return what one more replica on each node adds [experts, nodes]."""
    least, count, mean = (one[:, :, None] for one in _levels(hops, held, price, np.full(held.shape, -1)))
    as_far = (mean * count + price) / (count + 1)
    then = np.where(hops < least, price, np.where(hops == least, as_far, mean))
    return np.asarray(((then - mean) * tokens[:, :, None]).sum(axis=1))


def _leaving(hops: Ints, held: Ints, tokens: Floats, price: Floats) -> Floats:
    """Return what one replica less on each node adds [experts, nodes]; anything where there is none."""
    nearest = _levels(hops, held, price, np.full(held.shape, -1))
    next_ = _levels(hops, held, price, nearest[0])
    least, count, mean = (one[:, :, None] for one in nearest)
    others = np.where(count > 1, (mean * count - price) / np.maximum(1, count - 1), next_[2][:, :, None])
    then = np.where(hops == least, others, mean)
    return np.asarray(((then - mean) * tokens[:, :, None]).sum(axis=1))
