"""The section ``schedule.kernels`` of an instance file: what kernels charge beside FLOPs and bytes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moe_placer.instance.section import Section

__all__ = ["KernelParameters", "Kernels"]

Us = Annotated[float, Field(ge=0, le=1e6)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[float, Field(ge=0, le=1e6)]


class KernelParameters(Section):
    """Parameters that differ from the preset's; docs/kernels.md explains each."""

    kernel_us: Us | None = Field(None, description="Start of a kernel that computes.")
    collective_us: Us | None = Field(None, description="Start of a collective.")
    nvlink_step_us: Us | None = Field(None, description="One step over NVLink.")
    network_step_us: Us | None = Field(None, description="One message between nodes.")
    nvlink_utilization: Share | None = Field(None, description="Share of NVLink that collectives reach.")
    all_to_all_us: Us | None = Field(None, description="Start of a dispatch or combine; absent: collective_us.")
    all_to_all_nvlink: Share | None = Field(
        None, description="Share of NVLink that dispatch and combine reach; absent: nvlink_utilization."
    )
    all_to_all_slowdown: Annotated[float, Field(ge=1, le=1e6)] | None = Field(
        None, description="How many times as long dispatch and combine take beside computation."
    )
    all_to_all_compute_us: Us | None = Field(
        None, description="Compute stream of a GPU, for sending and receiving in each layer and micro-batch."
    )
    communication_sms: Count | None = Field(
        None, description="Multiprocessors that dispatch and combine take from computation beside them."
    )
    gpu_sms: Count | None = Field(None, description="Multiprocessors of a GPU.")
    attention_launches: Count | None = Field(None, description="Kernels of one attention.")
    mlp_launches: Count | None = Field(None, description="Kernels of one dense MLP or of the shared experts.")
    gate_launches: Count | None = Field(None, description="Kernels of one router.")
    expert_launches: Count | None = Field(
        None, description="Kernels of all experts of a GPU and layer; 0: one for each expert."
    )
    expert_passes: Count | None = Field(
        None, description="Bytes through memory around an expert's matrices, for each token and value."
    )
    attention_passes: Count | None = Field(
        None, description="Bytes through memory between the kernels of attention, for each token and value."
    )
    separate_scores: bool | None = Field(None, description="Whether scores and projections are kernels of their own.")
    last_logits: bool | None = Field(
        None, description="Whether the head works on the last token of every sequence only, in prefill."
    )
    head_once: bool | None = Field(
        None, description="Whether two micro-batches are joined before the head, which reads its weights once."
    )
    staged: bool | None = Field(
        None,
        description="Whether micro-batches keep to an engine's order of stages: dispatch beside shared experts, "
        "combine beside the other's attention, experts beside no all-to-all.",
    )


class Kernels(Section):
    """Which kernels a step runs with."""

    preset: Literal["plain", "deepep"] = Field(
        "plain",
        description="plain: one kernel per operation and NCCL's start of a collective; deepep: normal kernels of "
        "DeepEP in prefill, low-latency ones in decode, and the launches of an engine.",
    )
    prefill: KernelParameters | None = Field(None, description="What differs from the preset in prefill.")
    decode: KernelParameters | None = Field(None, description="What differs from the preset in decode.")
