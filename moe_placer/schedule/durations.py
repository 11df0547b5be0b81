"""How long every operation of a program takes: FLOPs, bytes, NVLink, and what starting it costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.errors import UsageError
from moe_placer.instance import Instance
from moe_placer.instance.model_parts import (
    Part,
    attention_held,
    kv_shards,
    kv_values,
    pair_flops,
    part_bytes,
    peak_tflops,
)
from moe_placer.instance.sizes import GB
from moe_placer.schedule.program import COLLECTIVES, COMPUTATION, GATING, HEAD, JOINED, ONCE, REDUCES, SENDS, Program
from moe_placer.schedule.timing import Timing
from moe_placer.schedule.workload import Condition, Phase, Workload

__all__ = [
    "Durations",
    "Work",
    "computing_us",
    "context_flops",
    "find_durations",
    "find_work",
    "kv_bytes_per_token",
    "part_of",
    "passing_bytes",
    "starting_us",
]

Floats = npt.NDArray[np.float64]

_US = 1e6  # µs in a second
# Whose precision the matrices of a kind of operation have; sums of results have that of hidden states.
_PARTS: dict[str, Part] = {
    "attention": "attention",
    "mlp": "dense",
    "gate": "gate",
    "expert": "experts",
    "aggregate": "activations",
    **dict.fromkeys(("embedding", "norm", "head", "sample"), "head"),
}


@dataclass(frozen=True, eq=False)
class Durations:
    """What each of the P operations takes, in one micro-batch, or in all where it is done once.

    Attributes
    ----------
    busy : float array [P]
        µs of computing or moving bytes; of a send, what it moves inside its node.
    overhead : float array [P]
        µs that starting it costs, before.
    latency : float array [P]
        µs of a send's last message on its way, after.
    flops : float array [P]
        On each of its GPUs, what attention does with the context included.
    read : float array [P]
        Bytes that each of its GPUs reads to compute, keys and values included.
    scale : float
        Tokens of a micro-batch over the instance's own tokens of a step.
    batches : int
    once : bool array [P]
        What a step does once, for all micro-batches together.
    """

    busy: Floats
    overhead: Floats
    latency: Floats
    flops: Floats
    read: Floats
    scale: float
    batches: int
    once: npt.NDArray[np.bool_]

    @property
    def share(self) -> Floats:
        """Tokens that each works on at a time, over the instance's own tokens of a step [P]."""
        return self.scale * np.where(self.once, float(self.batches), 1.0)

    @property
    def times(self) -> Floats:
        """How often a step does each [P]."""
        return np.where(self.once, 1.0, float(self.batches))


def find_durations(program: Program, workload: Workload, timing: Timing, condition: Condition) -> Durations:
    """Return how long each operation takes.

    An operation that computes takes the longer of its FLOPs at ``mfu`` times the peak of its dtype and its bytes at
    ``memory_bandwidth_tb_per_s * memory_utilization``, on its slowest GPU (the roofline model: Williams et al.,
    Communications of the ACM 52, 2009). A reduction of S bytes over p GPUs is a ring: 2 (p - 1) / p * S over each GPU's
    link, in 2 (p - 1) steps (Patarasuk and Yuan, Journal of Parallel and Distributed Computing 69, 2009).

    Parameters
    ----------
    program : Program
        The step as arrays.
    workload : Workload
        Tokens per GPU, contexts and micro-batches of the step.
    timing : Timing
        Times of single operations.
    condition : Condition
        What is slow or has failed.

    Raises
    ------
    UsageError
        A GPU that is to be slow does not exist.
    """
    instance = program.instance
    scale = workload.batch(instance) / instance.traffic.tokens_per_gpu / workload.micro_batches
    once = _done_once(program, timing)
    share = scale * np.where(once, float(workload.micro_batches), 1.0)
    size = np.array([len(gpus) for gpus in program.gpus], dtype=np.float64)
    computes, reduces = program.of_kinds(COMPUTATION), program.of_kinds(REDUCES)
    work = find_work(program, workload, timing, share)
    computing = computing_us(program, work, timing, workload)
    busy = np.where(computes, computing, 0.0) * _slowness(program, condition)
    busy += _US * share * _moving(program, timing, reduces, size, timing.stretch(workload.micro_batches))
    # A tensor-parallel group with one GPU left has nobody to exchange anything with.
    alone = (reduces | program.of_kinds(GATING)) & (size == 1)
    steps = np.where(reduces, 2 * (size - 1), np.where(program.of_kinds(COLLECTIVES) & ~alone, 1, 0))
    step_us = np.where(program.network > 0, timing.network_step_us, timing.nvlink_step_us)
    overhead = np.where(computes, starting_us(program, timing), 0.0)
    overhead += np.where(program.of_kinds(COLLECTIVES) & ~alone, timing.collective_us, 0.0)
    overhead += np.where(program.of_kinds(SENDS), timing.all_to_all_start_us, 0.0)
    latency = np.zeros(len(program))
    for p, sent in program.sent.items():
        latency[p] = timing.network_step_us if sent.any() else timing.nvlink_step_us
    overhead += steps * step_us
    return Durations(busy, overhead, latency, work.flops, work.read, scale, workload.micro_batches, once)


