"""A placement after GPUs have failed: which replicas take over, and which experts are lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_placer.dag.groups import find_tp_groups
from moe_placer.errors import UsageError
from moe_placer.instance import Instance
from moe_placer.placement import Placement

__all__ = ["Survivors", "after_failure"]

Shards = tuple[tuple[int, ...], ...]  # GPUs of each replica


@dataclass(frozen=True, eq=False)
class Survivors:
    """The placement that is left once GPUs have failed.

    Attributes
    ----------
    instance : Instance
        With the GPUs marked as failed.
    placement : Placement
        Without their replicas: tokens go to the expert's others. With ``group`` routing, the replica of the next DP
        group that has one stands in.
    lost : tuple of (layer, expert)
        Experts without a replica; layer is the index in the model.
    stranded : tuple of tuple of int
        Tensor-parallel groups of which no GPU is left, so that nobody attends to their tokens.
    """

    instance: Instance
    placement: Placement
    lost: tuple[tuple[int, int], ...]
    stranded: tuple[tuple[int, ...], ...]

    @property
    def runs(self) -> bool:
        """Whether the step can run at all."""
        return not self.lost and not self.stranded


def after_failure(instance: Instance, placement: Placement, failed: Sequence[int]) -> Survivors:
    """Say what is left of a placement when some more GPUs fail.

    Raises
    ------
    UsageError
        A GPU that does not exist, has failed already, or is named twice.
    """
    before = instance.placement.failed_gpus
    for gpu in failed:
        if not 0 <= gpu < instance.gpus:
            raise UsageError(f"there is no GPU {gpu}: {instance.name} has 0 to {instance.gpus - 1}")
        if gpu in before or list(failed).count(gpu) > 1:
            raise UsageError(f"GPU {gpu} has failed already")
    if instance.placement.numbers_replicas or instance.placement.prefers_near:
        rule = instance.placement.replica_routing
        raise UsageError(
            f"{rule} counts ranks, and a failed GPU has none: simulate failures with replica_routing: even"
        )
    gone = {*before, *failed}
    limits = instance.placement.model_copy(update={"failed_gpus": tuple(sorted(gone))})
    left = instance.model_copy(update={"placement": limits})
    lost, rows = [], []
    for row, layer in enumerate(instance.moe_layers):
        replicas = []
        for expert in range(instance.model.experts):
            shards = placement.shards(row, expert)
            standing = _standing(shards, gone, instance.placement.replica_routing == "group")
            if not standing:
                lost.append((layer, expert))
            replicas.append(standing or shards)
        rows.append(tuple(replicas))
    stranded = tuple(
        tuple(sorted(tp_group.gpus))
        for tp_group in find_tp_groups(instance)
        if set(tp_group.gpus) <= gone and not set(tp_group.gpus).isdisjoint(failed)
    )
    return Survivors(left, placement.model_copy(update={"gpu": tuple(rows)}), tuple(lost), stranded)


def _standing(shards: Shards, gone: set[int], group: bool) -> Shards:
    """Replicas that are left; with ``group`` as many as before, each failed one replaced by the next that works."""
    works = [gone.isdisjoint(gpus) for gpus in shards]
    if not any(works):
        return ()
    if not group:
        return tuple(gpus for gpus, well in zip(shards, works, strict=True) if well)
    count = len(shards)
    return tuple(
        next(shards[(r + step) % count] for step in range(count) if works[(r + step) % count]) for r in range(count)
    )
