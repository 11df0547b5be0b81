"""What inference engines demand of a deployment, whichever file carries the plan to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["ENGINES", "EngineName", "EngineRules", "ReplicaRouting", "slots_mistake"]

EngineName = Literal["sglang", "vllm", "trtllm", "vllm-ascend", "omni"]
ReplicaRouting = Literal["even", "near-first", "source-fixed"]


@dataclass(frozen=True)
class EngineRules:
    """One engine's rules about experts, slots and replicas.

    Attributes
    ----------
    name : str
        As in the instance's ``engine`` and on the command line.
    title, version : str
        As messages name the engine, and the release that these rules were read from.
    ranks_word, slots_word : str
        What the engine calls the number of GPUs that share the experts, and the number of slots of a layer.
    equal_slots : bool
        Every GPU has slots / GPUs slots, so that the slots must be a multiple of the GPUs.
    enforced : str
        How the engine insists on that, after "and".
    one_count : bool
        All layers have the same number of slots.
    twice_on_a_gpu : bool
        Two replicas of one expert on one GPU are loaded rightly (a wasted slot) rather than served wrongly.
    replica_routing : str
        ``even``: a token takes any replica with equal chance; ``near-first``: the replica on its own GPU, then the
        first on its own node, else one of the rest; ``source-fixed``: one replica for each source rank.
    replica_rule : str
        The same in the engine's own terms.
    routing_rule : str
        The name by which instances have it, and ``evaluate --routing`` counts it; empty where neither does.
    other_rules : tuple of str
        Such names of rules that the engine follows when started so, as the files' start notes then say.
    dispatch : dict of str
        How often a token is sent, by all-to-all backend: ``per-expert``, ``per-node``, or ``everywhere`` for
        all-gather, where placement does not change link loads. Empty where it is not known.
    """

    name: EngineName
    title: str
    version: str
    slots_word: str
    replica_routing: ReplicaRouting
    replica_rule: str
    routing_rule: str = ""
    other_rules: tuple[str, ...] = ()
    enforced: str = "requires it"
    ranks_word: str = "ep_size"
    equal_slots: bool = True
    one_count: bool = True
    twice_on_a_gpu: bool = True
    dispatch: dict[str, str] = field(default_factory=dict)

    def follows(self, rule: str) -> bool:
        """Whether the engine can pick replicas by a rule that an instance names."""
        return rule in {self.routing_rule, *self.other_rules} or (
            self.replica_routing == "even" and rule in {"even", "trtllm-round-robin"}
        )

    @property
    def label(self) -> str:
        """Title and version, for messages."""
        return f"{self.title} {self.version}"


_DEEPEP = {"deepep normal": "per-node", "deepep low_latency": "per-expert", "none (all-gather)": "everywhere"}

ENGINES: dict[str, EngineRules] = {
    rules.name: rules
    for rules in (
        EngineRules(
            name="sglang",
            title="SGLang",
            version="0.5.23",
            slots_word="num_physical_experts",
            enforced="asserts it at start",
            replica_routing="near-first",
            replica_rule=(
                "with an all-to-all backend (dispatch algorithm static): the replica on the token's own GPU, else the "
                "first on its own node, else one for each source rank, drawn once (_fair_choices, seed 42); without "
                "one: token row modulo replicas"
            ),
            routing_rule="sglang-static",
            other_rules=("sglang-dynamic",),
            dispatch=_DEEPEP,
        ),
        EngineRules(
            name="vllm",
            title="vLLM",
            version="0.33.0",
            slots_word="num_physical_experts",
            replica_routing="even",
            replica_rule="a hash of the token's index in its rank's batch, modulo replicas; blind to the source",
            routing_rule="vllm-hash",
            dispatch={
                "deepep_high_throughput": "per-node",
                "deepep_low_latency": "per-expert",
                "allgather_reducescatter": "everywhere",
            },
        ),
        EngineRules(
            name="trtllm",
            title="TensorRT-LLM",
            version="main of September 2026",
            ranks_word="moe_ep_size",
            slots_word="num_slots",
            replica_routing="even",
            replica_rule="round robin over an expert's replicas (moe_load_balance_routing), optionally offset by rank",
            routing_rule="trtllm-round-robin",
        ),
        EngineRules(
            name="vllm-ascend",
            title="vllm-ascend",
            version="0.23.0.post1",
            slots_word="num_experts + num_redundant_experts",
            enforced="reads its map as a rectangular tensor",
            twice_on_a_gpu=False,
            replica_routing="source-fixed",
            replica_rule="replicas listed by rank: ep_rank modulo replicas, or (tp_rank + dp_rank + expert) modulo "
            "replicas",
            routing_rule="vllm-ascend",
        ),
        EngineRules(
            name="omni",
            title="OmniPlacement",
            version="mid 2026",
            ranks_word="world_size",
            slots_word="the pattern's ones in a layer",
            enforced="",
            equal_slots=False,  # its files state nothing of the kind
            one_count=False,
            twice_on_a_gpu=False,
            replica_routing="source-fixed",
            replica_rule="the replica on the token's own GPU, else replica number rank modulo replicas",
        ),
    )
}


def slots_mistake(rules: EngineRules, experts: int, slots: int, gpus: int) -> tuple[str, str] | None:
    """Say why an engine cannot share out a layer's slots, as (found, expected); None where it can.

    Parameters
    ----------
    rules : EngineRules
    experts, slots, gpus : int
        Logical experts of a layer, slots of it with all replicas, and GPUs (expert-parallel ranks).
    """
    if not rules.equal_slots or slots % gpus == 0:
        return None
    extra = [total - experts for total in (slots // gpus * gpus, -(-slots // gpus) * gpus) if total >= experts]
    found = (
        f"{experts} experts + {slots - experts} redundant slots = {slots} slots on {gpus} GPUs, {slots / gpus:g} each"
    )
    nearest = " or ".join(f"{count} ({(experts + count) // gpus} slots on each GPU)" for count in extra)
    why = f"{rules.label} gives every GPU as many slots ({rules.slots_word} % {rules.ranks_word} == 0)"
    return found, f"{nearest} redundant slots: {why}, and {rules.enforced}"
