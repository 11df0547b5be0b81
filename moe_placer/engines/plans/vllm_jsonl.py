"""The record that vLLM's open pull request #41141 reads: one JSON object on one line, MoE layers as string keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from moe_placer.engines.plans.checks import Fault, Row, build_plan, check_row_count, refuse
from moe_placer.engines.plans.form import PlanForm, Start
from moe_placer.engines.plans.plan import Deployment, Plan
from moe_placer.engines.plans.vllm import VllmInitialMapForm, across_nodes, eplb_config
from moe_placer.files import parse_json

__all__ = ["VllmJsonlForm"]

_TYPE = "eplb_initial_mapping"
_KEY = "initial_global_assignments"
_KEYS = {"record_type", "version", "num_redundant_experts", "num_slots", _KEY}
_EXPECTED = f'one line of JSON with "record_type": "{_TYPE}"'


class VllmJsonlForm(PlanForm):
    """The record of the proposal's first revision; later ones rename flags, not the record."""

    name = "vllm-jsonl"
    what = "vLLM with pull request #41141 (open): eplb_config.initial_mapping_path"
    reader = "vLLM with pull request #41141 (open)"
    mtp = "the proposal says nothing of draft models"
    consequences: ClassVar[Mapping[Fault, str]] = dict.fromkeys(
        ("kind", "range", "slots", "missing"), "with #41141 refuses it"
    )

    def encode(self, plan: Plan, deployment: Deployment, mtp_layers: int = 0) -> bytes:
        """Return the record."""
        del deployment, mtp_layers
        record = {
            "record_type": _TYPE,
            "version": 1,
            "num_redundant_experts": plan.redundant,
            "num_slots": plan.slots_by_layer[0],
            _KEY: {str(layer): plan.flat(layer) for layer in range(plan.layers)},
        }
        return (json.dumps(record) + "\n").encode()

    def decode(self, raw: bytes, deployment: Deployment | None, file: Path) -> Plan:
        """Read the record; its own counts must agree with what it holds."""
        record = _record(raw, file)
        table = record[_KEY]
        if deployment is not None:
            consequence = "with #41141 wants all of them"
            check_row_count(len(table), len(deployment.moe_layers), "MoE layer", self.rules, _KEY, file, consequence)
        rows = []
        for layer in range(len(table)):
            row = table.get(str(layer))
            if row is None:
                found = f"no key {str(layer)!r} among {len(table)}"
                raise refuse(found, "MoE layers counted from 0, dense ones left out", _KEY, file)
            if not isinstance(row, list) or not row:
                raise refuse("no list of slots", "the expert of each slot", f"{_KEY}.{layer}", file)
            rows.append(Row(f"{_KEY}.{layer}", layer, row))
        plan = build_plan(rows, deployment, self.rules, file, self.consequences)
        counts = {"num_slots": plan.slots_by_layer[0], "num_redundant_experts": plan.redundant}
        for key, held in counts.items():
            if record[key] != held or type(record[key]) is not int:
                raise refuse(str(record[key])[:40], f"{held}, as the lists have", key, file)
        return plan

    def start(self, plan: Plan, deployment: Deployment, file: Path) -> Start:
        """Return the flags of every node's process."""
        base = VllmInitialMapForm().start(plan, deployment, file)
        config = {
            "initial_mapping_path": str(file.resolve()),
            "disable_online_rebalancing": True,
            "num_redundant_experts": plan.redundant,
        }
        return Start(base.command, (*base.flags[:-1], eplb_config(config)))

    def warnings(self, plan: Plan, deployment: Deployment) -> Sequence[str]:
        """Say that no release reads it."""
        del plan
        return (
            *across_nodes(deployment),
            "Pull request #41141 is open: vLLM 0.33.0 does not know initial_mapping_path, and later revisions of it "
            "have renamed flags. The released engine takes --format vllm-plan.",
        )


def _record(raw: bytes, file: Path) -> dict[str, Any]:
    lines = [line for line in raw.splitlines() if line.strip()]
    if len(lines) != 1:
        raise refuse(f"{len(lines)} lines", _EXPECTED, "", file)
    record = parse_json(lines[0], _EXPECTED, file)
    if not isinstance(record, dict):
        raise refuse("no object", _EXPECTED, "", file)
    if record.get("record_type") != _TYPE:
        raise refuse(str(record.get("record_type"))[:60], _TYPE, "record_type", file)
    if record.get("version") != 1 or type(record["version"]) is not int:
        raise refuse(str(record.get("version"))[:60], "1", "version", file)
    for key in sorted(_KEYS - set(record)):
        raise refuse("nothing", "this key", key, file)
    for key in sorted(set(record) - _KEYS):
        raise refuse(f"the key {key[:60]!r}", "the five keys of the record alone", "", file)
    if not isinstance(record[_KEY], dict) or not record[_KEY]:
        raise refuse("no object of layers", "the slots of each MoE layer", _KEY, file)
    return record