@dataclass(frozen=True, eq=False)
class Work:
    """What each of the P operations computes on each of its GPUs, in one micro-batch.

    Attributes
    ----------
    products, scores : float array [P]
        FLOPs of its matrices, and of scores and weighted values over the context.
    fetched, kept : float array [P]
        Bytes of weights and tensors, and of keys and values.
    tokens : float array [P]
        What it works on, all of its GPUs together.
    """

    products: Floats
    scores: Floats
    fetched: Floats
    kept: Floats
    tokens: Floats

    @property
    def flops(self) -> Floats:
        """All FLOPs [P]."""
        return self.products + self.scores

    @property
    def read(self) -> Floats:
        """All bytes read [P]."""
        return self.fetched + self.kept


def find_work(program: Program, workload: Workload, timing: Timing, share: Floats) -> Work:
    """Return FLOPs and bytes of every operation.

    Parameters
    ----------
    program : Program
    workload : Workload
    timing : Timing
        Whether the head works on all tokens.
    share : float array [P]
        Tokens of each over the instance's own.
    """
    instance = program.instance
    size = np.array([len(gpus) for gpus in program.gpus], dtype=np.float64)
    shards = np.array([kv_shards(instance.model, int(gpus)) for gpus in size])
    attending = program.attending * share
    part = share.copy()
    if timing.last_logits and workload.phase == "prefill":
        part[program.of_kinds(HEAD)] /= workload.context
    return Work(
        program.flops * part,
        context_flops(instance, workload, attending) / size,
        program.weights + program.fed * part,
        _kv_bytes_read(instance, workload, attending) / shards,
        program.tokens * part,
    )


def computing_us(program: Program, work: Work, timing: Timing, workload: Workload) -> Floats:
    """Return µs of every operation's FLOPs or bytes, whichever takes longer, on a GPU that is not slow.

    Parameters
    ----------
    program : Program
    work : Work
        FLOPs and bytes of every operation.
    timing : Timing
        What kernels charge.
    workload : Workload
        In two micro-batches all-to-alls run beside computation, and take multiprocessors from it.
    """
    instance, gpu = program.instance, program.instance.cluster.gpu
    rate = 1e12 * gpu.mfu / np.where(_done_once(program, timing), 1.0, timing.slowdown(workload.micro_batches))
    bandwidth = gpu.memory_bandwidth_tb_per_s * 1e12 * gpu.memory_utilization
    parts = [part_of(program, p) for p in range(len(program))]
    peak_of = {part: peak_tflops(instance, part) for part in set(parts)}
    peaks = np.array([peak_of[part] for part in parts])
    products, scores = work.products / peaks / rate, work.scores / peak_tflops(instance, "scores") / rate
    if timing.separate_scores:
        seconds = np.maximum(products, work.fetched / bandwidth) + np.maximum(scores, work.kept / bandwidth)
    else:
        seconds = np.maximum(products + scores, work.read / bandwidth)
    return np.asarray(_US * (seconds + passing_bytes(program, work, timing, workload.phase) / bandwidth))


def _done_once(program: Program, timing: Timing) -> npt.NDArray[np.bool_]:
    """Mask [P] of what a step does once, for all micro-batches: outside the layers, with no all-to-all beside it."""
    return program.of_kinds(ONCE | JOINED if timing.head_once else ONCE)


