"""From one placement to another as a migration: transfers in time, what they carry and need, and when it pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe_placer.errors import NothingFoundError
from moe_placer.fabric import link_bandwidths
from moe_placer.instance import Instance
from moe_placer.instance.sizes import expert_bytes, gpu_memory_bytes, memory_parts
from moe_placer.placement import Placement
from moe_placer.replan.timetable import Drop, Timed, in_time
from moe_placer.replan.transfers import Held, Transfer, Wires, choose_sources, held_by, read_wires
from moe_placer.traffic import Traffic
from moe_placer.verifier.serving import serving_loss_us, step_gain_us
from moe_placer.verifier.transfer_file import SCHEMA, DropRecord, ReloadRecord, TransferRecord, Transfers

__all__ = ["Migration", "count_serving", "migrate"]

Ints = npt.NDArray[np.int64]
_InTime = tuple[
    list[Timed], list[Drop], tuple[float, float], dict[int, float]
]  # with duration, bound, layers' durations

_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Migration:
    """Transfers in time.

    Attributes
    ----------
    timed : tuple of Timed
    drops : tuple of Drop
    us, bound_us : float
        How long they take, and what no order of these transfers is faster than.
    layer_us : dict
        MoE layer, counted among MoE layers, to how long its transfers take; where layers come one after the other.
    extra : dict
        GPU to the experts that it holds at most, beyond what it holds before and after.
    link_bytes : dict
        Bytes on each link between nodes that carries any.
    lost : tuple of int
        GPUs that hold nothing any more when it begins.
    reloads : tuple of (MoE layer, expert, GPU)
        What no GPU has any more, and is read from where the model is stored, before everything else.
    """

    timed: tuple[Timed, ...]
    drops: tuple[Drop, ...]
    us: float
    bound_us: float
    layer_us: dict[int, float]
    extra: dict[int, int]
    link_bytes: dict[str, float]
    lost: tuple[int, ...] = ()
    reloads: tuple[tuple[int, int, int], ...] = ()

    @property
    def longest_layer_us(self) -> float:
        """How long the layer with the longest transfers takes."""
        return max(self.layer_us.values(), default=0.0)

    def to_file(
        self,
        instance: Instance,
        current: Placement,
        placement: Placement,
        gain_us: float | None = None,
        slow: Mapping[int, float] | None = None,
    ) -> Transfers:
        """Return what the file of transfers says.

        Parameters
        ----------
        instance : Instance
        current, placement : Placement
            Before and after.
        gain_us : float, optional
            Microseconds that a step gains.
        slow : mapping, optional
            GPU to how many times as long it takes to compute.
        """
        layers = instance.moe_layers
        gains = gain_us is not None and gain_us > 0
        return Transfers(
            schema=SCHEMA,
            current_sha256=current.gpu_sha256,
            placement_sha256=placement.gpu_sha256,
            expert_bytes=expert_bytes(instance),
            us=self.us,
            bound_us=self.bound_us * (1 - _ROUNDING),
            by_layer=bool(self.layer_us),
            longest_layer_us=self.longest_layer_us if self.layer_us else None,
            link_bytes=self.link_bytes,
            extra_experts={str(gpu): count for gpu, count in self.extra.items()},
            lost_gpus=self.lost,
            reloads=tuple(ReloadRecord(layer=layers[row], expert=e, gpu=gpu) for row, e, gpu in self.reloads),
            slow_gpus={str(gpu): factor for gpu, factor in sorted((slow or {}).items())},
            gain_us=gain_us if gains else None,
            break_even_paused_steps=float(np.ceil(self.us / gain_us)) if gains and gain_us else None,
            transfers=tuple(
                TransferRecord(
                    layer=layers[one.transfer.row],
                    expert=one.transfer.expert,
                    source=one.transfer.source,
                    target=one.transfer.target,
                    start_us=one.start,
                    end_us=one.end,
                )
                for one in sorted(self.timed, key=lambda one: (one.start, one.transfer.row, one.transfer.target))
            ),
            drops=tuple(
                DropRecord(layer=layers[drop.row], expert=drop.expert, gpu=drop.gpu, at_us=drop.at)
                for drop in sorted(self.drops, key=lambda drop: (drop.at, drop.row, drop.gpu))
            ),
        )


def count_serving(
    instance: Instance, traffic: Traffic, current: Placement, placement: Placement, transfers: Transfers
) -> Transfers:
    """Return transfers with what they take from serving, and the steps after which that is won back.

    A step's gain is counted anew, at links' real bandwidths, where the current placement can run.

    Parameters
    ----------
    instance : Instance
    traffic : Traffic
        Of the steps that go on meanwhile.
    current, placement : Placement
        Before and after.
    transfers : Transfers
    """
    slow = {int(gpu): factor for gpu, factor in transfers.slow_gpus.items()}
    loss = serving_loss_us(instance, traffic, current, placement, transfers.transfers, slow)
    counted = step_gain_us(instance, traffic, current, placement, slow)
    gain = transfers.gain_us if counted is None else counted
    found: dict[str, float | None] = {"serving_loss_us": loss, "gain_us": None}
    found |= {"break_even_steps": None, "break_even_paused_steps": None}
    if gain is not None and gain > 0:
        steps = {"break_even_steps": loss, "break_even_paused_steps": transfers.us}
        found |= {"gain_us": gain} | {name: float(np.ceil(us / gain)) for name, us in steps.items()}
    return transfers.model_copy(update=found)


def migrate(
    instance: Instance,
    current: Placement,
    placement: Placement,
    by_layer: bool = False,
    lost: frozenset[int] = frozenset(),
) -> Migration:
    """Plan the transfers from one placement to another.

    Parameters
    ----------
    instance : Instance
    current, placement : Placement
        Valid placements of the instance, but for GPUs of the current one that are out of service.
    by_layer : bool
        Whether layers come one after the other instead of all at once.
    lost : frozenset of int
        GPUs of the current placement that hold nothing any more.

    Raises
    ------
    NothingFoundError
        No GPU has memory for one more expert, and without that nothing can begin.
    """
    wires, then, room = read_wires(instance), held_by(placement), _room(instance)
    live = {one for one in held_by(current) if one[2] not in lost}
    reloads, early = _reload(live, then, room)
    now = (live | set(reloads)) - early
    transfers = choose_sources(wires, now, then)
    first = [Drop(*one, 0.0) for one in sorted(early)]
    plan = _layer_by_layer if by_layer else _all_at_once
    timed, drops, times, layer_us = plan(wires, transfers, now, then, room)
    found = _migration(wires, timed, [*first, *drops], times, layer_us, live, then, instance, reloads)
    return replace(found, lost=tuple(sorted(lost)), reloads=reloads)


def _reload(live: Held, then: Held, room: Ints) -> tuple[tuple[tuple[int, int, int], ...], Held]:
    """Choose where what no GPU has any more is read first, and what makes room for it at once.

    What makes room is no part of the plan, and has another replica.
    """
    there = {one[:2] for one in live}
    missing = sorted(one for one in then if one[:2] not in there)
    if not missing:
        return (), set()
    used = np.bincount([gpu for _, _, gpu in live], minlength=len(room))
    holders: dict[tuple[int, int], int] = {}
    for row, expert, _ in live:
        holders[row, expert] = holders.get((row, expert), 0) + 1
    targets: dict[tuple[int, int], list[int]] = {}
    for row, expert, gpu in missing:
        targets.setdefault((row, expert), []).append(gpu)
    reloads, early = [], set[tuple[int, int, int]]()
    for (row, expert), gpus in targets.items():
        gpu = max(gpus, key=lambda one: (min(1, int(room[one] - used[one])), -one))
        if used[gpu] >= room[gpu]:
            goes = sorted(one for one in live - then - early if one[2] == gpu and holders[one[:2]] > 1)
            if not goes:
                raise NothingFoundError(f"GPU {gpu} has no memory for an expert that has to be read again")
            early.add(goes[0])
            holders[goes[0][:2]] -= 1
            used[gpu] -= 1
        used[gpu] += 1
        reloads.append((row, expert, gpu))
    return tuple(reloads), early


def _all_at_once(wires: Wires, transfers: Sequence[Transfer], now: Held, then: Held, room: Ints) -> _InTime:
    """Give transfers times, whatever their layers."""
    table = in_time(wires, transfers, now, then, room)
    return [*table.timed], [*table.drops], (table.us, table.bound_us), {}


def _layer_by_layer(wires: Wires, transfers: Sequence[Transfer], now: Held, then: Held, room: Ints) -> _InTime:
    """Give transfers times, the layers one after the other."""
    at = bound = 0.0
    timed: list[Timed] = []
    drops: list[Drop] = []
    layer_us, state = {}, set(now)
    for row in sorted({row for row, _, _ in now ^ then}):
        own = [transfer for transfer in transfers if transfer.row == row]
        after = {one for one in state if one[0] != row} | {one for one in then if one[0] == row}
        table = in_time(wires, own, state, after, room)
        timed += [Timed(one.transfer, at + one.start, at + one.end) for one in table.timed]
        drops += [Drop(drop.row, drop.expert, drop.gpu, at + drop.at) for drop in table.drops]
        at, bound, layer_us[row], state = at + table.us, bound + table.bound_us, table.us, after
    return timed, drops, (at, bound), layer_us


def _migration(
    wires: Wires,
    timed: Sequence[Timed],
    drops: Sequence[Drop],
    times: tuple[float, float],
    layer_us: dict[int, float],
    now: Held,
    then: Held,
    instance: Instance,
    reloads: Sequence[tuple[int, int, int]],
) -> Migration:
    size, own = expert_bytes(instance), instance.cluster.fabric.node_gb_per_s / instance.cluster.gpus_per_node
    carried = np.zeros(len(wires.links))
    for one in timed:
        carried += wires.share[wires.between(one.transfer)]
    carried *= size * link_bandwidths(instance, wires.links) / own
    links = {wires.links[k]: float(carried[k]) for k in np.flatnonzero(carried)}
    extra = _extra(timed, drops, now, then, reloads, _ROUNDING * times[0])
    return Migration(tuple(timed), tuple(drops), *times, layer_us, extra, links)


def _extra(
    timed: Sequence[Timed],
    drops: Sequence[Drop],
    now: Held,
    then: Held,
    reloads: Sequence[tuple[int, int, int]],
    same_us: float,
) -> dict[int, int]:
    """Count the experts that each GPU holds at most, beyond what it holds before and after.

    Of what happens at one moment, up to ``same_us`` microseconds of rounding, drops come first.
    """
    named = [gpu for _, _, gpu in now | then] + [one.transfer.target for one in timed]
    gpus = max(named, default=0) + 1
    before, after = (np.bincount([gpu for _, _, gpu in held], minlength=gpus) for held in (now, then))
    held, most = before.copy(), before.copy()
    events = [(one.start, 1, one.transfer.target) for one in timed] + [(drop.at, 0, drop.gpu) for drop in drops]
    events += [(0.0, 1, gpu) for _, _, gpu in reloads]
    ordered, first, moment = [], -np.inf, 0
    for at, comes, gpu in sorted(events):
        if at - first > same_us:
            first, moment = at, moment + 1
        ordered.append((moment, comes, gpu))
    for _, comes, gpu in sorted(ordered):
        held[gpu] += 1 if comes else -1
        most[gpu] = max(most[gpu], held[gpu])
    extra = most - np.maximum(before, after)
    return {int(gpu): int(extra[gpu]) for gpu in np.flatnonzero(extra > 0)}


def _room(instance: Instance) -> Ints:
    """Return the experts that the memory of each GPU takes beside what is resident; none on failed ones."""
    size, resident = expert_bytes(instance), memory_parts(instance).total
    free = np.array([gpu_memory_bytes(instance, gpu) - resident for gpu in range(instance.gpus)])
    room = np.floor(np.maximum(0.0, free) / size * (1 + _ROUNDING)).astype(np.int64)
    room[list(instance.placement.failed_gpus)] = 0
    return np.asarray(room)
