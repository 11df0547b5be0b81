"""What ``schedule --json``, ``sweep --json`` and ``compare --json`` print."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from moe_placer.cli.results.documented import InstanceName, documented
from moe_placer.schedule.coarse_network import Sharing
from moe_placer.schedule.explain import Explanation
from moe_placer.schedule.timing import Timing

__all__ = ["CompareResult", "ScheduleResult", "SweepResult"]


@documented
class WorkloadOfStep(TypedDict):
    """The workload of the simulated step."""

    phase: Literal["prefill", "decode"]
    """Sequences that start, or that each go on by a token."""
    tokens_per_gpu: float
    """Tokens that start on each GPU."""
    context: float
    """Tokens of a sequence (prefill), or that each token attends to (decode)."""
    micro_batches: int
    """1, or 2 that overlap."""


@documented
class MemoryOfStep(TypedDict):
    """Bytes on each GPU."""

    weights: list[float]
    """Of experts and whatever else is resident."""
    kv_cache: list[float]
    """Of the sequences of the step."""
    kv_reserved: list[float]
    """What the instance reserves for the KV cache."""
    activations: list[float]
    """At their most."""
    size: list[float]
    """Of the GPU's memory."""
    fits: bool
    """Whether all GPUs hold it."""


@documented
class CriticalOperation(TypedDict):
    """An operation that nothing but the one before it kept from starting earlier."""

    operation: str
    """Name in the DAG."""
    kind: str
    """What it is."""
    formula: str
    """Name of the formula of its time."""
    micro_batch: int
    """Which half of the tokens."""
    start_us: float
    """Start, from the start of the step."""
    end_us: float
    """End."""


@documented
class ExpertInLayer(TypedDict):
    """An expert of a layer."""

    layer: int
    """Index in the model, dense layers counted."""
    expert: int
    """Expert."""


@documented
class ReplicaAdvised(TypedDict):
    """A further replica of an expert."""

    layer: int
    """Index in the model, dense layers counted."""
    expert: int
    """Expert."""
    gpu: int
    """Global GPU id of a free slot for it."""


@documented
class AdviceGiven(TypedDict):
    """Further replicas, and what they bring."""

    latency_us: float
    """Of the step with them."""
    saved_us: float | None
    """What that is below the step without them; null where that cannot run."""
    fits: bool
    """Whether memory holds them."""
    copies: list[ReplicaAdvised]
    """The further replicas."""


@documented
class WhatIfAnswered(TypedDict):
    """The step if hardware is slow or fails."""

    slow_gpus: dict[str, float]
    """GPU to the factor by which it takes longer."""
    slow_links: dict[str, float]
    """Link to the share of its bandwidth that is left."""
    failed_gpus: list[int]
    """GPUs that fail."""
    runs: bool
    """Whether the step can run."""
    lost_experts: list[ExpertInLayer]
    """Experts that have no other replica."""
    stranded_groups: list[list[int]]
    """Tensor-parallel groups of GPUs of which none is left."""
    latency_us: float | None
    """Of the step; null where it cannot run."""
    later_us: float | None
    """What that is above the step without the trouble, likewise."""
    later_share: float | None
    """The same as a share of it, likewise."""
    fits: bool
    """Whether memory holds it."""
    assumed_slots_per_gpu: int
    """Slots that the advice assumes on each GPU."""
    slots_full: bool
    """Whether no slot is free, so that the advice assumes one more per GPU."""
    copies: list[AdviceGiven]
    """Further replicas that would help, best first."""


@documented
class TargetAnswered(TypedDict):
    """A target of `--require`, and how the step stands to it."""

    target: Literal["mfu", "bandwidth", "links", "shares", "latency", "throughput", "memory"]
    """Its name."""
    unit: str
    """Of what is asked and what came out: share, ms, or tokens/s per GPU."""
    asked: list[float]
    """One value; of shares, computation, communication, synchronization and overhead."""
    got: list[float]
    """What came out, likewise."""
    ok: bool
    """Whether it holds; where one does not, the exit code is 6."""
    limiter: str
    """What limits it most, in a sentence."""
    limits: dict[str, float]
    """What limits it, the largest first: shares of what could be used; of the critical path (latency, throughput);
    of the GPU's memory (memory); distances from what was asked (shares)."""


@documented
class ScheduleResult(TypedDict):
    """What `moe-placer schedule --json` prints."""

    schema: Literal["moe-placer/schedule/1"]
    """Name and version of this schema."""
    instance: InstanceName
    """The instance."""
    placed_by: str
    """The placement's solver."""
    workload: WorkloadOfStep
    """The workload of the step."""
    timing: Timing
    """What hardware charges beside FLOPs and bytes."""
    sharing: Sharing
    """When links were shared out anew (`--sharing`)."""
    not_rederived: list[Literal["bounds"]]
    """What the placement file states and this command took no look at; `verify` does."""
    latency_us: float
    """Of the step, in microseconds."""
    layer_us: list[float]
    """Microseconds of each layer, as far as it is on the critical path."""
    tokens: float
    """Tokens of the step on all GPUs."""
    tokens_per_s: float
    """Tokens per second on all GPUs."""
    tokens_per_s_per_gpu: float
    """Tokens per second and GPU."""
    mfu: float
    """Share of the GPUs' peak FLOPs that is used."""
    communication_us: float
    """Microseconds of communication."""
    shares: dict[str, float]
    """Kind of work to its share of the step."""
    planned_shares: dict[str, float] | None
    """What the instance expects of these; null where it says nothing."""
    plan_holds: bool | None
    """Whether the shares are as planned, likewise."""
    links: dict[str, float]
    """Inter-node link to its utilization over the step."""
    busiest_link: str
    """The one with the highest; empty where there is none."""
    memory_bytes: MemoryOfStep
    """Bytes on each GPU."""
    formulas: dict[str, str]
    """Formula of times, by name; the parameters in them are those of `timing` and of `hardware`."""
    hardware: dict[str, float]
    """What the instance states of GPUs, NVLink and links, as the formulas name it."""
    critical_path: list[CriticalOperation]
    """From start to end of the step."""
    explained: NotRequired[Explanation]
    """Where the time of the operation of `--explain` comes from."""
    what_if: NotRequired[WhatIfAnswered]
    """Where a what-if was asked."""
    required: NotRequired[list[TargetAnswered]]
    """Where targets were asked, in that order."""


