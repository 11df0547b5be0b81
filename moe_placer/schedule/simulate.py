"""Runs a step: operations start when their tensors are there and their streams are free, transfers share the links.

List scheduling (Graham, Bounds on multiprocessing timing anomalies, SIAM Journal on Applied Mathematics 17, 1969): no
stream is idle while something could run on it; what is earlier in the step goes first. Such a schedule can end later
although one operation got shorter; Graham's bound limits by how much, and measured steps move by well below 1%.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from moe_placer.errors import UsageError
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.schedule.coarse_network import CoarseNetwork, Sharing
from moe_placer.schedule.durations import Durations, find_durations
from moe_placer.schedule.network import Network
from moe_placer.schedule.program import Program, compile_program
from moe_placer.schedule.stages import stage_order
from moe_placer.schedule.timing import Timing, timing_of
from moe_placer.schedule.workload import Condition, Workload
from moe_placer.traffic.recording import Traffic

__all__ = ["Timeline", "simulate", "simulate_placement"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BETWEEN = 500  # operations that end between two reports of how many have


@dataclass(frozen=True, eq=False)
class Timeline:
    """When every task ran; task ``b * P + p`` is operation p in micro-batch b.

    Attributes
    ----------
    program : Program
    durations : Durations
    workload : Workload
    timing : Timing
    start, end : float array [T]
        µs; nan for tasks that are not there (what a step does once).
    cause : int array [T]
        The task whose end let each start: the last that it needed, or that left its streams; -1 for the first.
    network : Network
        After the step: ``carried`` has the bytes that each link carried, ``history`` when, if that was recorded.
    sharing : str
        How finely links were shared out over time.
    """

    program: Program
    durations: Durations
    workload: Workload
    timing: Timing
    start: Floats
    end: Floats
    cause: Ints
    network: Network
    sharing: Sharing = "fine"

    @property
    def makespan(self) -> float:
        """Latency of the step, µs."""
        return float(np.nanmax(self.end))

    def operation(self, task: int) -> int:
        """Return the operation of a task."""
        return task % len(self.program)

    def batch(self, task: int) -> int:
        """Return the micro-batch of a task."""
        return task // len(self.program)

    def name(self, task: int) -> str:
        """Return the operation's id, with its micro-batch as in the DAG of two micro-batches: ``L3.gate.g0.b1``."""
        name = self.program.names[self.operation(task)]
        return f"{name}.b{self.batch(task)}" if self.durations.batches > 1 and not self.is_once(task) else name

    def is_once(self, task: int) -> bool:
        """Whether a task is done once for all micro-batches."""
        return bool(self.durations.once[self.operation(task)])

    def tasks(self) -> Ints:
        """Return the tasks that ran, in order of their starts."""
        order = np.argsort(self.start, kind="stable")
        return np.asarray(order[: int(np.isfinite(self.start).sum())])

    def critical_path(self) -> list[int]:
        """Tasks from first to last, each started by the end of the one before: without gaps, as long as the step."""
        task = int(np.nanargmax(self.end))
        path = [task]
        while (task := int(self.cause[task])) >= 0:
            path.append(task)
        return path[::-1]


def simulate_placement(
    instance: Instance,
    placement: Placement,
    traffic: Traffic,
    workload: Workload | None = None,
    *,
    sharing: Sharing = "fine",
) -> Timeline:
    """Simulate one step of a placement as its instance describes the hardware.

    Parameters
    ----------
    instance : Instance
    placement : Placement
    traffic : Traffic
        Routing statistics of the instance's sources.
    workload : Workload or None
        Tokens per GPU, contexts and micro-batches of the step; None: a prefill of the instance's own tokens.
    sharing : str
        How finely links are shared out over time (`moe_placer.schedule.coarse_network.Sharing`).
    """
    return simulate(compile_program(instance, placement, traffic), workload or Workload(), sharing=sharing)


