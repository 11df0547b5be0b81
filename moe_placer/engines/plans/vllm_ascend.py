"""vllm-ascend's static expert map: MoE layers, devices of each, experts of each device."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from moe_placer.engines.plans.checks import Fault, Row, build_plan, check_row_count, refuse
from moe_placer.engines.plans.form import PlanForm, Start
from moe_placer.engines.plans.plan import Deployment, Plan
from moe_placer.engines.plans.vllm import across_nodes, parallel_flags
from moe_placer.files import parse_json

__all__ = ["VllmAscendForm"]

_EXPECTED = 'a JSON object {"moe_layer_count": ..., "layer_list": [...]}'
_LAYER = ("layer_id", "device_count", "device_list")
_DEVICE = ("device_id", "device_expert")


class VllmAscendForm(PlanForm):
    """Read by position: the order of devices is the order of ranks, whatever their ids say."""

    name = "vllm-ascend"
    what = "vllm-ascend, Model Runner V1: eplb_config.expert_map_path (deprecated)"
    suffix = ".json"
    mtp = "vllm-ascend gives the layer after the last one of the file its own map, and refuses further ones"
    consequences: ClassVar[Mapping[Fault, str]] = {
        "kind": "stops with a TypeError, or cuts fractions off",
        "range": "takes -1 for the last expert without a word, and stops with an IndexError at ids too large",
        "slots": "stops where lists differ in length, or allocates other slots than the file has",
        "missing": "shifts the map of all experts behind it",
        "twice": "counts that rank's slots once for each expert, and shifts the ids of all ranks",
    }

    def encode(self, plan: Plan, deployment: Deployment, mtp_layers: int = 0) -> bytes:
        """Return the map, indented as the engine's own recorder writes it."""
        del deployment, mtp_layers
        layers = [
            {
                "layer_id": layer,
                "device_count": plan.ranks,
                "device_list": [
                    {"device_id": rank, "device_expert": list(held)} for rank, held in enumerate(plan.slots[layer])
                ],
            }
            for layer in range(plan.layers)
        ]
        return (json.dumps({"moe_layer_count": plan.layers, "layer_list": layers}, indent=4) + "\n").encode()

    def decode(self, raw: bytes, deployment: Deployment | None, file: Path) -> Plan:
        """Read the map; ids must agree with positions, since the engine goes by these."""
        content = parse_json(raw, _EXPECTED, file)
        _require(content, ("moe_layer_count", "layer_list"), "", file)
        layers = content["layer_list"]
        if not isinstance(layers, list) or not layers:
            raise refuse("no list of layers", _EXPECTED, "layer_list", file)
        _agree(content["moe_layer_count"], len(layers), "layers in layer_list", "moe_layer_count", file)
        if deployment is not None:
            consequence = "gives layers that the file lacks its own map, or refuses them"
            check_row_count(
                len(layers), len(deployment.moe_layers), "MoE layer", self.rules, "layer_list", file, consequence
            )
        ranks = deployment.ranks if deployment else _count(layers[0])
        rows = [_row(index, layer, ranks, file) for index, layer in enumerate(layers)]
        return build_plan(rows, deployment, self.rules, file, self.consequences, ranks=ranks)

    def start(self, plan: Plan, deployment: Deployment, file: Path) -> Start:
        """Return the flags of every node's process."""
        config = {"expert_map_path": str(file.resolve()), "num_redundant_experts": plan.redundant}
        return Start(
            "vllm serve $MODEL",
            (*parallel_flags(deployment), f"--additional-config {shlex.quote(json.dumps({'eplb_config': config}))}"),
        )

    def warnings(self, plan: Plan, deployment: Deployment) -> Sequence[str]:
        """Say that this way ends soon, and where it does not lead."""
        del plan
        return (
            *across_nodes(deployment),
            "vllm-ascend 0.23.0.post1 says that static expert maps will be removed in 0.25.1.",
            "Model Runner V2 ignores the file without a word; its planner is vLLM's (--format vllm-plan).",
            "Compare answers before you rely on it: a public audit found that checkpoint loading keeps another map "
            "than the file's (not reproduced here, since that needs NPUs).",
        )


def _require(content: Any, keys: Sequence[str], path: str, file: Path) -> None:
    """Refuse what is not an object of just these keys."""
    if not isinstance(content, dict):
        raise refuse("no object", f"an object with {', '.join(keys)}", path, file)
    for key in keys:
        if key not in content:
            raise refuse("nothing", "this key", f"{path}.{key}".lstrip("."), file)
    for key in content:
        if key not in keys:
            raise refuse(f"the key {key[:60]!r}", f"{', '.join(keys)} alone", path, file)


def _agree(found: object, required: int, what: str, path: str, file: Path) -> None:
    if found != required or type(found) is not int:
        raise refuse(str(found)[:40], f"{required}, the {what}", path, file)


def _count(layer: Any) -> int:
    devices = layer.get("device_list") if isinstance(layer, dict) else None
    return max(1, len(devices)) if isinstance(devices, list) else 1


def _row(index: int, layer: Any, ranks: int, file: Path) -> Row:
    """Return one layer's slots, rank after rank."""
    path = f"layer_list[{index}]"
    _require(layer, _LAYER, path, file)
    _agree(layer["layer_id"], index, "layer's position, by which vllm-ascend goes", f"{path}.layer_id", file)
    devices = layer["device_list"]
    if not isinstance(devices, list) or len(devices) != ranks:
        found = f"{len(devices)} devices" if isinstance(devices, list) else "no list of devices"
        raise refuse(found, f"{ranks}, one for every rank", f"{path}.device_list", file)
    _agree(layer["device_count"], ranks, "devices in device_list", f"{path}.device_count", file)
    slots: list[Any] = []
    each = None
    for rank, device in enumerate(devices):
        here = f"{path}.device_list[{rank}]"
        _require(device, _DEVICE, here, file)
        _agree(device["device_id"], rank, "device's position, by which vllm-ascend goes", f"{here}.device_id", file)
        held = device["device_expert"]
        if not isinstance(held, list) or not held:
            raise refuse("no list of experts", "the expert of each slot", f"{here}.device_expert", file)
        each = len(held) if each is None else each
        if len(held) != each:
            expected = f"{each}, as on device 0: vllm-ascend reads a rectangular tensor"
            raise refuse(f"{len(held)} experts", expected, f"{here}.device_expert", file)
        slots += held
    return Row(path, index, slots)