@documented
class SweepPoint(TypedDict):
    """One simulated step."""

    schema: Literal["moe-placer/sweep/1"]
    """Name and version of this schema."""
    sweep: str
    """Name of the sweep."""
    plan: str
    """The placement's name here."""
    instance: str
    """The instance's name."""
    instance_sha256: str
    """Its hash."""
    placed_by: str
    """The placement's solver."""
    total_z: float
    """Sum over layers of the cost of the busiest link, for the instance's own tokens and fabric."""
    dispatch_us: float
    """Microseconds of all layers' dispatch in turn, one way, for the same."""
    gpus: int
    """GPUs in all."""
    expert_parallelism: int
    """GPUs that hold all experts of a layer between them."""
    slots_per_gpu: int
    """Experts of one layer on a GPU, at most."""
    phase: Literal["prefill", "decode"]
    """As in the workload of `schedule`."""
    tokens_per_gpu: float
    """Likewise."""
    context: float
    """Likewise."""
    micro_batches: int
    """Likewise."""
    sharing: Sharing
    """When links were shared out anew (`--sharing`)."""
    fabric: str
    """Kind of network."""
    oversubscription: float | None
    """Of its fat tree; null for other networks."""
    dispatch: str
    """What a token is sent once for."""
    receive: str
    """Which of a node's NICs receives a copy."""
    latency_us: float
    """Of the step, in microseconds."""
    tokens_per_s_per_gpu: float
    """Tokens per second and GPU."""
    mfu: float
    """Share of the GPUs' peak FLOPs that is used."""
    communication_us: float
    """Microseconds of communication."""
    shares: dict[str, float]
    """Kind of work to its share of the step."""
    planned_shares: dict[str, float] | None
    """What the instance expects of these; null where it says nothing."""
    busiest_link: str
    """Inter-node link with the highest utilization; empty where there is none."""
    busiest_link_utilization: float
    """That."""
    weights_bytes: float
    """Weights on the fullest GPU."""
    high_water_bytes: float
    """The most that is in its memory at a time."""
    memory_bytes: float
    """Its memory."""
    fits: bool
    """Whether all GPUs hold it."""
    most_tokens_per_gpu: float | None
    """The most tokens per GPU that all GPUs hold; null for no limit."""


@documented
class SweepResult(TypedDict):
    """What `moe-placer sweep --json` prints."""

    schema: Literal["moe-placer/sweep/1"]
    """Name and version of this schema."""
    answers: list[str]
    """Which plan is faster from which batch on, and what memory holds, in sentences."""
    points: list[SweepPoint]
    """Every simulated step."""
    complete: bool
    """False where it was interrupted."""


@documented
class RunFigures(TypedDict):
    """A placement's figures on one traffic; docs/comparing.md defines them."""

    z_total: float
    """Sum over layers of the cost of the busiest link."""
    z_largest: float
    """The largest of a layer."""
    inter_node_tokens: float
    """Tokens that leave their node."""
    busiest_gpu_tokens: float
    """Sum over layers of the tokens of the busiest GPU."""
    gpu_balancedness: float
    """Mean over largest load of GPUs, as a mean over layers: 1 is even."""
    communication_us: float
    """Microseconds of all layers' dispatch in turn, one way."""
    step_us: float | None
    """Of a simulated step; null where that took too long."""


@documented
class RunCompared(TypedDict):
    """One run of a solver on an instance; its whole row is in `results.jsonl`, under the same `key`."""

    key: str
    """Hash of everything that the run depends on."""
    instance: str
    """Name of the instance."""
    solver: str
    """Name of the method."""
    seed: int
    """Of its random generator."""
    status: str
    """`ok`, or how it failed."""
    reason: str | None
    """Why it is not ok."""
    seconds: float | None
    """Of the run."""
    gap_median: float | None
    """Median over layers of the gap to the re-checkable bound; null where half of them have none."""
    gap_largest: float | None
    """The largest; null where a layer has none."""
    moves: int | None
    """Replicas that GPUs must load, coming from the current plan; null where there is none to compare with."""
    solved_for: RunFigures | None
    """On the traffic that was solved for; null unless the status is ok."""
    held_out: RunFigures | None
    """On traffic that was not seen; null where none was given."""


@documented
class CompareResult(TypedDict):
    """What `moe-placer compare --json` prints."""

    schema: Literal["moe-placer/compare/1"]
    """Name and version of this schema."""
    folder: str
    """Where rows and page are."""
    complete: bool
    """False where it was interrupted; the same command continues."""
    runs: list[RunCompared]
    """Every run that has ended."""
    files: list[str]
    """What was written."""
