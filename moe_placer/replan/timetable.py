"""Transfers in time: as batches, or one by one as soon as ends, links and the memory of the target are free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from moe_placer.errors import NothingFoundError
from moe_placer.replan.batches import Batch, batches_of, least_us
from moe_placer.replan.transfers import Held, Transfer, Wires

__all__ = ["Drop", "Timed", "Timetable", "fits", "in_time"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_CLOSE = 1.03  # times the bound: good enough
_REORDERED = 100  # orders of the batches that are tried where memory does not hold
_ATTEMPTS = 400  # orders tried, times transfers
_SHAKE = 0.5
_SLOWEST = (1.0, 0.5, 0.25)  # share of its full speed at which a transfer still starts beside others on a link
_MOST = 600  # transfers up to which starting them one by one is tried where batches are not close to the bound
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Timed:
    """A transfer and when it runs, in microseconds."""

    transfer: Transfer
    start: float
    end: float


@dataclass(frozen=True)
class Drop:
    """A GPU may forget a replica from this moment on."""

    row: int
    expert: int
    gpu: int
    at: float


@dataclass(frozen=True)
class Timetable:
    """When every transfer runs, when replicas are dropped, and what no order of these transfers is faster than."""

    timed: tuple[Timed, ...]
    drops: tuple[Drop, ...]
    us: float
    bound_us: float


def in_time(wires: Wires, transfers: Sequence[Transfer], now: Held, then: Held, room: Ints) -> Timetable:
    """Give transfers times, so that memory holds and every expert has a replica at every moment.

    Parameters
    ----------
    wires : Wires
    transfers : sequence of Transfer
    now, then : set of (MoE layer, expert, GPU)
        What GPUs hold before and after.
    room : int array [GPUs]
        Experts that the memory of each GPU takes.

    Raises
    ------
    NothingFoundError
        No GPU has memory for one more expert, and without that nothing can begin.
    """
    bound = least_us(wires, transfers)
    tables = []
    rng = np.random.default_rng(0)
    table = _in_batches(wires, transfers, now, then, room, rng)
    if fits(table, now, room):
        tables.append(table)
        if table.us <= _CLOSE * bound or len(transfers) > _MOST:
            return table
    order = [timed.transfer for timed in sorted(table.timed, key=lambda timed: timed.start)]
    attempts = 2 + _ATTEMPTS // len(transfers)
    for early in (False, True):
        for attempt in range(attempts):
            priorities = order if attempt == 0 else _longest_first(wires, transfers, rng, attempt > 1)
            slowest = _SLOWEST[attempt % len(_SLOWEST)]
            found = _OneByOne(wires, priorities, now, then, room, early, slowest).run()
            if found is not None:
                tables.append(found)
            if tables and min(one.us for one in tables) <= _CLOSE * bound:
                break
        if tables:
            break
    if not tables:
        found = _OneByOne(wires, order, now, then, room, early=True, detours=True).run()
        assert found is not None
        return found
    return min(tables, key=lambda one: one.us)


def fits(table: Timetable, now: Held, room: Ints) -> bool:
    """Whether memory holds at every moment: what comes counts from its start, what goes until it is dropped."""
    held = np.bincount([gpu for _, _, gpu in now], minlength=len(room))
    events = [(timed.start, 1, timed.transfer.target) for timed in table.timed]
    events += [(drop.at, 0, drop.gpu) for drop in table.drops]
    for _, comes, gpu in sorted(events):  # at the same moment, first what goes
        held[gpu] += 1 if comes else -1
        if comes and held[gpu] > room[gpu]:
            return False
    return True


def _in_batches(
    wires: Wires, transfers: Sequence[Transfer], now: Held, then: Held, room: Ints, rng: np.random.Generator
) -> Timetable:
    """Order batches so that memory holds, if a few random orders have such a one: which comes first is free."""
    tracks = batches_of(wires, transfers)
    table = _as_batches(wires, transfers, now, then, tracks)
    for _ in range(_REORDERED):
        if fits(table, now, room):
            break
        shaken = [[own[i] for i in rng.permutation(len(own))] for own in tracks]
        table = _as_batches(wires, transfers, now, then, shaken)
    return table


def _as_batches(
    wires: Wires, transfers: Sequence[Transfer], now: Held, then: Held, tracks: Sequence[Sequence[Batch]]
) -> Timetable:
    """Run batches one after the other, those inside nodes beside those over the network."""
    timed, longest = [], 0.0
    for batches in tracks:
        at = 0.0
        for batch in batches:
            timed += [Timed(transfer, at, at + batch.us) for transfer in batch.transfers]
            at += batch.us
        longest = max(longest, at)
    return Timetable(tuple(timed), _drops(timed, now, then), longest, least_us(wires, transfers))


def _drops(timed: Sequence[Timed], now: Held, then: Held) -> tuple[Drop, ...]:
    """Drop what the plan does not have once all transfers of its expert are done."""
    done: dict[tuple[int, int], float] = {}
    for one in timed:
        key = (one.transfer.row, one.transfer.expert)
        done[key] = max(done.get(key, 0.0), one.end)
    goes = (now | {(t.transfer.row, t.transfer.expert, t.transfer.target) for t in timed}) - then
    return tuple(Drop(row, expert, gpu, done.get((row, expert), 0.0)) for row, expert, gpu in sorted(goes))


def _longest_first(
    wires: Wires, transfers: Sequence[Transfer], rng: np.random.Generator, shaken: bool
) -> list[Transfer]:
    """Order transfers by what is asked of the busiest of their ends and links, shaken at random on request."""
    sends = np.bincount([t.source for t in transfers])
    takes = np.bincount([t.target for t in transfers])
    pairs = np.array([wires.between(t) for t in transfers])
    use = wires.share[pairs[:, 0], pairs[:, 1]]
    links = np.where(use > 0, use.sum(axis=0), 0.0).max(axis=1, initial=0.0)
    asked = [max(float(sends[t.source]), float(takes[t.target]), float(links[i])) for i, t in enumerate(transfers)]
    weighed = np.array(asked) * (rng.uniform(1 - _SHAKE, 1 + _SHAKE, len(asked)) if shaken else 1.0)
    return [transfers[i] for i in np.argsort(-weighed, kind="stable")]


@dataclass
class _OneByOne:
    """Start every transfer as soon as it can, in the order of their priorities (parallel list scheduling).

    ``early`` drops a replica as soon as another is there and nobody needs it as a source; ``detours`` sends a replica
    that blocks a full GPU through one that has memory.
    """

    wires: Wires
    pending: list[Transfer]
    now: Held
    then: Held
    room: Ints
    early: bool
    slowest: float = 1.0
    detours: bool = False
    at: float = 0.0
    running: list[Timed] = field(default_factory=list)
    timed: list[Timed] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)

    def run(self) -> Timetable | None:
        """Return the timetable, or None where it gets stuck for want of memory."""
        self.pending, self.holds = list(self.pending), set(self.now)
        self.used = np.bincount([gpu for _, _, gpu in self.now], minlength=len(self.room))
        while True:
            self._drop()
            self._start()
            if not self.running:
                if not self.pending:
                    break
                if not self.detours:
                    return None
                self._detour()
                continue
            first = min(one.end for one in self.running)
            done = [one for one in self.running if one.end <= first * (1 + _ROUNDING)]
            self.at = max(one.end for one in done)
            for one in done:
                self.running.remove(one)
                self.holds.add((one.transfer.row, one.transfer.expert, one.transfer.target))
        transfers = [one.transfer for one in self.timed]
        return Timetable(tuple(self.timed), tuple(self.drops), self.at, least_us(self.wires, transfers))

    def _start(self) -> None:
        """Start what can start."""
        wires = self.wires
        busy = {(near, True, t.source) for near, t in map(self._near, self.running)}
        busy |= {(near, False, t.target) for near, t in map(self._near, self.running)}
        load = np.zeros(len(wires.links))
        for one in self.running:
            load += self._share(one.transfer) * self._us(one.transfer) / (one.end - one.start)
        left = []
        for transfer in self.pending:
            near = _is_near(wires, transfer)
            ends = {(near, True, transfer.source), (near, False, transfer.target)}
            can = not (ends & busy) and self.used[transfer.target] < self.room[transfer.target]
            can = can and (transfer.row, transfer.expert, transfer.source) in self.holds
            share = self._share(transfer)
            used = share > 0
            speed = min(1.0, float(((1 - load[used]) / share[used]).min(initial=1.0)))  # what the links have left
            if not can or speed < self.slowest * (1 - _ROUNDING):
                left.append(transfer)
                continue
            busy |= ends
            load += share * speed
            self.used[transfer.target] += 1
            one = Timed(transfer, self.at, self.at + self._us(transfer) / speed)
            self.running.append(one)
            self.timed.append(one)
        self.pending = left

    def _near(self, one: Timed) -> tuple[bool, Transfer]:
        return _is_near(self.wires, one.transfer), one.transfer

    def _us(self, transfer: Transfer) -> float:
        if _is_near(self.wires, transfer):
            return self.wires.node_us
        return self.wires.network_us * max(1.0, float(self.wires.share[self.wires.between(transfer)].max(initial=0.0)))

    def _share(self, transfer: Transfer) -> Floats:
        """Share of each link's bandwidth that the transfer uses at its own full speed."""
        share = self.wires.share[self.wires.between(transfer)]
        return np.asarray(share / max(1.0, float(share.max(initial=0.0))))

    def _drop(self) -> None:
        """Drop what the plan does not have, and what nobody needs any more."""
        open_ = [*self.pending, *(one.transfer for one in self.running)]
        asked = {(t.row, t.expert) for t in open_}
        sources = {(t.row, t.expert, t.source) for t in open_}
        for row, expert, gpu in sorted(self.holds - self.then):
            if (row, expert, gpu) in sources or (not self.early and (row, expert) in asked):
                continue
            if sum((row, expert) == (r, e) for r, e, _ in self.holds) > 1:
                self.holds.discard((row, expert, gpu))
                self.used[gpu] -= 1
                self.drops.append(Drop(row, expert, gpu, self.at))

    def _detour(self) -> None:
        """Make room on a full GPU: what it has to give away goes through a GPU that has memory, the nearest."""
        free = np.flatnonzero(self.used < self.room).tolist()
        for blocked in self.pending:
            gpu = blocked.target
            if self.used[gpu] < self.room[gpu]:
                continue
            for row, expert, _ in sorted(one for one in self.holds - self.then if one[2] == gpu):
                spare = [g for g in free if (row, expert, g) not in self.holds]
                if not spare:
                    continue
                node = gpu // self.wires.gpus_per_node
                through = min(spare, key=lambda g: (self.wires.hops[node, g // self.wires.gpus_per_node], g))
                self.pending = [
                    replace(t, source=through) if (t.row, t.expert, t.source) == (row, expert, gpu) else t
                    for t in self.pending
                ]
                self.pending.insert(0, Transfer(row, expert, gpu, through))
                return
        raise NothingFoundError("the migration needs memory for one more expert on some GPU, and none has it")


def _is_near(wires: Wires, transfer: Transfer) -> bool:
    return wires.between(transfer)[0] == wires.between(transfer)[1]
