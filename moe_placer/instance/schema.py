"""The fields of an instance file, with their defaults and limits; `moe-placer schema` prints them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveFloat, Tag

from moe_placer.instance.fabric_section import (
    MAX_NODES,
    AnyFabric,
    Dragonfly,
    FatTree,
    FullMesh,
    RailPods,
    ThreeLevelTree,
)
from moe_placer.instance.gpu_presets import NAMES
from moe_placer.instance.kernel_section import KernelParameters, Kernels
from moe_placer.instance.model_section import Dtypes, Gqa, Mha, Mla, Model
from moe_placer.instance.section import Dtype, ListOf, Section

__all__ = [
    "MAX_NODES",
    "AnyTraffic",
    "Cluster",
    "Dragonfly",
    "Dtype",
    "Dtypes",
    "Engine",
    "FatTree",
    "FullMesh",
    "Gpu",
    "Gqa",
    "KernelParameters",
    "Kernels",
    "LoadTraffic",
    "Mha",
    "Mla",
    "Model",
    "Nics",
    "Objective",
    "Parallelism",
    "Pin",
    "Placement",
    "RailPods",
    "RedundantSlots",
    "Schedule",
    "Section",
    "SharedSlots",
    "Shares",
    "SyntheticTraffic",
    "ThreeLevelTree",
    "TraceTraffic",
]

Engine = Literal["sglang", "vllm", "trtllm"]

MAX_GPUS = 16_384
# Control and direction characters, for patterns of names: those that `moe_placer.errors.visible` spells out.
ACTS = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"


class Gpu(Section):
    """One GPU; all are alike unless ``cluster.gpu_memory_gb`` says otherwise."""

    name: str = Field(
        "GPU", min_length=1, max_length=100, pattern=f"^[^{ACTS}]*$", description="What `inspect` calls it."
    )
    memory_gb: PositiveFloat = Field(le=100_000, description="GB (1e9 bytes).")
    peak_tflops: PositiveFloat = Field(400.0, le=1e6, description="Dense peak at the model's precision, TFLOP/s.")
    dtype_tflops: dict[Dtype, Annotated[PositiveFloat, Field(le=1e6)]] = Field(
        default_factory=dict,
        description="Dense peaks by dtype, TFLOP/s, for models whose parts differ (model.dtypes); a dtype that is not "
        "there runs as the next wider one, and peak_tflops serves where there is none.",
    )
    mfu: float = Field(0.60, gt=0, le=1, description="Share of the peak that is reached.")
    memory_bandwidth_tb_per_s: PositiveFloat = Field(1.8, le=1e4)
    memory_utilization: float = Field(0.80, gt=0, le=1)


class Nics(Section):
    """A node's network cards, and which of them receives a copy of a token (docs/nics.md)."""

    per_node: int = Field(ge=1, le=1024, description="NICs of a node; GPUs share them evenly, in order.")
    gb_per_s: PositiveFloat = Field(le=1e6, description="One NIC, one direction, GB/s.")
    receive: Literal["shared", "source-rail", "destination-gpu"] = Field(
        "shared",
        description="shared: a node's NICs are one pipe; source-rail: a copy arrives at the NIC of the same index as "
        "the one that it left by; destination-gpu: at a NIC of the GPU that holds the replica.",
    )


def _or_preset(schema: dict[str, Any]) -> None:
    """Let editors offer the names of GPUs, which are replaced before a file is checked."""
    section = {key: schema.pop(key) for key in ("$ref", "allOf") if key in schema}
    schema["anyOf"] = [section, {"enum": list(NAMES)}]
    schema["description"] = (
        "One GPU, or the name of one whose data sheet gives memory, peaks and NVLink (docs/nics.md)."
    )


class Cluster(Section):
    """The machines; global GPU id = node * gpus_per_node + index in the node."""

    nodes: int = Field(ge=1, le=MAX_NODES)
    gpus_per_node: int = Field(ge=1, le=256)
    gpu: Gpu = Field(json_schema_extra=_or_preset)
    gpu_memory_gb: dict[Annotated[int, Field(ge=0)], Annotated[PositiveFloat, Field(le=100_000)]] = Field(
        default_factory=dict,
        max_length=MAX_GPUS,
        description="Memory of single GPUs that differ: {global GPU id: GB}.",
    )
    nvlink_gb_per_s: PositiveFloat = Field(450.0, le=1e6, description="Per GPU, one direction, GB/s.")
    nvlink_domain_nodes: int | None = Field(
        None,
        ge=1,
        le=MAX_NODES,
        description="Nodes in a row that NVLink joins, as in an NVL72 rack; absent: each alone.",
    )
    fabric: AnyFabric
    nics: Nics | None = Field(None, description="Absent: a node's NICs are one pipe of fabric.node_gb_per_s.")

    @property
    def receives_by_gpu(self) -> bool:
        """Whether copies arrive at the NIC of the expert's GPU, so that which GPU of a node that is counts."""
        return self.nics is not None and self.nics.receive == "destination-gpu"

    @property
    def ports(self) -> int:
        """Groups of a node's GPUs that have NICs of their own; a group has one GPU or one NIC."""
        return 1 if self.nics is None else min(self.nics.per_node, self.gpus_per_node)

    def joined(self, source: int, target: int) -> bool:
        """Whether NVLink joins two nodes, so that what one sends the other leaves no NVLink domain."""
        each = self.nvlink_domain_nodes or 1
        return source // each == target // each

    @property
    def rails(self) -> int:
        """Leaves of a pod of rails, to each of which every node has a link; 1 where the fabric has no rails."""
        if not isinstance(self.fabric, RailPods):
            return 1
        return self.fabric.rails or (self.gpus_per_node if self.nics is None else self.nics.per_node)


