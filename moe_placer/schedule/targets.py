"""Holds a simulated step to targets: what was asked, what came out, and what limits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moe_placer.errors import UsageError
from moe_placer.instance.sizes import GB
from moe_placer.schedule.program import COMPUTATION
from moe_placer.schedule.simulate import Timeline
from moe_placer.schedule.step_figures import SHARES, Figures, plan_holds

__all__ = ["TARGETS", "Answer", "Target", "Use", "answer_target", "link_use", "read_target", "time_use"]

# Name of a target to the way its value is written, and to what it asks.
TargetName = Literal["mfu", "bandwidth", "links", "shares", "latency", "throughput", "memory"]
TARGETS: dict[TargetName, tuple[str, str]] = {
    "mfu": ("60%", "FLOPs of the step over the GPUs' peak, at least"),
    "bandwidth": ("80%", "bytes that GPUs read over what their memory delivers meanwhile, at least"),
    "links": ("80%", "bytes on the busiest inter-node link over its whole bandwidth, at least"),
    "shares": ("40/35/15/10", f"{', '.join(SHARES)}, in percent, each within 5 percentage points"),
    "latency": ("500ms", "of the step, at most"),
    "throughput": ("2000", "tokens/s per GPU, at least"),
    "memory": ("90%", "of the fullest GPU's memory, at most"),
}
_AT_MOST = frozenset({"latency", "memory"})
_Found = tuple[tuple[float, ...], dict[str, float], str]
_UNITS = {"latency": "ms", "throughput": "tokens/s per GPU"}  # others are shares


@dataclass(frozen=True)
class Target:
    """A target that a step is held to, such as its MFU.

    Attributes
    ----------
    name : str
        One of `TARGETS`.
    asked : tuple of float
        Shares, milliseconds or tokens/s per GPU; one value, but of ``shares`` one for each of `SHARES`.
    """

    name: TargetName
    asked: tuple[float, ...]

    @property
    def unit(self) -> str:
        """Unit of what is asked and what came out."""
        return _UNITS.get(self.name, "share")

    @property
    def at_most(self) -> bool:
        """Whether more than asked is too much."""
        return self.name in _AT_MOST


@dataclass(frozen=True)
class Answer:
    """How a step stands to a target.

    Attributes
    ----------
    target : Target
    got : tuple of float
        In the units of what was asked.
    ok : bool
    limits : mapping
        What keeps the figure from being better, with the size of each: the largest first. Of ``mfu``, ``bandwidth`` and
        ``links`` shares that make 1 with what came out, of ``latency`` and ``throughput`` shares of the critical path,
        of ``memory`` shares of the GPU's memory, of ``shares`` the distances from what was asked.
    limiter : str
        The first of them, in a sentence.
    """

    target: Target
    got: tuple[float, ...]
    ok: bool
    limits: dict[str, float]
    limiter: str


def read_target(text: str) -> Target:
    """Read a target such as ``mfu=60%``, ``latency=500ms`` or ``shares=40/35/15/10``.

    Raises
    ------
    UsageError
        There is no such target, or its value is not of the right form.
    """
    word, _, value = text.partition("=")
    name = next((one for one in TARGETS if one == word), None)
    if name is None:
        raise UsageError(
            f"{text!r} is no target, expected one of {', '.join(f'{n}={v}' for n, (v, _) in TARGETS.items())}"
        )
    form = TARGETS[name][0]
    try:
        if name == "shares":
            asked = tuple(float(part.removesuffix("%")) / 100 for part in value.split("/"))
        elif name in _UNITS:
            asked = (float(value.removesuffix("ms") if name == "latency" else value),)
        else:
            asked = (float(value.removesuffix("%")) / (100 if value.endswith("%") else 1),)
    except ValueError:
        asked = ()
    if len(asked) != (len(SHARES) if name == "shares" else 1) or not all(0 <= part < np.inf for part in asked):
        raise UsageError(f"{text!r} does not say how much, expected a value such as {name}={form}")
    if name == "shares" and abs(sum(asked) - 1) > 0.005:
        raise UsageError(f"{text!r} makes {sum(asked):.0%}, expected shares that make 100%")
    if name not in _UNITS and max(asked) > 1:
        raise UsageError(f"{text!r} is more than all, expected a share from 0% to 100%")
    return Target(name, asked)


def answer_target(target: Target, timeline: Timeline, figures: Figures) -> Answer:
    """Compare a simulated step with a target, and find what limits it."""
    got, limits, limiter = _find(target, timeline, figures)
    if target.name == "shares":
        ok = plan_holds(figures.shares, dict(zip(SHARES, target.asked, strict=True)))
    else:
        ok = got[0] <= target.asked[0] if target.at_most else got[0] >= target.asked[0]
    return Answer(target, got, bool(ok), dict(sorted(limits.items(), key=lambda item: -item[1])), limiter)


@dataclass(frozen=True)
class Use:
    """The share of the hardware's capacity that a step uses, and what the rest goes to.

    Attributes
    ----------
    used : float
        Share of the peak.
    reached : float
        Share of the peak that the instance lets any operation reach.
    ceiling : str
        The instance's field that says so.
    lost : mapping
        What the rest goes to; with ``used`` these shares make 1.
    """

    used: float
    reached: float
    ceiling: str
    lost: dict[str, float]

    def limiter(self, asked: float, of: str) -> str:
        """Name the largest loss; the ceiling that the instance sets only where the target lies beyond it."""
        if asked > self.reached:
            return f"{self.ceiling} of {self.reached:.0%}: no step of this instance reaches more"
        name = max((one for one in self.lost if one != self.ceiling), key=self.lost.__getitem__)
        return f"{name}: {self.lost[name]:.1%} {of}"


def time_use(timeline: Timeline, figures: Figures, *, of: str) -> Use:
    """Return the share of a mean GPU's time that its peak would need, and what the rest goes to.

    Parameters
    ----------
    timeline : Timeline
    figures : Figures
        Of the timeline.
    of : str
        ``flops``: at peak FLOP/s; ``bytes``: at the full bandwidth of its memory.
    """
    durations, gpu = timeline.durations, timeline.program.instance.cluster.gpu
    size = np.array([len(on) for on in timeline.program.gpus])
    if of == "flops":
        amounts, peak, reached = durations.flops, gpu.peak_tflops * 1e12, gpu.mfu
        ceiling, other = "gpu.mfu", "memory bandwidth binds"
    else:
        amounts, peak, reached = durations.read, gpu.memory_bandwidth_tb_per_s * 1e12, gpu.memory_utilization
        ceiling, other = "gpu.memory_utilization", "FLOPs bind"
    computes = timeline.program.of_kinds(COMPUTATION)
    amount = float((durations.times * amounts * size)[computes].sum())
    used = amount / (peak * timeline.program.instance.gpus * figures.latency_us / 1e6)
    lost = {ceiling: used / reached - used, other: max(0.0, figures.shares["computation"] - used / reached)}
    return Use(used, reached, ceiling, lost | {n: figures.shares[n] for n in SHARES if n != "computation"})


def link_use(timeline: Timeline, figures: Figures) -> Use:
    """Return what the busiest link carries over its whole bandwidth in the step, and why that is not all."""
    reached = timeline.program.instance.cluster.fabric.link_utilization
    share = float(figures.link_utilization.max(initial=0.0))
    active = _sending_share(timeline)
    lost = {
        "link_utilization": 1 - reached,
        "no tokens under way": reached * (1 - active),
        "tokens under way, but other links, NVLink or single transfers bind": reached * max(0.0, active - share),
    }
    return Use(share * reached, reached, "link_utilization", lost)


def _sending_share(timeline: Timeline) -> float:
    """Share of the step in which some dispatch or combine is on its way between nodes."""
    spans = []
    size = len(timeline.program)
    for p, sent in timeline.program.sent.items():
        if sent.any():
            tasks = p + size * np.arange(timeline.durations.batches)
            begun = timeline.start[tasks] + timeline.durations.overhead[p]
            spans += list(zip(begun.tolist(), timeline.end[tasks].tolist(), strict=True))
    reach = total = 0.0
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reach))
        reach = max(reach, end)
    return total / timeline.makespan


def _find(target: Target, timeline: Timeline, figures: Figures) -> _Found:
    """Return what came out, what limits it, and the most important of these in words."""
    if target.name == "mfu":
        return _of_use(time_use(timeline, figures, of="flops"), target, "of a mean GPU's time")
    if target.name == "bandwidth":
        return _of_use(time_use(timeline, figures, of="bytes"), target, "of a mean GPU's time")
    if target.name == "links":
        if not figures.busiest_link:
            return (0.0,), {}, "no tokens between nodes"
        return _of_use(link_use(timeline, figures), target, f"of what {figures.busiest_link} could carry")
    if target.name == "shares":
        return _shares(figures, target.asked)
    return _memory(figures) if target.name == "memory" else _path(figures, target.name)


def _of_use(use: Use, target: Target, of: str) -> _Found:
    return (use.used,), use.lost, use.limiter(target.asked[0], of)


def _shares(figures: Figures, asked: tuple[float, ...]) -> _Found:
    got = tuple(figures.shares[name] for name in SHARES)
    off = {name: abs(one - other) for name, one, other in zip(SHARES, got, asked, strict=True)}
    name = max(off, key=off.__getitem__)
    return got, off, f"{name}: {figures.shares[name]:.1%} for {asked[SHARES.index(name)]:.0%}"


def _path(figures: Figures, name: str) -> _Found:
    got = figures.latency_us / 1e3 if name == "latency" else figures.tokens_per_s_per_gpu
    parts = {kind: us / figures.latency_us for kind, us in figures.path_us.items() if us > 0}
    kind, share = next(iter(parts.items()))
    return (got,), parts, f"{kind}: {share:.1%} of the critical path"


def _memory(figures: Figures) -> _Found:
    memory = figures.memory
    full = int((memory.high_water / memory.size).argmax())
    cache = max(memory.kv_cache[full], memory.kv_reserved[full])
    parts = {"weights": memory.weights[full], "KV cache": cache, "activations": memory.activations[full]}
    shares = {name: float(size / memory.size[full]) for name, size in parts.items()}
    name = max(shares, key=shares.__getitem__)
    words = f"{name}: {parts[name] / GB:,.1f} of {memory.size[full] / GB:,.1f} GB on GPU {full}"
    return (float(memory.high_water[full] / memory.size[full]),), shares, words
