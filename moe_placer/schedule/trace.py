"""Writes a timeline as Chrome trace events, which Perfetto and chrome://tracing open.

Format: Trace Event Format (Duca and Sinclair, Google, 2016). Times are in µs with three decimals, since readers keep
whole nanoseconds; an event ends no later than the next one on its thread begins, also after rounding, because readers
drop events that overlap without being nested.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.files import write_atomically
from moe_placer.schedule.explain import FORMULAS, formula_of, hardware_of
from moe_placer.schedule.program import COMPUTATION, SENDS, STREAMS
from moe_placer.schedule.simulate import Timeline

__all__ = ["chrome_trace", "write_chrome_trace"]

Floats = npt.NDArray[np.float64]

_PATH, _LINKS, _NODES = 1, 2, 3  # process ids: critical path, links, first node
_BINS = 2_000  # moments at which the utilization of links is stated
_LABELS = {"compute": "compute", "nvlink": "NVLink", "network": "network"}

Event = tuple[int, str]  # ns, JSON


def write_chrome_trace(timeline: Timeline, path: Path) -> None:
    """Write a timeline's trace; a name that ends in ``.gz`` is compressed, which Perfetto reads too.

    Raises
    ------
    InputError
        The place cannot be written to.
    ValueError
        As `chrome_trace`.
    """
    text = chrome_trace(timeline).encode()
    # No time stamp: the same step gives the same bytes.
    write_atomically(path, gzip.compress(text, compresslevel=6, mtime=0) if path.suffix == ".gz" else text)


def chrome_trace(timeline: Timeline) -> str:
    """Return a timeline as JSON, one event a line, in order of time.

    Processes are the critical path, the inter-node links (their mean utilization in each 2,000th of the step, as
    counters in percent), and the nodes; threads are the streams of the node's GPUs. An operation of several GPUs is on
    each of them, and tells everything about itself on the first.

    Raises
    ------
    ValueError
        What the links carried was not recorded.
    """
    events = [*_operations(timeline), *_critical_path(timeline), *_counters(timeline)]
    events.sort(key=lambda event: event[0])
    lines = [_json(row) for row in _names(timeline)] + [text for _, text in events]
    facts = _json(
        {
            "instance": timeline.program.instance.name,
            **vars(timeline.workload),
            "formulas": dict(FORMULAS),
            "parameters": vars(timeline.timing),
            "hardware": hardware_of(timeline.program.instance),
        }
    )
    return f'{{"displayTimeUnit":"ms","otherData":{facts},"traceEvents":[\n' + ",\n".join(lines) + "\n]}\n"


def _json(row: Any) -> str:
    return json.dumps(row, separators=(",", ":"))


def _names(timeline: Timeline) -> Iterator[dict[str, Any]]:
    """Name and sort processes and threads."""
    instance = timeline.program.instance
    per_node = instance.cluster.gpus_per_node
    processes = {_PATH: "critical path", _LINKS: "inter-node links"}
    processes |= {_NODES + node: f"node {node}" for node in range(instance.cluster.nodes)}
    for pid, name in processes.items():
        yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
        yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}
    threads = {(_PATH, 0): "critical path"}
    for gpu in range(instance.gpus):
        for index, stream in enumerate(STREAMS):
            threads[_NODES + gpu // per_node, gpu * len(STREAMS) + index] = f"GPU {gpu} {_LABELS[stream]}"
    for (pid, tid), name in threads.items():
        yield {"ph": "M", "pid": pid, "tid": tid + 1, "name": "thread_name", "args": {"name": name}}
        yield {"ph": "M", "pid": pid, "tid": tid + 1, "name": "thread_sort_index", "args": {"sort_index": tid}}


def _operations(timeline: Timeline) -> Iterator[Event]:
    per_node = timeline.program.instance.cluster.gpus_per_node
    for task in timeline.tasks().tolist():
        streams = timeline.program.streams(timeline.operation(task))
        places = [(_NODES + stream // len(STREAMS) // per_node, stream + 1) for stream in streams]
        yield from _complete(timeline, task, places)


def _critical_path(timeline: Timeline) -> Iterator[Event]:
    for task in timeline.critical_path():
        yield from _complete(timeline, task, [(_PATH, 1)])


def _complete(timeline: Timeline, task: int, places: Iterable[tuple[int, int]]) -> Iterator[Event]:
    """Yield complete events of a task, at each process and thread; what takes no time has none."""
    begin, end = (round(1e3 * float(array[task])) for array in (timeline.start, timeline.end))
    if begin == end:
        return
    name, kind = _json(timeline.name(task)), timeline.program.kinds[timeline.operation(task)]
    args = _json(_arguments(timeline, task))
    for pid, tid in places:
        yield (
            begin,
            f'{{"ph":"X","pid":{pid},"tid":{tid},"ts":{begin / 1e3:.3f},"dur":{(end - begin) / 1e3:.3f},'
            f'"name":{name},"cat":"{kind}","args":{args}}}',
        )
        args = "{}"


def _arguments(timeline: Timeline, task: int) -> dict[str, Any]:
    """Return what a reader who clicks on an operation is told; FLOPs and bytes read are on each of its GPUs."""
    program, durations, p = timeline.program, timeline.durations, timeline.operation(task)
    kind, scale = program.kinds[p], float(durations.share[p])
    told: dict[str, Any] = {"operation": program.names[p], "kind": kind, "formula": formula_of(kind)}
    if program.layer[p] >= 0:
        told["layer"] = int(program.layer[p])
    if not timeline.is_once(task):
        told["micro_batch"] = timeline.batch(task)
    told["gpus"] = len(program.gpus[p])
    if program.experts[p]:
        told["experts"] = [f"{expert} (replica {replica})" for expert, replica in program.experts[p]]
    told["tokens"] = _digits(program.tokens[p] * scale)
    if kind in COMPUTATION:
        told["flops"], told["bytes_read"] = _digits(durations.flops[p]), _digits(durations.read[p])
    else:
        told["nvlink_bytes"] = _digits(program.nvlink[p] * scale)
        network = program.sent[p].sum() if kind in SENDS else program.network[p]
        told["network_bytes"] = _digits(network * scale)
    told["overhead_us"] = _digits(durations.overhead[p] + durations.latency[p])
    return told


def _digits(value: float) -> float:
    """Six digits: what a reader can use, and short files."""
    near = float(f"{value:.6g}")
    return int(near) if near.is_integer() else near


def _counters(timeline: Timeline) -> Iterator[Event]:
    """Yield each link's mean utilization, in whole percent, where it changes."""
    network = timeline.network
    if network.history is None:
        raise ValueError("what the links carried over time was not recorded")
    edges = np.linspace(0.0, timeline.makespan, _BINS + 1)
    percent = np.rint(100 * network.history.utilization(network.capacity, edges)).astype(int)
    changes = np.diff(percent, axis=1, prepend=-1) != 0  # what comes first is always stated
    begins = np.rint(1e3 * edges).astype(int).tolist()
    for k, name in enumerate(map(_json, network.links)):
        for column in np.flatnonzero(changes[k]).tolist():
            ts, args = begins[column], f'{{"%":{percent[k, column]}}}'
            yield ts, f'{{"ph":"C","pid":{_LINKS},"tid":0,"ts":{ts / 1e3:.3f},"name":{name},"args":{args}}}'