def _or_auto(schema: dict[str, Any]) -> None:
    """Let editors offer the word that is replaced by a number when a file is read."""
    number = {key: schema.pop(key) for key in ("type", "minimum", "maximum")}
    schema["anyOf"] = [number, {"const": "auto"}]


class Parallelism(Section):
    """How attention and dense layers are parallelised, and experts sharded and grouped."""

    dp: int = Field(
        1, ge=1, le=MAX_GPUS, description="Data-parallel groups; group r: nodes [r*nodes/dp, (r+1)*nodes/dp)."
    )
    attention_tp: int = Field(1, ge=1, le=MAX_GPUS, description="GPUs that share attention, dense MLPs and embeddings.")
    expert_tp: int = Field(
        1,
        ge=1,
        le=256,
        description="GPUs of one node that share one expert, a slot on each; auto, in a file: the fewest with which "
        "slots and memory hold all replicas.",
        json_schema_extra=_or_auto,
    )


class RedundantSlots(Section):
    """A budget of extra replicas, per layer, on top of one replica of every expert."""

    redundant_slots: int = Field(ge=0, le=65_536)


class SharedSlots(Section):
    """A budget of extra replicas that all MoE layers share, on top of one replica of every expert in each of them."""

    redundant_slots_in_all: int = Field(ge=0, le=65_536_000, description="Over all MoE layers together, at most.")


def _replicas_branch(value: Any) -> str:
    if isinstance(value, SharedSlots) or (isinstance(value, dict) and "redundant_slots_in_all" in value):
        return "shared"
    return "budget" if isinstance(value, dict | RedundantSlots) else "dp"


Replicas = Annotated[
    Annotated[Literal["dp"], Tag("dp")]
    | Annotated[RedundantSlots, Tag("budget")]
    | Annotated[SharedSlots, Tag("shared")],
    Discriminator(_replicas_branch),
]


class Pin(Section):
    """A replica that stays where it is."""

    layer: int = Field(ge=0, description="Index of the layer in the model, dense layers counted.")
    expert: int = Field(ge=0)
    replica: int = Field(0, ge=0)
    gpu: int = Field(ge=0, description="Global GPU id.")


class Placement(Section):
    """What a placement must respect."""

    slots_per_gpu: int = Field(1, ge=1, le=256, description="Experts of one layer that a GPU may hold.")
    replicas: Replicas = Field(
        "dp",
        description="dp: one replica of every expert per DP group; or {redundant_slots: n}, in every layer; or "
        "{redundant_slots_in_all: n}, over all layers.",
    )
    replica_routing: Literal[
        "group",
        "even",
        "trtllm-round-robin",
        "vllm-hash",
        "vllm-ascend",
        "nearest",
        "sglang-static",
        "sglang-dynamic",
    ] = Field(
        "group",
        description="By which rule a token picks one of an expert's replicas: that of its DP group, any with equal "
        "chance, one of the nearest, or as an engine does (docs/replica-choice.md).",
    )
    replicas_apart: Literal["gpu", "node", "none"] = Field(
        "gpu",
        description="Where replicas of one expert never meet; none: two may share a GPU, as plans of engines do "
        "(solvers put them apart all the same).",
    )
    survives: Literal["none", "gpu", "node", "leaf"] = Field(
        "none",
        description="Every expert keeps a replica when any one GPU, node or leaf switch with its nodes fails: no such "
        "part holds all replicas of an expert (docs/replanning.md).",
    )
    dispatch: Literal["per-expert", "per-gpu", "per-node"] = Field(
        "per-expert",
        description="What a token is sent once for, between nodes: every chosen expert, every GPU or every node that "
        "holds any of them (inside a node the copy is forwarded).",
    )
    dispatch_dtype: Dtype | None = Field(
        None,
        description="Of tokens on the way to experts; fp8 has a float32 scale for every 128 values beside them, fp4 a "
        "byte for every 16. Absent: model.dtype, without scales.",
    )
    combine_dtype: Dtype | None = Field(None, description="Of results on the way back, likewise.")
    failed_gpus: ListOf[Annotated[int, Field(ge=0)]] = Field((), max_length=MAX_GPUS)
    drained_gpus: ListOf[Annotated[int, Field(ge=0)]] = Field(
        (),
        max_length=MAX_GPUS,
        description="Those of failed_gpus that still work: they send what they hold to others, and take nothing.",
    )
    pinned: ListOf[Pin] = ()
    kv_cache_gb: float = Field(0.0, ge=0, le=100_000, description="GB per GPU that must stay free for the KV cache.")

    @property
    def draws_evenly(self) -> bool:
        """Whether a token takes any replica of an expert with equal chance, wherever it starts."""
        return self.replica_routing in {"even", "trtllm-round-robin"}

    @property
    def numbers_replicas(self) -> bool:
        """Whether an engine's rule numbers an expert's replicas by GPU, and picks one by its number."""
        return self.replica_routing in {"vllm-hash", "vllm-ascend"}

    @property
    def prefers_near(self) -> bool:
        """Whether which replica of an expert a token takes depends on where the others are."""
        return self.replica_routing in {"nearest", "sglang-static", "sglang-dynamic"}

    @property
    def counts_tokens_once(self) -> bool:
        """Whether a token goes once to a place that may hold several of its experts, so that costs are not linear.

        Where GPUs hold one expert each, one copy per GPU is one per chosen expert.
        """
        return self.dispatch == "per-node" or (self.dispatch == "per-gpu" and self.slots_per_gpu > 1)


