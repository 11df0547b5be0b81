"""What hardware and kernels charge beside FLOPs and bytes: named parameters, and presets of them with their sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from moe_placer.errors import InputError, Mistake, UsageError
from moe_placer.instance import Instance
from moe_placer.schedule.workload import Phase

__all__ = ["PRESETS", "Timing", "timing_of"]


@dataclass(frozen=True)
class Timing:
    """What hardware and kernels charge beside FLOPs and bytes; times in µs (docs/kernels.md has the sources).

    Attributes
    ----------
    kernel_us : float
        Start of an operation that computes: what is left between kernels of a CUDA graph, about 2 µs; without a graph
        a launch costs about 5 µs (NVIDIA, Constant Time Launch for Straight-Line CUDA Graphs, 2024).
    collective_us : float
        Start of a collective operation: NCCL's base latency of a ring with protocol LL (``baseLat`` in its
        src/graph/tuning.cc).
    nvlink_step_us, network_step_us : float
        One step of a ring over NVLink, one message between nodes: NCCL's ``hwLat`` of ring and LL for NVLINK and NET.
    nvlink_utilization : float
        Share of NVLink's bandwidth that is reached: about 360 of 450 GB/s in NCCL's all-reduce on 8 H100s.
    all_to_all_us : float or None
        Start of a dispatch or combine; None: `collective_us`.
    all_to_all_nvlink : float or None
        Share of NVLink's bandwidth that these reach; None: `nvlink_utilization`.
    all_to_all_slowdown : float
        How many times as long their bytes take beside computation, in two micro-batches.
    all_to_all_compute_us : float
        What sending and receiving keep the compute stream of a GPU busy, for each layer and micro-batch.
    communication_sms, gpu_sms : float
        Multiprocessors of a GPU that dispatch and combine keep from computation in two micro-batches, and all of them.
    attention_launches, mlp_launches, gate_launches : float
        Kernels that such an operation starts.
    expert_launches : float
        Kernels that a GPU starts for all of its experts of a layer together; 0: one for each expert.
    expert_passes : float
        Bytes that kernels around an expert's matrices move through memory, for each token and value of its dimension.
    attention_passes : float
        The same between the kernels of attention, for each token and value of its queries, keys, values and results.
    separate_scores : bool
        Whether projections and scores are kernels of their own, each as long as its FLOPs or its bytes take; else
        attention is as long as its FLOPs or its bytes together.
    last_logits : bool
        Whether the head works on the last token of every sequence only, in prefill.
    head_once : bool
        Whether micro-batches are joined behind the last layer, so that the head reads its weights once.
    staged : bool
        Whether micro-batches keep to the order of stages of `moe_placer.schedule.stages`; else whatever can run does.

    Raises
    ------
    UsageError
        A value out of its range.
    """

    kernel_us: float = 2.0
    collective_us: float = 6.6
    nvlink_step_us: float = 0.6
    network_step_us: float = 2.7
    nvlink_utilization: float = 0.8
    all_to_all_us: float | None = None
    all_to_all_nvlink: float | None = None
    all_to_all_slowdown: float = 1.0
    all_to_all_compute_us: float = 0.0
    communication_sms: float = 0.0
    gpu_sms: float = 132.0
    attention_launches: float = 1.0
    mlp_launches: float = 1.0
    gate_launches: float = 1.0
    expert_launches: float = 0.0
    expert_passes: float = 0.0
    attention_passes: float = 0.0
    separate_scores: bool = False
    last_logits: bool = False
    head_once: bool = False
    staged: bool = False

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is None:
                continue
            if one.name.endswith("_us") and not 0 <= value <= 1e6:
                raise UsageError(f"{one.name} is {value:g}, expected 0 to 1e6 µs")
            if one.name in {"nvlink_utilization", "all_to_all_nvlink"} and not 0 < value <= 1:
                raise UsageError(f"{one.name} is {value:g}, expected more than 0, at most 1")
            if one.name.endswith(("_launches", "_passes")) and not 0 <= value <= 1e6:
                raise UsageError(f"{one.name} is {value:g}, expected 0 to 1e6")
        if not 1 <= self.all_to_all_slowdown <= 1e6:
            raise UsageError(f"all_to_all_slowdown is {self.all_to_all_slowdown:g}, expected 1 to 1e6")
        if not 0 <= self.communication_sms < self.gpu_sms <= 1e6:
            found = f"communication_sms is {self.communication_sms:g} of {self.gpu_sms:g}"
            raise UsageError(f"{found}, expected 0 or more, and fewer than gpu_sms")

    @property
    def all_to_all_start_us(self) -> float:
        """Start of a dispatch or combine, in µs."""
        return self.collective_us if self.all_to_all_us is None else self.all_to_all_us

    @property
    def all_to_all_nvlink_utilization(self) -> float:
        """Share of NVLink's bandwidth that dispatch and combine reach."""
        return self.nvlink_utilization if self.all_to_all_nvlink is None else self.all_to_all_nvlink

    def slowdown(self, micro_batches: int) -> float:
        """How many times as long FLOPs take where all-to-alls run beside them."""
        taken = self.communication_sms if micro_batches > 1 else 0.0
        return self.gpu_sms / (self.gpu_sms - taken)

    def stretch(self, micro_batches: int) -> float:
        """How many times as long the bytes of all-to-alls take where computation runs beside them."""
        return self.all_to_all_slowdown if micro_batches > 1 else 1.0


# What an instance names in `schedule.kernels.preset`; the sources of every figure are in docs/kernels.md.
_ENGINE = {
    "attention_launches": 20.0,
    "mlp_launches": 8.0,
    "gate_launches": 5.0,
    "expert_launches": 10.0,
    "separate_scores": True,
    "last_logits": True,
    "head_once": True,
}
PRESETS: Mapping[str, Mapping[Phase, Mapping[str, float]]] = {
    "plain": {"prefill": {}, "decode": {}},
    "deepep": {
        "prefill": {
            **_ENGINE,
            "all_to_all_us": 60.0,
            "all_to_all_nvlink": 0.7,
            "all_to_all_slowdown": 1.4,
            "communication_sms": 24.0,
            "expert_passes": 11.0,
        },
        "decode": {
            **_ENGINE,
            "all_to_all_us": 22.0,
            "all_to_all_nvlink": 0.7,
            "all_to_all_compute_us": 60.0,
            "attention_passes": 4.0,
            "staged": True,
        },
    },
}


def timing_of(instance: Instance, phase: Phase) -> Timing:
    """Return the preset that an instance names for a phase, with what it sets itself.

    Raises
    ------
    InputError
        What it sets contradicts the preset.
    """
    kernels = instance.schedule.kernels
    if kernels is None:
        return Timing()
    own = kernels.prefill if phase == "prefill" else kernels.decode
    set_here = {} if own is None else own.model_dump(exclude_none=True)
    try:
        return Timing(**{**PRESETS[kernels.preset][phase], **set_here})
    except UsageError as error:
        found, _, expected = str(error).partition(", expected ")
        raise InputError(Mistake(found, expected, f"schedule.kernels.{phase}")) from None
