"""Why an operation takes as long as it does: the formula of every part of its time, and the values in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moe_placer.errors import UsageError
from moe_placer.instance import Instance
from moe_placer.instance.model_parts import dtype_of, pair_flops, peak_tflops
from moe_placer.instance.sizes import GB
from moe_placer.schedule.durations import find_work, part_of, passing_bytes
from moe_placer.schedule.program import COLLECTIVES, COMPUTATION, REDUCES, SENDS
from moe_placer.schedule.simulate import Timeline
from moe_placer.schedule.stages import stage_order

__all__ = ["FORMULAS", "Explanation", "Part", "explain", "find_task", "formula_of", "hardware_of"]

# By name; the words are those of parameters (docs/kernels.md), instance fields, and values that an explanation lists.
FORMULAS: Mapping[str, str] = {
    "computation": "launches x kernel_us; then the longer of FLOPs / (peak x mfu) and bytes / (memory_bandwidth x "
    "memory_utilization); beside all-to-alls of another micro-batch FLOPs have gpu_sms - communication_sms of gpu_sms",
    "attention": "launches x kernel_us; then the longer of FLOPs and bytes of projections, and the longer of those of "
    "scores and values (separate_scores), or the longer of all FLOPs and all bytes; and tokens x values x "
    "attention_passes / (memory_bandwidth x memory_utilization)",
    "expert": "its share of launches x kernel_us and of all_to_all_compute_us; then as computation, and tokens x "
    "hidden_size x expert_passes / (memory_bandwidth x memory_utilization)",
    "reduction": "collective_us + 2 (p - 1) steps; then 2 (p - 1) / p x bytes / (nvlink x nvlink_utilization), or over "
    "a GPU's share of the node's links",
    "collective": "collective_us + one step; then bytes / (nvlink x nvlink_utilization), or over a GPU's share of the "
    "node's links",
    "all-to-all": "all_to_all_us; then the longer of bytes within the node / (nvlink x all_to_all_nvlink) and bytes "
    "between nodes over links that transfers share, in two micro-batches x all_to_all_slowdown; then nvlink_step_us or "
    "network_step_us",
    "waiting": "none: it only waits for tensors",
}


@dataclass(frozen=True)
class Part:
    """One part of an operation's time.

    Attributes
    ----------
    name : str
    us : float
    formula : str
        With the values in it.
    """

    name: str
    us: float
    formula: str


@dataclass(frozen=True)
class Explanation:
    """The time of one operation in one micro-batch.

    Attributes
    ----------
    operation, kind : str
        Its id in the DAG, and its kind.
    formula : str
        Its name in `FORMULAS`.
    start_us, end_us : float
    started_by : str
        The operation whose end let it start, with its micro-batch where there are two; empty for the first.
    waited_for : str
        What that one held: ``tensors`` it needs, its ``stream``, or in the order of ``stages`` (`Timing.staged`) its
        turn; empty for the first.
    parts : tuple of Part
        One after the other; they sum to its time.
    """

    operation: str
    kind: str
    formula: str
    start_us: float
    end_us: float
    started_by: str
    waited_for: Literal["tensors", "stream", "stages", ""]
    parts: tuple[Part, ...]


def formula_of(kind: str) -> str:
    """Name the formula of a kind of operation."""
    if kind in SENDS:
        return "all-to-all"
    if kind in REDUCES:
        return "reduction"
    if kind in COLLECTIVES:
        return "collective"
    return kind if kind in {"attention", "expert"} else "computation" if kind in COMPUTATION else "waiting"


def find_task(timeline: Timeline, name: str) -> int:
    """Return the task of an operation: ``L3.expert.e0.r0``, with ``.b1`` behind it in the second micro-batch.

    Raises
    ------
    UsageError
        There is no such operation.
    """
    names, batch = timeline.program.names, 0
    if name not in names and timeline.durations.batches > 1 and name.endswith((".b0", ".b1")):
        name, batch = name[:-3], int(name[-1])
    if name not in names:
        close = difflib.get_close_matches(name, names, 3, 0.5)
        hint = f"one such as {', '.join(close)}" if close else f"one such as {names[len(names) // 2]}"
        raise UsageError(f"there is no operation {name[:80]}, expected {hint} (names are those of the DAG)")
    operation = names.index(name)
    once = timeline.is_once(operation)
    return operation if once else batch * len(names) + operation


def explain(timeline: Timeline, task: int) -> Explanation:
    """Divide the time of a task into parts, each with its formula and values."""
    program, p = timeline.program, timeline.operation(task)
    kind, cause = program.kinds[p], int(timeline.cause[task])
    started_by = "" if cause < 0 else timeline.name(cause)
    formula = formula_of(kind)
    if formula == "all-to-all":
        parts = tuple(_of_send(timeline, task))
    elif formula in {"reduction", "collective"}:
        parts = tuple(_of_collective(timeline, task))
    else:
        parts = tuple(_of_computation(timeline, p)) if formula != "waiting" else ()
    start, end = float(timeline.start[task]), float(timeline.end[task])
    return Explanation(program.names[p], kind, formula, start, end, started_by, _waited_for(timeline, task), parts)


def hardware_of(instance: Instance) -> dict[str, float]:
    """Return what an instance states of GPUs, NVLink and links, by the words of formulas (GB/s, TB/s, TFLOP/s)."""
    cluster = instance.cluster
    gpu, fabric = cluster.gpu, cluster.fabric
    peaks = {f"peak_tflops.{dtype}": peak for dtype, peak in gpu.dtype_tflops.items()}
    return {
        "peak_tflops": gpu.peak_tflops,
        **peaks,
        "mfu": gpu.mfu,
        "memory_bandwidth_tb_per_s": gpu.memory_bandwidth_tb_per_s,
        "memory_utilization": gpu.memory_utilization,
        "nvlink_gb_per_s": cluster.nvlink_gb_per_s,
        "node_gb_per_s": fabric.node_gb_per_s,
        "link_utilization": fabric.link_utilization,
    }


def _waited_for(timeline: Timeline, task: int) -> Literal["tensors", "stream", "stages", ""]:
    """Say what the end of the operation before gave a task."""
    program, cause = timeline.program, int(timeline.cause[task])
    if cause < 0:
        return ""
    before, p = timeline.operation(cause), timeline.operation(task)
    together = timeline.batch(task) == timeline.batch(cause) or timeline.is_once(task) or timeline.is_once(cause)
    if together and p in program.after[before]:
        return "tensors"
    if timeline.timing.staged and timeline.durations.batches > 1:
        same, following = stage_order(program)
        order = same if timeline.batch(task) > timeline.batch(cause) else following
        if p in order.get(before, ()):
            return "stages"
    return "stream"


def _of_computation(timeline: Timeline, p: int) -> Iterator[Part]:
    program, durations, timing = timeline.program, timeline.durations, timeline.timing
    instance, gpu = program.instance, program.instance.cluster.gpu
    kind, part = program.kinds[p], part_of(program, p)
    launches = getattr(timing, f"{kind}_launches", 1.0) or 1.0
    words = f"{launches:g} launches x kernel_us {timing.kernel_us:g}"
    if kind == "expert":
        words += f" + all_to_all_compute_us {timing.all_to_all_compute_us:g}; shared by the GPU's experts of this layer"
    yield Part("start", float(durations.overhead[p]), words)
    work = find_work(program, timeline.workload, timing, durations.share)
    lost = 1.0 if durations.once[p] else timing.slowdown(durations.batches)
    factor = f" x {lost:.4g} for communication_sms" if lost > 1 else ""
    bandwidth = gpu.memory_bandwidth_tb_per_s * gpu.memory_utilization
    memory = f"{gpu.memory_bandwidth_tb_per_s:g} TB/s x memory_utilization {gpu.memory_utilization:g}"

    def longer(name: str, flops: float, size: float, dtype: str, tflops: float) -> Part:
        calculating, reading = flops * lost / (tflops * gpu.mfu * 1e6), size / (bandwidth * 1e6)
        if calculating >= reading:
            rate = f"{tflops:g} TFLOP/s of {dtype} x mfu {gpu.mfu:g}"
            return Part(name, calculating, f"{flops:.4g} FLOPs / ({rate}){factor}; bytes alone {reading:,.2f} µs")
        return Part(name, reading, f"{size:.4g} bytes / ({memory}); FLOPs alone {calculating:,.2f} µs")

    own, scores = peak_tflops(instance, part), peak_tflops(instance, "scores")
    dtype = dtype_of(instance.model, part)
    products, context = float(work.products[p]), float(work.scores[p])
    if kind == "attention" and timing.separate_scores:
        found = [longer("projections", products, float(work.fetched[p]), dtype, own)]
        of_scores = dtype_of(instance.model, "scores")
        found.append(
            longer(f"scores and values ({_pairs(timeline, p)})", context, float(work.kept[p]), of_scores, scores)
        )
    else:  # FLOPs of scores count as many of the other dtype as take as long
        name = f"FLOPs or bytes, with scores and values ({_pairs(timeline, p)})" if context else "FLOPs or bytes"
        found = [longer(name, products + context * own / scores, float(work.read[p]), dtype, own)]
    yield from found
    spent = float(durations.overhead[p]) + sum(one.us for one in found)
    passing = float(passing_bytes(program, work, timing, timeline.workload.phase)[p])
    if passing:
        around, each = passing / (bandwidth * 1e6), getattr(timing, f"{kind}_passes")
        spent += around
        words = f"{passing / each:.4g} values x {kind}_passes {each:g} bytes / ({memory})"
        yield Part("passes through memory", around, words)
    rest = float(durations.overhead[p] + durations.busy[p]) - spent
    if abs(rest) > 1e-6 * (spent + rest):
        yield Part(
            "slow GPU, or tensors over NVLink or the network", rest, "what a slow GPU or a tensor from afar adds"
        )


def _pairs(timeline: Timeline, p: int) -> str:
    """Say how many FLOPs a token takes with each that it attends to."""
    model, workload = timeline.program.instance.model, timeline.workload
    kind = "mha" if model.attention is None else model.attention.kind
    seen = f"{workload.context:g}" if workload.phase == "decode" else f"({workload.context:g} + 1) / 2"
    tokens = float(timeline.program.attending[p] * timeline.durations.share[p])
    return f"{tokens:.4g} tokens x {seen} x {pair_flops(model, workload.phase):,.0f} FLOPs of {kind}"


def _of_collective(timeline: Timeline, task: int) -> Iterator[Part]:
    program, durations, timing = timeline.program, timeline.durations, timeline.timing
    p, cluster = timeline.operation(task), program.instance.cluster
    size, reduces = len(program.gpus[p]), program.kinds[p] in REDUCES
    over = "network" if program.network[p] > 0 else "nvlink"
    steps, step = (2 * (size - 1) if reduces else 1), getattr(timing, f"{over}_step_us")
    words = f"collective_us {timing.collective_us:g} + {steps} steps x {over}_step_us {step:g}"
    yield Part("start and steps", float(durations.overhead[p]), words)
    moved = float(timeline.end[task] - timeline.start[task] - durations.overhead[p])
    scale = float(durations.share[p])
    ring = 2 * (size - 1) / size if reduces else 1.0
    nvlink, network = float(program.nvlink[p]) * scale, float(program.network[p]) * scale
    words = f"{ring:.4g} x ({nvlink:.4g} bytes / ({cluster.nvlink_gb_per_s:g} GB/s x nvlink_utilization "
    words += f"{timing.nvlink_utilization:g})"
    if network:
        share = cluster.fabric.node_gb_per_s / cluster.gpus_per_node
        words += f" + {network:.4g} bytes / ({share:g} GB/s x link_utilization {cluster.fabric.link_utilization:g})"
    yield Part("bytes", moved, words + ")")


def _of_send(timeline: Timeline, task: int) -> Iterator[Part]:
    program, durations, timing = timeline.program, timeline.durations, timeline.timing
    p, network = timeline.operation(task), timeline.network
    nodes, cluster = program.instance.cluster.nodes, program.instance.cluster
    yield Part("start", float(durations.overhead[p]), f"all_to_all_us {timing.all_to_all_start_us:g}")
    inside, latency = float(durations.busy[p]), float(durations.latency[p])
    took = float(timeline.end[task] - timeline.start[task] - durations.overhead[p]) - latency
    sent = np.zeros((nodes, nodes))
    sent[program.home[p]] = program.sent[p] * durations.scale
    np.fill_diagonal(sent, 0.0)
    carried = np.asarray(network.routes.shares @ sent.ravel())
    if network.nics is not None:
        passed = network.nics.passed(program.ends[p], sent[program.home[p]])
        carried = np.append(carried, network.nics.by_nic(passed))
    alone = carried / network.capacity
    nvlink = f"{cluster.nvlink_gb_per_s:g} GB/s x all_to_all_nvlink {timing.all_to_all_nvlink_utilization:g}"
    if took <= inside * (1 + 1e-9) or not alone.any():
        slower = timing.stretch(durations.batches)
        bytes_inside = inside / slower * 1e-6 * cluster.nvlink_gb_per_s * GB * timing.all_to_all_nvlink_utilization
        words = f"{bytes_inside:.4g} bytes of a GPU / ({nvlink})" + (f" x {slower:g}" if slower > 1 else "")
        yield Part("bytes within the node", took, words)
    else:
        link = int(alone.argmax())
        rate = network.capacity[link] * 1e6 / GB
        slower = timing.stretch(durations.batches)
        reached = f"link_utilization {cluster.fabric.link_utilization:g}"
        reached += f" / all_to_all_slowdown {slower:g}" if slower > 1 else ""
        needs = f"{network.links[link]} needs {carried[link]:.4g} bytes / {rate:.4g} GB/s = {alone[link]:,.2f} µs alone"
        words = (
            f"{sent.sum():.4g} bytes in all; {needs} ({reached} in it), the rest is other transfers; within the node "
        )
        words += f"{inside:,.2f} µs ({nvlink})"
        yield Part("bytes between nodes", took, words)
    name = "network_step_us" if sent.any() else "nvlink_step_us"
    yield Part("last message", latency, f"{name} {latency:g}")
