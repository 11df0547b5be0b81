"""Figures of a simulated step: latency, throughput, utilization, memory, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.instance.model_parts import attention_held, kv_shards, part_bytes
from moe_placer.instance.sizes import expert_bytes, gpu_memory_bytes, memory_parts
from moe_placer.schedule.durations import kv_bytes_per_token
from moe_placer.schedule.program import COMPUTATION, STREAMS
from moe_placer.schedule.simulate import Timeline
from moe_placer.schedule.workload import Phase

__all__ = ["SHARES", "Figures", "Memory", "find_figures", "plan_holds", "planned_shares"]

Floats = npt.NDArray[np.float64]

_US = 1e6  # µs in a second
SHARES = ("computation", "communication", "synchronization", "overhead")
_TOLERANCE = 0.05  # of a share, for what a plan expects to hold


@dataclass(frozen=True, eq=False)
class Memory:
    """Bytes on each GPU [GPUs] at the height of a step.

    Attributes
    ----------
    weights : float array
        Attention, dense layers, embeddings, and the experts placed there.
    kv_cache : float array
        Keys and values of every token that the step attends to, in all layers.
    kv_reserved : float array
        What ``placement.kv_cache_gb`` keeps free for these, used or not.
    activations : float array
        Hidden states, and the most that a part of the model has beside them, with all micro-batches at once.
    size : float array
        Of the GPU's memory.
    """

    weights: Floats
    kv_cache: Floats
    kv_reserved: Floats
    activations: Floats
    size: Floats

    @property
    def high_water(self) -> Floats:
        """All of it together; of the KV cache, what is used or what is reserved, whichever is more."""
        return self.weights + np.maximum(self.kv_cache, self.kv_reserved) + self.activations

    @property
    def fits(self) -> bool:
        """Whether every GPU's memory holds it."""
        return bool((self.high_water <= self.size).all())


@dataclass(frozen=True, eq=False)
class Figures:
    """The figures of one step.

    Attributes
    ----------
    latency_us : float
        Of the step.
    layer_us : float array [layers]
        From the end of one layer to the end of the next.
    tokens : float
        Of all GPUs in one step.
    tokens_per_s, tokens_per_s_per_gpu : float
    mfu : float
        FLOPs of the step over what all GPUs could do meanwhile, at their peak.
    link_utilization : float array [K]
        Bytes that each link carried over what it can carry in the time of the step, at ``link_utilization``.
    links : tuple of str
    communication_us : float
        Sum over layers and micro-batches of the time in which some dispatch or combine was on its way.
    shares : mapping
        Of the time of a mean GPU that works: ``computation``, then ``communication`` that no computation hides, then
        ``overhead`` of starting what runs, and ``synchronization``, waiting for others; they sum to 1.
    path_us : mapping
        Kind of operation to its time on the critical path; sums to ``latency_us``.
    memory : Memory
    """

    latency_us: float
    layer_us: Floats
    tokens: float
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    mfu: float
    link_utilization: Floats
    links: tuple[str, ...]
    communication_us: float
    shares: Mapping[str, float]
    path_us: Mapping[str, float]
    memory: Memory

    @property
    def busiest_link(self) -> str:
        """The link that carries most of what it can; empty where there is none."""
        return self.links[int(self.link_utilization.argmax())] if self.link_utilization.any() else ""


def find_figures(timeline: Timeline) -> Figures:
    """Compute the figures of a simulated step."""
    program, durations, latency = timeline.program, timeline.durations, timeline.makespan
    instance, gpu = program.instance, program.instance.cluster.gpu
    gpus = instance.gpus
    tokens = gpus * timeline.workload.batch(instance)
    flops = float((durations.times * durations.flops * [len(on) for on in program.gpus]).sum())
    capacity = timeline.network.capacity
    return Figures(
        latency_us=latency,
        layer_us=_layer_us(timeline),
        tokens=tokens,
        tokens_per_s=tokens / latency * _US,
        tokens_per_s_per_gpu=tokens / latency * _US / gpus,
        mfu=flops / (gpus * gpu.peak_tflops * 1e12 * latency / _US),
        link_utilization=timeline.network.carried / (capacity * latency),
        links=timeline.network.links,
        communication_us=_communication_us(timeline),
        shares=_shares(timeline),
        path_us=_path_us(timeline),
        memory=_memory(timeline),
    )


def planned_shares(instance: Instance) -> dict[str, float] | None:
    """Return where the instance's deployment plan says that time goes, in the order of `SHARES`; None if nowhere."""
    planned = instance.schedule.planned_shares
    return None if planned is None else {name: float(getattr(planned, name)) for name in SHARES}


def plan_holds(shares: Mapping[str, float], planned: Mapping[str, float]) -> bool:
    """Whether every share is within 5 percentage points of what the deployment plan expects."""
    return all(abs(shares[name] - share) <= _TOLERANCE for name, share in planned.items())


def _layer_us(timeline: Timeline) -> Floats:
    layers = timeline.program.instance.model.layers
    layer = np.tile(timeline.program.layer, timeline.durations.batches)
    ends = np.zeros(layers + 1)
    inside = (layer >= 0) & np.isfinite(timeline.end)
    np.maximum.at(ends, layer[inside] + 1, timeline.end[inside])
    before = np.isfinite(timeline.end) & (layer < 0)
    # What comes before the first layer: embedding, and what leads to it.
    first = float(timeline.start[inside].min()) if inside.any() else 0.0
    ends[0] = max((end for end in timeline.end[before].tolist() if end <= first), default=0.0)
    return np.diff(np.maximum.accumulate(ends))