class _Traffic(Section):
    tokens_per_gpu: PositiveFloat = Field(1024, le=1e9, description="Tokens that start on each GPU in one step.")


class SyntheticTraffic(_Traffic):
    """Seeded tokens with the skew and structure of real routing (see ``moe_placer.traffic.synthetic``)."""

    kind: Literal["synthetic"]
    seed: int = Field(0, ge=0, le=2**63 - 1)


class _RecordedTraffic(_Traffic):
    files: ListOf[Annotated[str, Field(min_length=1)]] = Field(
        (), max_length=1000, description="One per domain, relative to this file; or given as --trace."
    )
    mix: ListOf[ListOf[Annotated[float, Field(ge=0, le=1)]]] | None = Field(
        None, description="Per node: the share of its tokens from each file; absent: every node alike."
    )
    sources: Literal["mix", "recorded"] = Field(
        "mix",
        description="mix: nodes have tokens as mix says; recorded: each node's tokens are like those of its own ranks "
        "in the one file, as `moe-placer import` keeps them (source_load, token_source).",
    )


class TraceTraffic(_RecordedTraffic):
    """Recorded routing: .npz files with ``topk`` [tokens, MoE layers, top_k], or tables of tokens (docs/files.md)."""

    kind: Literal["trace"]
    sample_tokens: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="Whole tokens to keep of each recording at most, drawn with equal chances; absent: all.",
    )


class LoadTraffic(_RecordedTraffic):
    """Recorded expert loads: .npz (``load``), .npy or .csv with counts [MoE layers, experts]."""

    kind: Literal["load"]


class Objective(Section):
    """How the cost of a link is measured, and what is minimised."""

    metric: Literal["time", "tokens"] = Field(
        "time", description="time: tokens over bandwidth; tokens: every inter-node link counts alike."
    )
    minimise: Literal["layers", "layer-time", "aggregate"] = Field(
        "layers",
        description="layers: the sum over layers of each one's busiest link, for layers that run one after the other; "
        "layer-time: the sum over layers of dispatch, slowest GPU and combine; "
        "aggregate: the largest total of any link over all layers, for schedules that overlap layers.",
    )
    scenarios: Literal["mix", "recordings", "windows"] = Field(
        "mix",
        description="mix: tokens are like the recordings mixed as traffic.mix says; recordings: each recording is a "
        "scenario, in which all nodes' tokens are like it; windows: so is each of some windows of time, in which "
        "recordings are mixed as traffic.mix says (docs/uncertainty.md).",
    )
    windows: int | None = Field(
        None,
        ge=2,
        le=64,
        description="With scenarios: windows, into how many parts of equal length recordings are cut, in the order of "
        "their tokens.",
    )
    take: Literal["worst", "mean"] = Field(
        "worst",
        description="What a layer counts of scenarios: the busiest link of the worst, or the mean over all of them.",
    )
    sigmas: float = Field(
        0.0, ge=0, le=100, description="With take: mean, how many standard deviations over scenarios are added."
    )


class Shares(Section):
    """Parts of a mean GPU's time in one step; together 1."""

    computation: float = Field(ge=0, le=1)
    communication: float = Field(ge=0, le=1, description="What no computation hides.")
    synchronization: float = Field(ge=0, le=1, description="Waiting for others.")
    overhead: float = Field(ge=0, le=1, description="Starting what runs.")


class Schedule(Section):
    """What is expected of a step; it changes no placement, and not the instance's hash."""

    planned_shares: Shares | None = Field(
        None,
        description="Where a deployment plan says that the time of a step goes: `schedule` and `sweep` then say "
        "whether the simulated step is within 5 percentage points of it.",
    )
    kernels: Kernels | None = Field(
        None, description="What kernels charge beside FLOPs and bytes (docs/kernels.md); absent: preset plain."
    )


AnyTraffic = Annotated[SyntheticTraffic | TraceTraffic | LoadTraffic, Field(discriminator="kind")]
