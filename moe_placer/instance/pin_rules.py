"""Pins of replicas to GPUs: of replicas and GPUs that there are, and such as can hold together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moe_placer.instance.schema import Cluster, FatTree, Model, Parallelism, Placement, ThreeLevelTree

__all__ = ["check_pins"]

_SHOWN = 4  # numbers that a message lists
_PLURAL = {"node": "nodes", "leaf": "leaves"}

Found = tuple[tuple[str | int, ...], str, str]  # path of the field, what was found, what is expected


def check_pins(model: Model, cluster: Cluster, parallelism: Parallelism, placement: Placement) -> Iterator[Found]:
    """Find pins of what is not there, and pins that exclude each other.

    Parameters
    ----------
    model : Model
    cluster : Cluster
    parallelism : Parallelism
    placement : Placement
    """
    gpus = cluster.nodes * cluster.gpus_per_node
    replicas = parallelism.dp if placement.replicas == "dp" else 1
    dense, failed = set(model.dense_layers), set(placement.failed_gpus)
    seen: set[tuple[int, int, int]] = set()
    for index, pin in enumerate(placement.pinned):
        at = ("placement", "pinned", index)
        if pin.layer >= model.layers or pin.layer in dense:
            yield (*at, "layer"), str(pin.layer), f"the index of a MoE layer, below {model.layers} and not dense"
        if pin.expert >= model.experts:
            yield (*at, "expert"), str(pin.expert), f"an expert below {model.experts}"
        if pin.replica >= replicas:
            yield (*at, "replica"), str(pin.replica), f"a replica below {replicas}"
        if pin.gpu >= gpus:
            yield (*at, "gpu"), str(pin.gpu), f"a global GPU id below {gpus}"
        elif pin.gpu in failed:
            yield (*at, "gpu"), f"{pin.gpu}, which placement.failed_gpus lists", "a GPU that works"
        if (pin.layer, pin.expert, pin.replica) in seen:
            yield at, "a replica that is pinned twice", "one pin per replica"
        seen.add((pin.layer, pin.expert, pin.replica))
    if placement.pinned and parallelism.expert_tp > 1:
        yield ("placement", "pinned"), "pins with expert_tp above 1", "one or the other"
    yield from _crowded_pins(cluster, placement)
    yield from _gathered_pins(cluster, replicas, placement)


def _crowded_pins(cluster: Cluster, placement: Placement) -> Iterator[Found]:
    """Find pins that exclude each other: more on a GPU than it has slots, or two replicas of one expert too close."""
    on_gpu: dict[tuple[int, int], list[int]] = {}
    first: dict[tuple[int, int, int], int] = {}
    apart = placement.replicas_apart
    for index, pin in enumerate(placement.pinned):
        at = ("placement", "pinned", index)
        place = pin.gpu if apart == "gpu" else pin.gpu // cluster.gpus_per_node
        if apart == "none":
            place = -1 - index  # of its own: no two replicas are too close
        other = first.setdefault((pin.layer, pin.expert, place), pin.replica)
        if other != pin.replica:
            found = f"replicas {other} and {pin.replica} of expert {pin.expert} on {apart} {place} in layer {pin.layer}"
            yield at, found, f"different {apart}s (placement.replicas_apart)"
            continue
        experts = on_gpu.setdefault((pin.layer, pin.gpu), [])
        experts.append(pin.expert)
        if len(experts) == placement.slots_per_gpu + 1:
            found = f"experts {_enumerated(experts)} pinned to GPU {pin.gpu} in layer {pin.layer}"
            yield at, found, f"at most placement.slots_per_gpu ({placement.slots_per_gpu}) on one GPU"


def _gathered_pins(cluster: Cluster, replicas: int, placement: Placement) -> Iterator[Found]:
    """Find experts all of whose replicas are pinned to one part of which each must survive the loss."""
    kind, fabric = placement.survives, cluster.fabric
    if kind in {"none", "gpu"} or placement.replicas != "dp":  # on one GPU they meet, which is another mistake
        return
    nodes = fabric.nodes_per_leaf if kind == "leaf" and isinstance(fabric, FatTree | ThreeLevelTree) else 1
    part = nodes * cluster.gpus_per_node
    gpus: dict[tuple[int, int], dict[int, int]] = {}
    for index, pin in enumerate(placement.pinned):
        own = gpus.setdefault((pin.layer, pin.expert), {})
        own[pin.replica] = pin.gpu // part
        if len(own) == replicas and len(set(own.values())) == 1:
            found = f"all replicas of expert {pin.expert} on {kind} {pin.gpu // part} in layer {pin.layer}"
            yield ("placement", "pinned", index), found, f"several {_PLURAL[kind]} (placement.survives)"


def _enumerated(numbers: Sequence[int]) -> str:
    """Write a few numbers in words; of many, the last ones."""
    shown = [str(number) for number in numbers[-_SHOWN:]]
    more = f"{len(numbers) - len(shown)} others, " if len(numbers) > len(shown) else ""
    return f"{more}{', '.join(shown[:-1])} and {shown[-1]}"
