"""A map for vLLM: one list of slots for all MoE layers, or one for each, read by our plug-in or by an open proposal."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from moe_placer.engines.layouts import ENGINES
from moe_placer.engines.plans.checks import Fault, Row, build_plan, check_row_count, refuse
from moe_placer.engines.plans.form import PlanForm, Start
from moe_placer.engines.plans.plan import Deployment, Plan
from moe_placer.files import parse_json

__all__ = ["VllmInitialMapForm", "VllmPlanForm", "across_nodes", "eplb_config", "parallel_flags"]

_EXPECTED = "a JSON list: the expert of each slot, or such a list for each MoE layer"


class VllmPlanForm(PlanForm):
    """The map as the released engine takes it through our plug-in (`moe_placer.engines.vllm_plugin`)."""

    name = "vllm-plan"
    what = "vLLM: plan for this package's plug-in, which the released engine loads"
    mtp = "vLLM keeps the map of a draft model apart, and the plug-in leaves that to the engine's own planner"
    consequences: ClassVar[Mapping[Fault, str]] = {
        "kind": "has no slot for that; the plug-in keeps the engine's own planner",
        "range": "would read past its tables; the plug-in keeps the engine's own planner",
        "slots": "has another number of slots; the plug-in keeps the engine's own planner",
        "missing": "would route its tokens to no slot; the plug-in keeps the engine's own planner",
    }

    def encode(self, plan: Plan, deployment: Deployment, mtp_layers: int = 0) -> bytes:
        """Return one row for every MoE layer."""
        del deployment, mtp_layers
        rows = (json.dumps(plan.flat(layer)) for layer in range(plan.layers))
        return ("[\n" + ",\n".join(rows) + "\n]\n").encode()

    def decode(self, raw: bytes, deployment: Deployment | None, file: Path) -> Plan:
        """Read one map for all MoE layers, or one for each."""
        content = parse_json(raw, _EXPECTED, file)
        if not isinstance(content, list) or not content:
            raise refuse("no list", _EXPECTED, "", file)
        nested = [isinstance(entry, list) for entry in content]
        if any(nested) and not all(nested):
            at = nested.index(False)
            raise refuse("a value among lists", "a list of slots for every MoE layer", f"[{at}]", file)
        layers = len(deployment.moe_layers) if deployment else 1
        if not any(nested):
            plan = self._build([content], [""], deployment, file)
            return Plan(plan.experts, plan.slots * layers)
        if deployment is not None:
            check_row_count(len(content), layers, "MoE layer", self.rules, "", file, "counts MoE layers only")
        for index, row in enumerate(content):
            if not row:
                raise refuse("an empty list", "the expert of each slot", f"[{index}]", file)
        return self._build(content, [f"[{index}]" for index in range(len(content))], deployment, file)

    def _build(
        self, content: Sequence[list[Any]], paths: Sequence[str], deployment: Deployment | None, file: Path
    ) -> Plan:
        rows = [Row(path, index, row) for index, (path, row) in enumerate(zip(paths, content, strict=True))]
        return build_plan(rows, deployment, self.rules, file, self.consequences)

    def start(self, plan: Plan, deployment: Deployment, file: Path) -> Start:
        """Return flags and environment of every node's process."""
        return Start(
            "vllm serve $MODEL",
            _balanced(deployment, {"num_redundant_experts": plan.redundant}),
            {"MOE_PLACER_VLLM_PLAN": str(file.resolve())},
        )

    def warnings(self, plan: Plan, deployment: Deployment) -> Sequence[str]:
        """Say when the plan takes effect, and what keeps the plug-in out."""
        del plan
        return (
            *across_nodes(deployment),
            "vLLM 0.33.0 reads no map file: install moe-placer beside vLLM on every node (pip install --no-deps "
            "moe-placer is enough), and if VLLM_PLUGINS is set, add moe_placer to it.",
            "The plan takes effect at the first rebalance, after a quarter of step_interval steps (750 of 3000); "
            "until then vLLM serves its own map.",
            "On ROCm vLLM skips a rebalance that gains less than 5%, so that the plan may never take effect there.",
        )


class VllmInitialMapForm(VllmPlanForm):
    """The same map as the open pull request #49572 reads it."""

    name = "vllm-initial-map"
    what = "vLLM with pull request #49572 (open): eplb_config.initial_expert_map_path"
    mtp = "the proposal says nothing of draft models"
    reader = "vLLM with pull request #49572 (open)"
    consequences: ClassVar[Mapping[Fault, str]] = {
        "kind": "with #49572 refuses it",
        "range": "with #49572 refuses it",
        "slots": "with #49572 refuses it",
        "missing": "with #49572 refuses it",
    }

    def start(self, plan: Plan, deployment: Deployment, file: Path) -> Start:
        """Return the flags of every node's process."""
        config = {"initial_expert_map_path": str(file.resolve()), "num_redundant_experts": plan.redundant}
        return Start("vllm serve $MODEL", _balanced(deployment, config))

    def warnings(self, plan: Plan, deployment: Deployment) -> Sequence[str]:
        """Say that no release reads it."""
        del plan
        return (
            *across_nodes(deployment),
            "Pull request #49572 is open: vLLM 0.33.0 does not know initial_expert_map_path. The same file works "
            "there with this package's plug-in (--format vllm-plan).",
        )


def eplb_config(content: dict[str, Any]) -> str:
    """Return the flag that carries EPLB's settings."""
    return f"--eplb-config {shlex.quote(json.dumps(content))}"


def parallel_flags(deployment: Deployment) -> tuple[str, ...]:
    """Return the flags of attention and expert parallelism that every node's process needs."""
    shards, per_node = deployment.attention_tp, deployment.gpus_per_node
    flags = [f"--data-parallel-size {deployment.attention_groups}"]
    if shards > 1:
        flags.insert(0, f"--tensor-parallel-size {shards}")
    if len(deployment.nodes) > 1 and per_node % shards == 0:
        local = per_node // shards
        flags += [
            f"--data-parallel-size-local {local}",
            f"--data-parallel-start-rank $((NODE_RANK * {local}))",
            "--data-parallel-address $HEAD --data-parallel-rpc-port 13345",
            "$([ $NODE_RANK = 0 ] || echo --headless)",
        ]
    return (*flags, "--enable-expert-parallel")


def across_nodes(deployment: Deployment) -> tuple[str, ...]:
    """Warn of attention that is shared beyond a node, which these flags do not start."""
    if len(deployment.nodes) == 1 or deployment.gpus_per_node % deployment.attention_tp == 0:
        return ()
    return (
        f"{deployment.attention_tp} GPUs share attention, {deployment.gpus_per_node} are on a node: vLLM starts that "
        "over nodes in other ways (Ray); keep rank r on GPU r of the plan.",
    )


def _backend(deployment: Deployment) -> tuple[str, ...]:
    """Return the all-to-all that sends tokens as the plan counts them; vLLM's own default does not depend on plans."""
    units = ENGINES["vllm"].dispatch
    return tuple(f"--all2all-backend {kernel}" for kernel, unit in units.items() if unit == deployment.dispatch)


def _balanced(deployment: Deployment, config: dict[str, Any]) -> tuple[str, ...]:
    return (*parallel_flags(deployment), *_backend(deployment), "--enable-eplb", eplb_config(config))
