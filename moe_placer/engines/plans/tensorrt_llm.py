"""TensorRT-LLM's load-balancer file: YAML with the slots of every MoE layer, under its index among all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from moe_placer.engines.plans.checks import Fault, Row, build_plan, refuse
from moe_placer.engines.plans.form import PlanForm, Start
from moe_placer.engines.plans.plan import Deployment, Plan
from moe_placer.errors import InputError, Mistake
from moe_placer.instance.yaml_reader import parse_yaml

__all__ = ["TrtllmForm"]

_KEY = "initial_global_assignments"
_KEYS = (_KEY, "num_slots", "layer_updates_per_iter")
_ARCHITECTURES = (
    "DeepseekV3/V32/V4, GlmMoeDsa, GptOss, KimiK25, Llama4, Mixtral, NemotronH, Qwen2Moe, Qwen3Moe, "
    "Qwen3_5Moe, Qwen3VLMoe"
)


class TrtllmForm(PlanForm):
    """A static plan (no weights move while serving)."""

    name = "trtllm"
    what = "TensorRT-LLM (WideEP): moe_config.load_balancer"
    consequences: ClassVar[Mapping[Fault, str]] = {
        "kind": "refuses it",
        "range": "stops in its C++ check",
        "slots": "refuses it",
        "missing": "does not look for it, and has no weights for its tokens",
    }

    def encode(self, plan: Plan, deployment: Deployment, mtp_layers: int = 0) -> bytes:
        """Return YAML; layers for multi-token prediction follow the model's, with the engine's own map."""
        slots = plan.slots_by_layer[0]
        rows = {layer: plan.flat(index) for index, layer in enumerate(deployment.moe_layers)}
        own = _own_map(deployment, slots)
        rows |= {deployment.decoder_layers + index: own for index in range(mtp_layers)}
        lines = [f"  {layer}: [{', '.join(map(str, row))}]" for layer, row in rows.items()]
        head = [f"{_KEY}:", *lines, f"num_slots: {slots}", "layer_updates_per_iter: 0"]
        return ("\n".join(head) + "\n").encode()

    def decode(self, raw: bytes, deployment: Deployment | None, file: Path) -> Plan:
        """Read the slots of the model's MoE layers; those of later layers are checked and left out."""
        content = _content(raw, file)
        table: dict[Any, Any] = content[_KEY]
        for key, row in table.items():
            if type(key) is not int or key < 0:
                raise refuse(f"the key {str(key)[:40]!r}", "a layer's index, unquoted", _KEY, file)
            if not isinstance(row, list) or not row:
                raise refuse("no list of slots", "the expert of each slot", f"{_KEY}.{key}", file)
        layers = sorted(table)
        if deployment is not None:
            _check_layers(layers, deployment, self.rules.label, file)
        rows = [Row(f"{_KEY}.{layer}", layer, table[layer]) for layer in layers]
        moe = None if deployment is None else [layers.index(layer) for layer in deployment.moe_layers]
        plan = build_plan(rows, deployment, self.rules, file, self.consequences, moe)
        if content["num_slots"] != plan.slots_by_layer[0] or type(content["num_slots"]) is not int:
            found, held = str(content["num_slots"])[:40], plan.slots_by_layer[0]
            raise refuse(found, f"{held}, as the lists have: {self.rules.label} refuses others", "num_slots", file)
        return plan

    def start(self, plan: Plan, deployment: Deployment, file: Path) -> Start:
        """Return the options file that names the plan, and the flags."""
        del plan
        config = f"enable_attention_dp: true\nmoe_config:\n  backend: WIDEEP\n  load_balancer: {file.resolve()}\n"
        flags = (
            f"--tp_size {deployment.ranks}",
            f"--ep_size {deployment.ranks}",
            "--extra_llm_api_options options.yaml",
        )
        return Start("trtllm-llmapi-launch trtllm-serve $MODEL", flags, config=config)

    def warnings(self, plan: Plan, deployment: Deployment) -> Sequence[str]:
        """Say when the engine ignores the file without a word."""
        del plan
        shared = (
            f"parallelism.attention_tp is {deployment.attention_tp}: with attention DP, which the file needs, every "
            "GPU runs attention on its own.",
        )
        return (
            *(shared if deployment.attention_tp > 1 else ()),
            "TensorRT-LLM ignores the file without a word unless moe_expert_parallel_size > 1, moe_cluster_size <= 1, "
            f"attention DP is on, and it knows the model's architecture ({_ARCHITECTURES}).",
            "With multi-token prediction it looks for those layers too, and stops with a KeyError: --mtp-layers N adds "
            "them.",
        )


def _own_map(deployment: Deployment, slots: int) -> list[int]:
    """Return the engine's own map: rank r starts at expert r * experts // ranks."""
    ranks, experts = deployment.ranks, deployment.experts
    each = slots // ranks
    return [(rank * experts // ranks + slot) % experts for rank in range(ranks) for slot in range(each)]


def _content(raw: bytes, file: Path) -> dict[Any, Any]:
    document = parse_yaml(raw, file, "TensorRT-LLM's load-balancer file")
    if document.mistakes:
        raise InputError(document.mistakes)
    content = document.data
    if not isinstance(content, dict):
        raise refuse("no mapping at the top level", f"the keys {', '.join(_KEYS)}", "", file)
    for key in content:
        if key not in _KEYS:
            expected = f"{', '.join(_KEYS)} alone: TensorRT-LLM refuses any other key"
            raise refuse(f"the key {str(key)[:60]!r}", expected, "", file)
    for key in _KEYS[:2]:
        if key not in content:
            raise refuse("nothing", "this key", key, file)
    if content.get("layer_updates_per_iter", 0) != 0 or type(content.get("layer_updates_per_iter", 0)) is not int:
        found = str(content["layer_updates_per_iter"])[:40]
        expected = "0: with updates TensorRT-LLM soon replaces the plan by its own"
        raise refuse(found, expected, "layer_updates_per_iter", file)
    if not isinstance(content[_KEY], dict) or not content[_KEY]:
        raise refuse("no mapping of layers", "the slots of each MoE layer", _KEY, file)
    return content


def _check_layers(layers: Sequence[int], deployment: Deployment, label: str, file: Path) -> None:
    missing = sorted(set(deployment.moe_layers) - set(layers))
    dense = sorted(layer for layer in set(layers) - set(deployment.moe_layers) if layer < deployment.decoder_layers)
    mistakes = []
    if missing:
        found = f"no slots for {len(missing)} MoE layers, the first of them layer {missing[0]}"
        expected = (
            f"all {len(deployment.moe_layers)}, under their index among decoder layers: {label} stops with a KeyError"
        )
        mistakes.append(Mistake(found, expected, _KEY, file))
    if dense:
        found = f"slots for layer {dense[0]}, a dense one"
        expected = "MoE layers only (keys count dense layers too: is the numbering shifted?)"
        mistakes.append(Mistake(found, expected, _KEY, file))
    if mistakes:
        raise InputError(mistakes)