def simulate(
    program: Program,
    workload: Workload,
    timing: Timing | None = None,
    condition: Condition | None = None,
    *,
    record: bool = False,
    sharing: Sharing = "fine",
    tell: Callable[[float], None] | None = None,
) -> Timeline:
    """Simulate one step of a program.

    Parameters
    ----------
    program : Program
        The step as arrays.
    workload : Workload
        Tokens per GPU, contexts and micro-batches of the step.
    timing : Timing or None
        Times of single operations; None: those of the instance.
    condition : Condition or None
        What is slow or has failed; None: nothing.
    record : bool
        Keep what every link carries over time, which traces and pictures show.
    sharing : str
        How finely links are shared out over time (`moe_placer.schedule.coarse_network.Sharing`).
    tell : callable, optional
        Is told now and then which share of the operations has ended.

    Raises
    ------
    UsageError, InputError
        What links carry over time is to be kept of coarse spans; ``condition`` names a GPU or a link that is not there.
    """
    timing, condition = timing or timing_of(program.instance, workload.phase), condition or Condition()
    durations = find_durations(program, workload, timing, condition)
    slowdown = timing.stretch(workload.micro_batches)
    instance, slow = program.instance, condition.slow_links
    if sharing == "coarse" and record:
        raise UsageError("coarse spans do not tell what links carry over time, expected sharing: fine or exact")
    if sharing == "coarse":
        network: Network = CoarseNetwork(instance, slow, slowdown=slowdown)
    elif sharing == "exact":
        network = Network(instance, slow, slowdown=slowdown, tolerance=0.0, record=record)
    else:
        network = Network(instance, slow, slowdown=slowdown, record=record)
    run = _Run(program, durations, network, timing.staged)
    run.whole_step(tell)
    start, end = np.array(run.start), np.array(run.end)
    return Timeline(program, durations, workload, timing, start, end, np.array(run.cause), network, sharing)


