"""Which share of each node's tokens the replicas of an expert get, under engines' rules that fix it beforehand.

These rules number an expert's replicas by GPU, and pick one by a number that has nothing to do with where they are:
vLLM hashes the index of a token in its rank's batch, vllm-ascend takes the rank. So the n-th replica of an expert with
m of them gets a known share of what each node sends, and costs of links stay linear in the placement. Which replica is
the n-th follows from where they are; bounds let it be any of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance

__all__ = ["ReplicaShares", "replica_shares"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_FACTOR, _WORD = 2_654_435_769, 1 << 32  # vLLM's hash of an index


@dataclass(frozen=True)
class ReplicaShares:
    """One rule, and what it counts.

    Attributes
    ----------
    rule : str
        ``vllm-hash`` or ``vllm-ascend``.
    nodes, gpus_per_node : int
        Ranks are GPUs.
    tokens : int
        That start on each GPU.
    tensor_parallel : int
        Ranks of one attention group.
    chosen : bool
        Whether how many replicas each expert has is a choice that the instance leaves open.
    """

    rule: str
    nodes: int
    gpus_per_node: int
    tokens: int
    tensor_parallel: int
    chosen: bool

    @property
    def alike(self) -> bool:
        """Whether the shares are the same for all nodes, so that every replica's is part of what one would get."""
        return self.rule == "vllm-hash"

    def of(self, expert: Ints, replica: Ints) -> Floats:
        """Share [nodes, items] of each node's tokens for ``expert[i]`` that its replica number ``replica[i]`` gets."""
        count = np.bincount(expert)[expert]
        found = np.zeros((self.nodes, len(expert)))
        for m in np.unique(count).tolist():
            mine = np.flatnonzero(count == m)
            if self.rule == "vllm-hash":
                found[:, mine] = self._by_hash(m)[replica[mine]]
            else:
                found[:, mine] = self._by_rank(m, expert[mine], replica[mine])
        return found

    def _by_hash(self, m: int) -> Floats:
        """Share of indices whose hash leaves each remainder modulo m [m]."""
        left = np.arange(self.tokens, dtype=np.uint64) * np.uint64(_FACTOR) % np.uint64(_WORD) % np.uint64(m)
        return np.asarray(np.bincount(left.astype(np.int64), minlength=m) / self.tokens)

    def _by_rank(self, m: int, expert: Ints, replica: Ints) -> Floats:
        """Share of each node's ranks that take the replica [nodes, items]."""
        rank = np.arange(self.nodes * self.gpus_per_node)
        number = rank[:, None]
        if self.tensor_parallel > 1:
            group, inside = np.divmod(rank, self.tensor_parallel)
            number = (group + inside)[:, None] + expert[None, :]
        takes = number % m == replica[None, :]
        return np.asarray(takes.reshape(self.nodes, self.gpus_per_node, -1).mean(axis=1))


def replica_shares(instance: Instance) -> ReplicaShares | None:
    """Return the rule of an instance; None where replicas go by DP group, or all get as much."""
    placement = instance.placement
    if not placement.numbers_replicas:
        return None
    return ReplicaShares(
        rule=placement.replica_routing,
        nodes=instance.cluster.nodes,
        gpus_per_node=instance.cluster.gpus_per_node,
        tokens=int(instance.traffic.tokens_per_gpu),
        tensor_parallel=instance.parallelism.attention_tp,
        chosen=instance.redundant_slots > 0,
    )
