"""Which further replica of an expert would help a step most: candidates are chosen by tokens, and then simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe_placer.dag.flows import Flows, Replica, read_flows
from moe_placer.fabric import is_nic
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic

__all__ = ["AddedReplica", "Wish", "find_candidates", "free_slots", "with_added_replicas"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AddedReplica:
    """A further replica: of an expert in a MoE layer (its row among them), beside replica ``beside``, on a GPU."""

    row: int
    expert: int
    beside: int
    gpu: int


@dataclass(frozen=True)
class Wish:
    """What replicas are to relieve: GPUs that are slow, the stand-ins for failed ones, or links."""

    slow: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    links: tuple[str, ...] = ()


def free_slots(instance: Instance, placement: Placement, spare: int = 0) -> npt.NDArray[np.int64]:
    """Count the slots [MoE layers, GPUs] that hold nothing, with ``spare`` more on every GPU than there are."""
    slots: Ints = np.full((len(instance.moe_layers), instance.gpus), instance.placement.slots_per_gpu + spare)
    for row in range(len(slots)):
        for expert in range(instance.model.experts):
            for gpus in set(placement.shards(row, expert)):
                slots[row, list(gpus)] -= 1
    slots[:, list(instance.placement.failed_gpus)] = 0
    return np.asarray(np.maximum(slots, 0))


def with_added_replicas(instance: Instance, placement: Placement, replicas: Sequence[AddedReplica]) -> Placement:
    """Return a placement with further replicas; tokens of the replica beside which one stands are shared evenly.

    With ``even`` routing all replicas of an expert are alike; with ``group`` a DP group uses the old and the new.
    """
    gpu = [list(row) for row in placement.gpu]
    group = instance.placement.replica_routing == "group"
    for replica in replicas:
        old = placement.shards(replica.row, replica.expert)
        new = ((replica.gpu,),)
        # All groups' replicas once more, but for the one that is to be shared (`Flows` adds up what meets on a GPU).
        more = (*old[: replica.beside], *new, *old[replica.beside + 1 :]) if group else new
        gpu[replica.row][replica.expert] = (*old, *more)
    return placement.model_copy(update={"gpu": tuple(tuple(row) for row in gpu)})


def find_candidates(
    instance: Instance, placement: Placement, traffic: Traffic, wish: Wish, before: Placement, free: Ints
) -> list[AddedReplica]:
    """List one replica per MoE layer, the most promising layer first.

    In every layer it is of the replica that brings most tokens to what is to be relieved. It goes to a GPU with a free
    slot: on a node from where fewest of these tokens cross the links, then on the replica's own node (which changes no
    link), and there to the GPU with fewest tokens.

    Parameters
    ----------
    instance : Instance
    placement : Placement
    traffic : Traffic
        Routing statistics of the instance's sources.
    wish : Wish
        What added replicas are to relieve.
    before : Placement
        Before GPUs failed: what stood on them.
    free : int array [MoE layers, GPUs]
        As `free_slots` counts.
    """
    flows = read_flows(instance, placement, traffic, stand_ins=True)
    behind = _gpus_behind(flows, wish.links)
    if behind:  # a NIC of single GPUs is relieved by what takes tokens from these
        wish = replace(wish, slow=(*wish.slow, *behind), links=())
    search = _Search(flows, wish, before, _over(flows, wish.links))
    found = [search.in_layer(row, free[row]) for row in range(len(instance.moe_layers))]
    return [replica for _, replica in sorted((one for one in found if one is not None), key=lambda one: -one[0])]


def _gpus_behind(flows: Flows, links: Sequence[str]) -> tuple[int, ...]:
    """List the GPUs whose experts' tokens arrive, or results leave, by any of these links alone."""
    nics, found = flows.receivers, set()
    for link in filter(is_nic, links):
        if nics is not None:
            tail, _, head = link.partition("->")
            arrives = link if is_nic(tail) else f"{head}->{tail}"
            found |= set(np.flatnonzero(nics.group == nics.every.index(arrives) // nics.alike).tolist())
    return tuple(sorted(found))


def _over(flows: Flows, links: Sequence[str]) -> Floats:
    """How often what goes from node s to node d crosses the links, there (dispatch) and back (combine) [N, N]."""
    nodes = flows.instance.cluster.nodes
    over = np.zeros(nodes * nodes)
    for link in links:
        over += flows.routes.shares[[flows.routes.links.index(link)]].toarray()[0]
    there = over.reshape(nodes, nodes)
    return there + there.T


@dataclass(frozen=True, eq=False)
class _Search:
    """What candidates are judged by."""

    flows: Flows
    wish: Wish
    before: Placement
    over: Floats

    def in_layer(self, row: int, free: Ints) -> tuple[float, AddedReplica] | None:
        """Return the most promising replica of a layer, after the tokens that it is to relieve."""
        flow, per_node = self.flows.layer(row), self.flows.instance.cluster.gpus_per_node
        load = np.zeros(self.flows.instance.gpus)
        for index, (_, _, gpus) in enumerate(flow.replicas):
            load[list(gpus)] += flow.tokens[:, index].sum()
        best: tuple[float, AddedReplica] | None = None
        for index, (expert, replica, gpus) in enumerate(flow.replicas):
            tokens = flow.tokens[:, index]
            weight, beside, home = self._brings(row, expert, replica, gpus, tokens)
            if weight <= (0.0 if best is None else best[0]):
                continue
            gpu = self._place(flow.replicas, expert, home, free, tokens, load)
            if gpu is not None and (not self.wish.links or (tokens @ self.over)[gpu // per_node] < weight):
                best = (weight, AddedReplica(row, expert, beside, gpu))
        return best

    def _brings(
        self, row: int, expert: int, replica: int, gpus: tuple[int, ...], tokens: Floats
    ) -> tuple[float, int, int]:
        """Tokens that a replica takes from what is to be relieved, the replica and the node that it shares with."""
        per_node = self.flows.instance.cluster.gpus_per_node
        if self.wish.links:
            return float((tokens @ self.over)[gpus[0] // per_node]), replica, gpus[0] // per_node
        if not set(self.wish.slow).isdisjoint(gpus):
            return float(tokens.sum()), replica, gpus[0] // per_node
        for r, stood in enumerate(self.before.shards(row, expert)):
            if not set(self.wish.failed).isdisjoint(stood):
                return float(tokens.sum()), r, stood[0] // per_node
        return 0.0, 0, 0

    def _place(
        self, replicas: list[Replica], expert: int, home: int, free: Ints, tokens: Floats, load: Floats
    ) -> int | None:
        """Return the best GPU with a free slot; None where there is none."""
        per_node = self.flows.instance.cluster.gpus_per_node
        barred = {*self.wish.slow, *(gpu for one, _, gpus in replicas if one == expert for gpu in gpus)}
        crossing = tokens @ self.over
        places = [gpu for gpu in np.flatnonzero(free).tolist() if gpu not in barred]
        return min(
            places,
            key=lambda gpu: (crossing[gpu // per_node], gpu // per_node != home, load[gpu], gpu),
            default=None,
        )