def passing_bytes(program: Program, work: Work, timing: Timing, phase: Phase) -> Floats:
    """Return bytes that go through memory between the kernels of each operation, on each of its GPUs.

    Parameters
    ----------
    program : Program
    work : Work
        Tokens of every operation.
    timing : Timing
        Bytes for each token and value.
    phase : str
        ``prefill`` or ``decode``.
    """
    model, size = program.instance.model, np.array([len(gpus) for gpus in program.gpus])
    attention, experts = (program.of_kinds(frozenset({kind})) for kind in ("attention", "expert"))
    values = np.where(experts, timing.expert_passes * model.hidden_size, 0.0)
    values += np.where(attention, timing.attention_passes * attention_held(model, phase), 0.0)
    return np.asarray(work.tokens * values / size)


def starting_us(program: Program, timing: Timing) -> Floats:
    """Return µs that starting every operation's kernels takes, were it one that computes."""
    launches = np.ones(len(program))
    for kind in ("attention", "mlp", "gate"):
        launches[program.of_kinds(frozenset({kind}))] = getattr(timing, f"{kind}_launches")
    started = launches * timing.kernel_us
    experts = np.flatnonzero(program.of_kinds(frozenset({"expert"}))).tolist()
    together = Counter((int(program.layer[p]), program.gpus[p]) for p in experts)
    for p in experts:
        share = 1 / together[int(program.layer[p]), program.gpus[p]]
        if timing.expert_launches:
            started[p] = timing.kernel_us * timing.expert_launches * share
        started[p] += timing.all_to_all_compute_us * share
    return started


def part_of(program: Program, operation: int) -> Part:
    """Return the part of the model whose precision an operation's matrices have; an MLP of a MoE layer is shared."""
    kind = program.kinds[operation]
    if kind == "mlp" and int(program.layer[operation]) in program.instance.moe_layers:
        return "shared"
    return _PARTS.get(kind, "activations")


def context_flops(instance: Instance, workload: Workload, tokens: Floats) -> Floats:
    """FLOPs of scores and values, for each token and each that it attends to.

    In prefill these are its predecessors in a sequence of ``context`` tokens, half of them on average (causal mask).
    """
    seen = workload.context if workload.phase == "decode" else (workload.context + 1) / 2
    return pair_flops(instance.model, workload.phase) * tokens * seen


def kv_bytes_per_token(instance: Instance) -> float:
    """Bytes that the KV cache keeps of one token in one layer, once."""
    return kv_values(instance.model) * part_bytes(instance.model, "kv_cache")


def _kv_bytes_read(instance: Instance, workload: Workload, tokens: Floats) -> Floats:
    """Bytes of keys and values that attention reads: of the whole context in decode, of its own tokens in prefill."""
    return tokens * kv_bytes_per_token(instance) * (workload.context if workload.phase == "decode" else 1.0)


def _slowness(program: Program, condition: Condition) -> Floats:
    if not condition.slow_gpus:
        return np.ones(len(program))
    factor = np.ones(program.instance.gpus)
    for gpu, times in condition.slow_gpus.items():
        if not 0 <= gpu < len(factor):
            raise UsageError(f"there is no GPU {gpu}: {program.instance.name} has 0 to {len(factor) - 1}")
        factor[gpu] = times
    return np.array([factor[list(gpus)].max() for gpus in program.gpus])


def _moving(program: Program, timing: Timing, reduces: npt.NDArray[np.bool_], size: Floats, stretch: float) -> Floats:
    """Seconds of moving bytes between an operation's GPUs, for the instance's own tokens.

    Each GPU sends its part at once. Between nodes it has its share of the node's links, which it is not made to share
    with dispatch and combine: only tensor-parallel groups over several nodes send anything there.

    Parameters
    ----------
    program : Program
    timing : Timing
        What collectives and all-to-alls reach of NVLink.
    reduces : bool array [P]
        Which operations are reductions.
    size : float array [P]
        GPUs of each.
    stretch : float
        How many times as long all-to-alls take beside computation.
    """
    cluster = program.instance.cluster
    inside = cluster.nvlink_gb_per_s * GB * timing.nvlink_utilization
    between = cluster.fabric.node_gb_per_s * GB * cluster.fabric.link_utilization / cluster.gpus_per_node
    ring = np.where(reduces, 2 * (size - 1) / size, 1.0)
    over_nvlink = np.array(program.nvlink)
    of_sends = stretch * timing.nvlink_utilization / timing.all_to_all_nvlink_utilization
    for p in program.sent:
        over_nvlink[p] *= of_sends
        # Of what stays in a node, all but the part for the same GPU moves, from every GPU at once.
        over_nvlink[p] *= (size[p] - 1) / size[p] ** 2
    seconds: Floats = ring * (over_nvlink / inside + program.network / between)
    return seconds
