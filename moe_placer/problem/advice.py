"""Which single change of an instance would give it a placement: each is tried, none is guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from moe_placer.errors import InputError, NothingFoundError
from moe_placer.instance import Instance
from moe_placer.instance.schema import MAX_GPUS, MAX_NODES, RedundantSlots, SharedSlots
from moe_placer.instance.sizes import BYTES_PER_VALUE
from moe_placer.problem.capacity import why_infeasible
from moe_placer.problem.shortage import find_shortage, usable_slots, working_gpus

__all__ = ["Advice", "Change", "advise", "memory_binds"]

_GB_STEPS = 4096  # the most memory that is tried, in GB


@dataclass(frozen=True)
class Change:
    """A change of one field (of two where one asks for the other).

    Attributes
    ----------
    fields : mapping
        Field to its new value, ``parallelism.expert_tp`` to 2.
    was : mapping
        The same fields to what they are now.
    """

    fields: dict[str, Any]
    was: dict[str, Any]

    def __str__(self) -> str:
        told = [f"{field}: {_shown(value)} (now {_shown(self.was[field])})" for field, value in self.fields.items()]
        return " with ".join(told)


@dataclass(frozen=True)
class Advice:
    """Changes that suffice, and changes that were tried and do not.

    Attributes
    ----------
    changes : tuple of Change
        The smallest change of each field that suffices alone.
    in_vain : tuple of Change
        The largest that was tried of each other field; it does not suffice.
    """

    changes: tuple[Change, ...]
    in_vain: tuple[Change, ...]

    def __str__(self) -> str:
        if not self.changes:
            return f"Tried one change at a time, and none is enough: {'; '.join(map(str, self.in_vain))}."
        told = f"Tried one change at a time; each of these is enough: {'; '.join(map(str, self.changes))}."
        return told + (f" Not enough: {'; '.join(map(str, self.in_vain))}." if self.in_vain else "")


def memory_binds(instance: Instance) -> bool:
    """Whether some working GPU has memory for fewer replicas than its slots over all layers."""
    most = instance.placement.slots_per_gpu * len(instance.moe_layers)
    return bool((usable_slots(instance)[working_gpus(instance)] < most).any())


def advise(instance: Instance) -> Advice | None:
    """Find which single changes give an infeasible instance a placement, or a feasible one memory that does not bind.

    Every change is made and counted anew, as the instance itself is; the smallest of a field that suffices is named.
    None where nothing is to be advised: there is a placement, and memory does not bind.
    """
    if why_infeasible(instance) is not None:
        return _advice(instance, lambda changed: find_shortage(changed) is None, _has_placement)
    if memory_binds(instance):
        return _advice(
            instance, lambda changed: not memory_binds(changed) and find_shortage(changed) is None, _has_placement
        )
    return None


Goal = Callable[[Instance], bool]


def _has_placement(instance: Instance) -> bool:
    try:
        return why_infeasible(instance) is None
    except NothingFoundError:  # not decided in a minute
        return False


def _advice(instance: Instance, quick: Goal, whole: Goal) -> Advice:
    changes, in_vain = [], []
    for candidates in _candidates(instance):
        found, last = _first(instance, candidates, quick, whole)
        if found is not None:
            changes.append(found)
        elif last is not None:
            in_vain.append(last)
    return Advice(tuple(changes), tuple(in_vain))


def _first(
    instance: Instance, candidates: Iterable[dict[str, Any]], quick: Goal, whole: Goal
) -> tuple[Change | None, Change | None]:
    """Return the first change that suffices, and the last tried; ``whole`` confirms what ``quick`` counts."""
    last = None
    for fields in candidates:
        changed = _changed(instance, fields)
        if changed is None:
            continue
        last = Change(fields, {field: _value(instance, field) for field in fields})
        if quick(changed) and whole(changed):
            return last, last
    return None, last


def _changed(instance: Instance, fields: dict[str, Any]) -> Instance | None:
    """Return the instance with some fields changed; None where they contradict others."""
    content = instance.model_dump()
    for field, value in fields.items():
        *path, name = field.split(".")
        section = content
        for part in path:
            section = section[part]
        section[name] = value
    try:
        return Instance.model_validate(content)
    except InputError:
        return None


def _value(instance: Instance, field: str) -> Any:
    value: Any = instance
    for part in field.split("."):
        value = getattr(value, part)
    return value


def _candidates(instance: Instance) -> Iterator[Iterator[dict[str, Any]]]:
    """Yield the changes of each field, the smallest first."""
    parallelism, placement, cluster = instance.parallelism, instance.placement, instance.cluster
    yield _expert_tp(instance)
    yield ({"parallelism.attention_tp": n} for n in _doubled(parallelism.attention_tp, instance.gpus))
    narrower = sorted(BYTES_PER_VALUE.items(), key=lambda item: -item[1])
    now = BYTES_PER_VALUE[instance.model.dtype]
    yield ({"model.dtype": name} for name, size in narrower if size < now)
    if placement.replicas == "dp":
        yield ({"parallelism.dp": n} for n in range(parallelism.dp - 1, 0, -1))
    elif isinstance(placement.replicas, RedundantSlots):
        yield _fewer("placement.replicas", "redundant_slots", placement.replicas.redundant_slots)
    yield ({"placement.slots_per_gpu": n} for n in range(placement.slots_per_gpu + 1, 4 * placement.slots_per_gpu + 1))
    if placement.kv_cache_gb:
        yield ({"placement.kv_cache_gb": placement.kv_cache_gb * part / 8} for part in range(7, -1, -1))
    if placement.replicas_apart == "node":
        yield iter([{"placement.replicas_apart": "gpu"}])
    yield _more_memory(instance)
    most = min(MAX_NODES, MAX_GPUS // cluster.gpus_per_node)
    if getattr(instance.traffic, "mix", None) is None:  # which has a row for every node
        yield ({"cluster.nodes": n} for n in _growing(cluster.nodes, most, _node_step(instance)))


def _expert_tp(instance: Instance) -> Iterator[dict[str, Any]]:
    """Yield more GPUs for an expert; where their slots are too few, with as many times the slots."""
    now, slots = instance.parallelism.expert_tp, instance.placement.slots_per_gpu
    for shards in range(now + 1, instance.cluster.gpus_per_node + 1):
        if instance.cluster.gpus_per_node % shards == 0:
            yield {"parallelism.expert_tp": shards}
            yield {"parallelism.expert_tp": shards, "placement.slots_per_gpu": -(-slots * shards // now)}


def _fewer(section: str, field: str, now: int) -> Iterator[dict[str, Any]]:
    for n in _falling(now):
        yield {section: {field: n}}


def _falling(now: int) -> Iterator[int]:
    """Yield smaller numbers, in steps of an eighth."""
    step = max(1, now // 8)
    yield from range(now - step, 0, -step)
    if now:
        yield 0


def _more_memory(instance: Instance) -> Iterator[dict[str, Any]]:
    """Yield more memory, in whole GB, on GPUs that are all alike."""
    if instance.cluster.gpu_memory_gb:
        return
    gb = int(instance.cluster.gpu.memory_gb)
    step = max(1, gb // 16)
    for size in range(gb + step, min(_GB_STEPS, 8 * gb + step) + 1, step):
        yield {"cluster.gpu.memory_gb": float(size)}


def _doubled(now: int, most: int) -> Iterator[int]:
    size = 1
    while size <= most:
        if size > now:
            yield size
        size *= 2


def _node_step(instance: Instance) -> int:
    """Nodes that are added together, so that DP groups stay even and leaves full."""
    step = instance.parallelism.dp if instance.placement.replica_routing == "group" else 1
    leaf = instance.nodes_per_leaf or 1
    return max(step, leaf if leaf % step == 0 else step)


def _growing(now: int, most: int, step: int) -> Iterator[int]:
    """Yield larger numbers: every step up to twice as much, then doublings."""
    for n in range(now + step, min(2 * now, most) + 1, step):
        yield n
    n = 4 * now
    while n <= min(most, 64 * now):
        yield n
        n *= 2


def _shown(value: Any) -> str:
    if isinstance(value, RedundantSlots | SharedSlots):
        value = value.model_dump()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {one}" for key, one in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)
