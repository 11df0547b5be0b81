"""What happened to the cluster since the current placement was made: GPUs that failed, drain, came back or are slow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moe_placer.errors import UsageError
from moe_placer.instance import Instance
from moe_placer.instance.schema import MAX_NODES, RedundantSlots
from moe_placer.problem.shortage import slots_of_layer, usable_slots

__all__ = ["Change"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """What happened to the cluster.

    Attributes
    ----------
    failed, drained : tuple of int
        Global GPU ids. Both take nothing any more; those that failed lost what they held, those that are drained send
        it to others first.
    failed_nodes, drained_nodes : tuple of int
        The same of whole nodes.
    added_nodes : int
        Nodes that come after the last one, alike.
    slow : dict
        GPU to how many times as long it takes to compute.
    """

    failed: tuple[int, ...] = ()
    drained: tuple[int, ...] = ()
    failed_nodes: tuple[int, ...] = ()
    drained_nodes: tuple[int, ...] = ()
    added_nodes: int = 0
    slow: Mapping[int, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.out_of_service(0) or self.failed_nodes or self.drained_nodes or self.added_nodes or self.slow)

    def gone(self, gpus_per_node: int) -> frozenset[int]:
        """Return the GPUs that failed, those of failed nodes among them."""
        return frozenset({*self.failed, *_of_nodes(self.failed_nodes, gpus_per_node)})

    def out_of_service(self, gpus_per_node: int) -> frozenset[int]:
        """Return the GPUs that take nothing any more: failed and drained ones."""
        return self.gone(gpus_per_node) | {*self.drained, *_of_nodes(self.drained_nodes, gpus_per_node)}

    def applied_to(self, instance: Instance) -> Instance:
        """Return the instance as it is now.

        GPUs that failed or are drained become ``placement.failed_gpus``, those that are drained also
        ``placement.drained_gpus``, and ``redundant_slots`` shrink to what the
        slots that are left can hold. Nodes that come have tokens like the mean of all others.

        Raises
        ------
        UsageError
            A GPU or a node that is not there, or that is to fail and to be drained.
        InputError
            The instance cannot be so: DP groups that no longer divide the nodes, for instance.
        """
        self._refuse(instance)
        if not self.out_of_service(instance.cluster.gpus_per_node) and not self.added_nodes:
            return instance
        out = sorted({*instance.placement.failed_gpus, *self.out_of_service(instance.cluster.gpus_per_node)})
        per_node = instance.cluster.gpus_per_node
        drained = {*instance.placement.drained_gpus, *self.out_of_service(per_node)} - self.gone(per_node)
        # An engine's rule on slots holds for the slots that are left, so it is asked last.
        changed = instance.with_engine(None).with_hardware(self.added_nodes, out, sorted(drained))
        replicas, experts = instance.placement.replicas, instance.model.experts
        if not isinstance(replicas, RedundantSlots):
            return changed.with_engine(instance.engine)
        by_memory = int(usable_slots(changed).sum()) // len(changed.moe_layers)
        there = max(0, min(slots_of_layer(changed), by_memory) - experts)
        there = min(replicas.redundant_slots, there)
        return changed.with_redundant_slots(there).with_engine(instance.engine)

    def slowness(self, gpus: int) -> Floats | None:
        """Return how many times as long each GPU takes to compute [GPUs]; None where all are alike."""
        if not self.slow:
            return None
        factor = np.ones(gpus)
        factor[list(self.slow)] = list(self.slow.values())
        return factor

    def _refuse(self, instance: Instance) -> None:
        nodes, per_node = instance.cluster.nodes, instance.cluster.gpus_per_node
        gpus = (nodes + self.added_nodes) * per_node
        if self.added_nodes < 0:
            raise UsageError(f"{self.added_nodes} nodes to add, expected 0 or more")
        if nodes + self.added_nodes > MAX_NODES:
            raise UsageError(f"{nodes + self.added_nodes:,} nodes in all, expected at most {MAX_NODES:,}")
        for kind, named, most in (
            ("GPU", (*self.failed, *self.drained), nodes * per_node),
            ("GPU", tuple(self.slow), gpus),
            ("node", (*self.failed_nodes, *self.drained_nodes), nodes),
        ):
            for one in named:
                if not 0 <= one < most:
                    raise UsageError(f"there is no {kind} {one}: {instance.name} has 0 to {most - 1}")
        drained = self.out_of_service(per_node) - self.gone(per_node)
        twice = self.gone(per_node) & {*self.drained, *_of_nodes(self.drained_nodes, per_node)}
        if twice:
            raise UsageError(f"GPU {min(twice)} is to fail and to be drained, expected one of both")
        if dead := drained & set(instance.placement.failed_gpus) - set(instance.placement.drained_gpus):
            raise UsageError(f"GPU {min(dead)} is to be drained, and placement.failed_gpus says that it failed")
        self._refuse_slow(per_node)

    def _refuse_slow(self, per_node: int) -> None:
        for gpu, factor in self.slow.items():
            if not 1 <= factor < math.inf:
                raise UsageError(f"GPU {gpu} is to take {factor:g} times as long, expected 1 or more")
            if gpu in self.out_of_service(per_node):
                raise UsageError(f"GPU {gpu} is to be slow and out of service, expected one of both")


def _of_nodes(nodes: tuple[int, ...], gpus_per_node: int) -> set[int]:
    return {gpu for node in nodes for gpu in range(node * gpus_per_node, (node + 1) * gpus_per_node)}
