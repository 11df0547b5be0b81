"""How each engine's file lays out a plan; what the engine demands of a deployment is in `moe_placer.instance`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moe_placer.instance.engine_rules import ENGINES, EngineName, EngineRules, slots_mistake

__all__ = ["ENGINES", "LAYOUTS", "EngineName", "EngineRules", "FileLayout", "LayerAxis", "slots_mistake"]

LayerAxis = Literal["decoder-layers", "moe-ordinals", "decoder-index-keys"]


@dataclass(frozen=True)
class FileLayout:
    """How a file names layers and orders slots.

    In all engines flat slot p is local slot p % P of rank p // P, with P slots on each rank, and ranks of one node are
    consecutive.

    Attributes
    ----------
    engine : str
        Key of `ENGINES`.
    layers : str
        ``decoder-layers``: one row for every decoder layer, dense ones filled with ``slot % experts``;
        ``moe-ordinals``: one row for every MoE layer, counted from 0; ``decoder-index-keys``: a mapping whose keys are
        the MoE layers' indices among all decoder layers.
    ascending : bool
        A rank's slots are in ascending order of experts, whatever order the plan has.
    """

    engine: EngineName
    layers: LayerAxis
    ascending: bool = False


LAYOUTS: dict[str, FileLayout] = {
    "sglang": FileLayout("sglang", "decoder-layers"),
    "vllm-plan": FileLayout("vllm", "moe-ordinals"),
    "vllm-initial-map": FileLayout("vllm", "moe-ordinals"),
    "vllm-jsonl": FileLayout("vllm", "moe-ordinals"),
    "trtllm": FileLayout("trtllm", "decoder-index-keys"),
    "vllm-ascend": FileLayout("vllm-ascend", "moe-ordinals"),
    "omni": FileLayout("omni", "moe-ordinals", ascending=True),
}