class _Run:
    """The state of one simulation; lists, since single numbers are what is looked at."""

    def __init__(self, program: Program, durations: Durations, network: Network, staged: bool) -> None:
        self.program, self.network, self.durations = program, network, durations
        self.next_batch, self.next_layer = stage_order(program) if staged and durations.batches > 1 else ({}, {})
        size, count = len(program), len(program) * durations.batches
        self.size, self.batches = size, durations.batches
        self.once = durations.once.tolist()
        linked = {*self.next_batch, *self.next_layer}
        self.within = [  # whether what waits for an operation is of its own micro-batch
            not (self.once[p] or p in linked or any(self.once[other] for other in after))
            for p, after in enumerate(program.after)
        ]
        self.overhead, self.busy, self.latency = (
            array.tolist() for array in (durations.overhead, durations.busy, durations.latency)
        )
        self.streams = [program.streams(p) for p in range(size)]
        self.turn = _turns(program)
        self.start, self.end, self.cause = [np.nan] * count, [np.nan] * count, [-1] * count
        self.needs = self._count_needs(count)
        self.taken: dict[int, int] = {}  # stream to its task
        self.waiting: dict[int, list[int]] = {}  # stream to tasks that found it taken
        self.events: list[tuple[float, int, bool]] = []  # time, task, whether it ends (else its transfer starts)
        self.transfers: dict[int, int] = {}  # of the network to task
        self.local_end: dict[int, float] = {}  # of a send, inside its node
        self.coming = np.inf  # when the next transfer ends, µs, where the network said so
        self.quiet = -np.inf  # else until when none does

    def _count_needs(self, count: int) -> list[int]:
        within = [p for p in range(self.size) if self.within[p]]
        waits = np.fromiter(chain.from_iterable(self.program.after[p] for p in within), dtype=np.int64)
        needs: list[int] = np.tile(np.bincount(waits, minlength=self.size), self.batches)[:count].tolist()
        for p in range(self.size):
            for batch in self._batches(p) if not self.within[p] else ():
                for after in self._after(p, batch):
                    needs[after] += 1
        return needs

    def _batches(self, operation: int) -> range:
        return range(1 if self.once[operation] else self.batches)

    def _after(self, operation: int, batch: int) -> Sequence[int]:
        """Tasks that wait for one: those of its micro-batch; what is done once waits for all, and all wait for it.

        In the order of stages, also some of the next micro-batch.
        """
        if self.within[operation]:
            first, after = batch * self.size, self.program.after[operation]
            return [first + p for p in after] if first else after
        size, tasks = self.size, []
        for p in self.program.after[operation]:
            if self.once[p]:
                tasks.append(p)
            elif self.once[operation]:
                tasks += [b * size + p for b in range(self.batches)]
            else:
                tasks.append(batch * size + p)
        if batch + 1 < self.batches:
            return tasks + [(batch + 1) * size + p for p in self.next_batch.get(operation, ())]
        return tasks + self.next_layer.get(operation, [])

    def whole_step(self, tell: Callable[[float], None] | None = None) -> None:
        size = self.size
        ready = [b * size + p for p in range(size) for b in self._batches(p) if not self.needs[b * size + p]]
        now, ended, told = 0.0, 0, 0
        while True:
            self._start_all(ready, now)
            moment = self._next_moment()
            if moment == np.inf:
                return
            now, ready = moment, []
            ended += self._end_all(now, ready)
            if tell is not None and ended >= told + _BETWEEN:
                told = ended
                tell(ended / len(self.start))

    def _order(self, task: int) -> tuple[int, int]:
        """Put first what is earlier in the step, the first micro-batch before the second."""
        batch, operation = divmod(task, self.size)
        return self.turn[operation] * self.batches + batch, task

    def _start_all(self, ready: list[int], now: float) -> None:
        """Start those of some tasks whose streams are free; the others wait."""
        if len(ready) > 1:
            ready.sort(key=self._order)
        taken, size = self.taken, self.size
        for task in ready:
            operation = task % size
            streams = self.streams[operation]
            for stream in streams:
                if stream in taken:
                    self.waiting.setdefault(stream, []).append(task)
                    break
            else:
                for stream in streams:
                    taken[stream] = task
                self.start[task] = now
                begun = now + self.overhead[operation]
                end = begun + self.busy[operation]
                if operation in self.program.sent:
                    self.local_end[task] = end
                    heapq.heappush(self.events, (begun, task, False))
                else:
                    heapq.heappush(self.events, (end, task, True))

    def _next_moment(self) -> float:
        """Return when something ends next, or a transfer starts; infinite after the last."""
        event = self.events[0][0] if self.events else np.inf
        if self.coming == np.inf and event > self.quiet:
            transfer = self.network.next_end(before=event)
            if transfer is None:
                self.quiet = event
            else:
                self.coming = transfer[0]
        return min(event, self.coming)

    def _end_all(self, now: float, ready: list[int]) -> int:
        """End what ends now, start transfers that start, and add to ``ready`` what may start; return how many ended."""
        if self.coming <= now:
            self._end_transfers(now)
        events, count = self.events, 0
        while events and events[0][0] <= now:
            _, task, ends = heapq.heappop(events)
            if ends:
                self._finish(task, now, ready)
                count += 1
            else:
                self._send(task, now)
        return count

    def _end_transfers(self, now: float) -> None:
        """Plan the ends of tasks whose transfers have ended."""
        self.coming, self.quiet = np.inf, -np.inf
        for transfer in self.network.advance(now):
            task = self.transfers.pop(transfer)
            end = max(now, self.local_end.pop(task)) + self.latency[task % self.size]
            heapq.heappush(self.events, (end, task, True))

    def _send(self, task: int, now: float) -> None:
        operation = task % self.size
        sent, ends = self.program.sent[operation] * self.durations.scale, self.program.ends.get(operation)
        self.transfers[self.network.send(now, int(self.program.home[operation]), sent, ends)] = task
        self.coming, self.quiet = np.inf, -np.inf  # it shares links with the others

    def _finish(self, task: int, now: float, ready: list[int]) -> None:
        """End a task: what needs it, and what waits for its streams, may start."""
        self.end[task] = now
        batch, operation = divmod(task, self.size)
        needs, cause, taken = self.needs, self.cause, self.taken
        for stream in self.streams[operation]:
            del taken[stream]
            if stream in self.waiting:
                for waiting in self.waiting.pop(stream):
                    cause[waiting] = task
                    ready.append(waiting)
        for after in self._after(operation, batch):
            needs[after] -= 1
            if not needs[after]:
                cause[after] = task
                ready.append(after)


def _turns(program: Program) -> list[int]:
    """When it is each operation's turn: in the order of the step, a GPU's experts of one layer together.

    Engines compute these in one grouped kernel per micro-batch, so that none waits for the other micro-batch's.
    """
    first: dict[tuple[int, tuple[int, ...]], int] = {}
    turns = list(range(len(program)))
    for p in np.flatnonzero(program.of_kinds(frozenset({"expert"}))).tolist():
        turns[p] = first.setdefault((int(program.layer[p]), program.gpus[p]), p)
    return turns
