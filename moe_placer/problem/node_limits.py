"""What the GPUs of a node can take together, where the shards of a replica need different GPUs of it.

A table with rows that sum to ``r[i]``, columns that sum to at most ``s[g]``, and entries 0 or 1 exists if and only if,
for every k, the k largest rows sum to at most ``sum over g of min(s[g], k)`` (Gale 1957, Ryser 1957). Rows are replicas
or experts here, columns GPUs, and an entry is a shard.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["most_of_experts", "most_replicas", "most_together"]

Ints = npt.NDArray[np.int64]


def most_replicas(held: Ints, shards: int) -> Ints:
    """Return how many replicas GPUs that hold so many shards [..., GPUs] hold together [...].

    m replicas of ``shards`` shards each fit where ``sum of min(held, m)`` reaches ``m * shards``. With w GPUs that
    hold s each this is ``w * s // shards``, or 0 where w is below ``shards``.
    """
    most: Ints = held.sum(axis=-1) // shards
    while ((fewer := np.minimum(held, most[..., None]).sum(axis=-1) // shards) < most).any():
        most = fewer
    return most


def most_together(slots: Ints, shards: int) -> Ints:
    """Return how many replicas of one expert may share GPUs with so many slots [..., GPUs], whatever joins them [...].

    The most t with which every choice of replicas fits, of any experts, that has at most t of each and `most_replicas`
    in all. It is the number of GPUs with slots over ``shards`` where these have equally many.
    """
    whole = most_replicas(slots, shards) * shards
    together = (slots > 0).sum(axis=-1) // shards
    for k in range(1, int(slots.max(initial=0)) + 1):
        fits = np.minimum(slots, k).sum(axis=-1)
        together = np.where(fits < whole, np.minimum(together, fits // (k * shards)), together)
    return np.asarray(together, dtype=np.int64)


def most_of_experts(node_slots: Ints, together: Ints, experts: int) -> Ints:
    """Return the most replicas that any k experts can have on nodes [N], for k from 1 to ``experts``."""
    k = np.arange(1, experts + 1)[:, None]
    return np.asarray(np.minimum(node_slots, k * together).sum(axis=1))