def _communication_us(timeline: Timeline) -> float:
    """Time during which dispatch or combine is on its way, layer by layer and micro-batch by micro-batch."""
    spans: dict[tuple[int, int, str], list[float]] = {}
    size = len(timeline.program)
    for p in timeline.program.sent:
        for b in range(timeline.durations.batches):
            begin, end = float(timeline.start[b * size + p]), float(timeline.end[b * size + p])
            key = (b, int(timeline.program.layer[p]), timeline.program.kinds[p])
            span = spans.setdefault(key, [begin, end])
            span[0], span[1] = min(span[0], begin), max(span[1], end)
    return sum(end - begin for begin, end in spans.values())


def _shares(timeline: Timeline) -> dict[str, float]:
    """Divide the time of every GPU that works: what hides something else counts first."""
    latency, total, working = timeline.makespan, np.zeros(3), 0
    for table in _busy(timeline):
        if len(table):
            working += 1
            total += [_covered(table[table[:, 2] <= kind]) for kind in range(3)]
    computing, moving, starting = total / (working * latency)
    parts = (computing, moving - computing, 1 - starting, starting - moving)
    return {name: max(0.0, float(part)) for name, part in zip(SHARES, parts, strict=True)}


def _busy(timeline: Timeline) -> list[Floats]:
    """Return when each GPU does what: begin, end, and 0 for computing, 1 for moving, 2 for starting either [spans, 3].

    They are in the order of the tasks' starts, what a task does before its start.
    """
    program, tasks = timeline.program, timeline.tasks()
    streams = [program.streams(p) for p in range(len(program))]
    on, count = [stream // len(STREAMS) for some in streams for stream in some], np.array([*map(len, streams)])
    first, operation = np.cumsum(count) - count, tasks % len(program)
    of_task = np.repeat(np.arange(len(tasks)), count[operation])
    within = np.arange(len(of_task)) - np.repeat(np.cumsum(count[operation]) - count[operation], count[operation])
    gpu = np.array(on, dtype=np.int64)[first[operation][of_task] + within]
    begin, end = timeline.start[tasks], timeline.end[tasks]
    begun = begin + timeline.durations.overhead[operation]
    kind = np.where(program.of_kinds(COMPUTATION)[operation], 0.0, 1.0)
    both = np.stack([begun, end, kind, begin, begun, np.full(len(tasks), 2.0)], axis=1)
    order = np.argsort(gpu, kind="stable")
    ends = np.cumsum(np.bincount(gpu, minlength=program.instance.gpus)).tolist()
    table = both[of_task[order]]
    return [table[a:b].reshape(-1, 3) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _covered(spans: Floats) -> float:
    """Length of the union of spans [begin, end, ...]."""
    if not len(spans):
        return 0.0
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reach = np.maximum.accumulate(spans[:, 1])
    before = np.append(-np.inf, reach[:-1])
    return float(np.maximum(0.0, reach - np.maximum(spans[:, 0], before)).sum())


def _path_us(timeline: Timeline) -> dict[str, float]:
    found: dict[str, float] = {}
    for task in timeline.critical_path():
        kind = timeline.program.kinds[timeline.operation(task)]
        found[kind] = found.get(kind, 0.0) + float(timeline.end[task] - timeline.start[task])
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _memory(timeline: Timeline) -> Memory:
    program, workload = timeline.program, timeline.workload
    instance = program.instance
    asked = workload.batch(instance) / instance.traffic.tokens_per_gpu
    held, group, size = np.zeros(instance.gpus), np.zeros(instance.gpus), np.ones(instance.gpus)
    for p, kind in enumerate(program.kinds):
        on = list(program.gpus[p])
        if kind == "expert":
            held[on] += 1
        elif kind == "attention":
            group[on], size[on] = program.attending[p] * asked, len(on)
    parts = memory_parts(instance)
    resident = group * (workload.context if workload.phase == "decode" else 1.0)
    kept_on = np.array([kv_shards(instance.model, int(gpus)) for gpus in size])
    received = program.expert_tokens.max(axis=0, initial=0.0) * asked
    return Memory(
        weights=parts.total - parts.kv_cache + held * expert_bytes(instance),
        kv_cache=resident * kv_bytes_per_token(instance) * instance.model.layers / kept_on,
        kv_reserved=np.full(instance.gpus, parts.kv_cache),
        activations=_activations(instance, workload.phase, group, size, received),
        size=np.array([gpu_memory_bytes(instance, gpu) for gpu in range(instance.gpus)]),
    )


def _activations(instance: Instance, phase: Phase, group: Floats, size: Floats, received: Floats) -> Floats:
    """Bytes of hidden states, before and after a part of the model, and of the largest of these parts.

    Parameters
    ----------
    instance : Instance
    phase : str
        ``prefill`` or ``decode``.
    group, size : float array [GPUs]
        Tokens and GPUs of each GPU's tensor-parallel group.
    received : float array [GPUs]
        Tokens for its experts, in the layer with most.
    """
    model = instance.model
    value = part_bytes(model, "activations")
    token, inner = model.hidden_size * value, model.expert_matrices - 1  # up, and gate where there is one
    dense = (model.dense_hidden_size or model.top_k * model.expert_hidden_size) if model.dense_layers else 0
    dense *= (model.dense_matrices or model.expert_matrices) - 1
    copies = group / size * model.top_k  # as they are sent
    parts = (
        attention_held(model, phase) * group * value / size,
        dense * group * value / size,
        token * (2 * received + copies)
        + inner * received * model.expert_hidden_size * value / instance.parallelism.expert_tp
        + inner * group * (model.shared_expert_hidden_size or 0) * value / size,
        group * model.vocab_size * value / size,  # logits
    )
    most: Floats = np.max(parts, axis=0)
    return 2 * token * group + most
