"""SGLang's ``--init-expert-location`` file: a row of slots for every decoder layer."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from moe_placer.engines.plans.checks import Fault, Row, build_plan, check_row_count, refuse
from moe_placer.engines.plans.form import PlanForm, Start, default_slots
from moe_placer.engines.plans.plan import Deployment, Plan
from moe_placer.engines.stored_tensors import Integers, StoredTensor
from moe_placer.engines.torch_file import TorchFile, read_torch_file
from moe_placer.files import parse_json

__all__ = ["SERVER", "SglangForm", "parallel_flags"]

SERVER = "python -m sglang.launch_server"

_ZIP = b"PK"  # how files of torch.save begin
_MOST_SLOTS = 10_000_000  # over all layers
_KEY = "physical_to_logical_map"
_EXPECTED = f'a JSON object {{"{_KEY}": [[expert of each slot] for each decoder layer]}}'


class SglangForm(PlanForm):
    """The file as the released engine reads it."""

    name = "sglang"
    what = "SGLang: --init-expert-location, all decoder layers"
    suffix = ".json"
    also_read = (".pt",)
    mtp = "SGLang gives draft layers its own map, whatever the file says: a row for one would load other weights"
    consequences: ClassVar[Mapping[Fault, str]] = {
        "kind": "stops with a TypeError that does not say where",
        "range": "takes -1 for the last expert without a word, and stops with an IndexError at ids too large",
        "slots": "divides by zero, or serves from slots that hold nothing",
        "missing": "stops with a ZeroDivisionError, or sends tokens of such an expert nowhere",
    }

    def encode(self, plan: Plan, deployment: Deployment, mtp_layers: int = 0) -> bytes:
        """Return the rows of all decoder layers; dense ones hold the engine's own map."""
        del mtp_layers
        dense = default_slots(deployment, plan.slots_by_layer[0])
        moe = {layer: plan.flat(index) for index, layer in enumerate(deployment.moe_layers)}
        rows = (json.dumps(moe.get(layer, dense)) for layer in range(deployment.decoder_layers))
        return ('{"' + _KEY + '": [\n' + ",\n".join(rows) + "\n]}\n").encode()

    def decode(self, raw: bytes, deployment: Deployment | None, file: Path) -> Plan:
        """Read the map; dense layers must be as sound as the others, since SGLang derives maps for them too."""
        content = _saved(file) if raw[:2] == _ZIP else parse_json(raw, _EXPECTED, file)
        rows = [Row(f"{_KEY}[{index}]", index, row) for index, row in enumerate(_rows(content, file))]
        if deployment is not None:
            moe = len(deployment.moe_layers)
            hint = f" ({moe} are MoE layers)" if len(rows) == moe != deployment.decoder_layers else ""
            consequence = f"accepts fewer and gives the wrong map to every layer{hint}"
            axis = "decoder layer, dense ones included"
            check_row_count(len(rows), deployment.decoder_layers, axis, self.rules, _KEY, file, consequence)
        moe_layers = deployment.moe_layers if deployment else None
        return build_plan(rows, deployment, self.rules, file, self.consequences, moe_layers)

    def start(self, plan: Plan, deployment: Deployment, file: Path) -> Start:
        """Return the flags of every node's process."""
        algorithm = "dynamic" if deployment.replica_routing == "sglang-dynamic" else "static"
        return Start(
            SERVER,
            (
                *parallel_flags(deployment),
                "--moe-a2a-backend deepep",
                f"--init-expert-location {shlex.quote(str(file.resolve()))}",
                f"--ep-num-redundant-experts {plan.redundant}",
                f"--ep-dispatch-algorithm {algorithm}",
            ),
        )

    def warnings(self, plan: Plan, deployment: Deployment) -> Sequence[str]:
        """Say that the map is fixed until a restart, and what would undo it."""
        del plan, deployment
        return (
            "SGLang changes the map only at a restart, or by its own planner: leave out --enable-eplb.",
            "Without an all-to-all backend (--moe-a2a-backend none) SGLang refuses --ep-dispatch-algorithm static, and "
            "placement does not change link loads.",
        )


def parallel_flags(deployment: Deployment) -> tuple[str, ...]:
    """Return the flags of nodes, of attention and of expert parallelism."""
    nodes, groups = len(deployment.nodes), deployment.attention_groups
    return (
        "--model-path $MODEL",
        *((f"--nnodes {nodes}", "--node-rank $NODE_RANK", "--dist-init-addr $HEAD:20000") if nodes > 1 else ()),
        f"--tp-size {deployment.ranks}",
        *((f"--attn-dp-size {groups}",) if groups > 1 else ()),
        f"--ep-size {deployment.ranks}",
    )


def _saved(file: Path) -> Any:
    """Return what torch.save wrote, its tensors as lists."""
    opened = read_torch_file(file)
    content = opened.content
    if not isinstance(content, dict):
        return content
    return {str(key): _listed(opened, value) for key, value in content.items()}


def _listed(opened: TorchFile, value: Any) -> Any:
    if isinstance(value, StoredTensor):
        if math.prod(value.shape) > _MOST_SLOTS:
            raise opened.wrong(f"a tensor of shape {list(value.shape)}")
        return opened.array(value).tolist()
    if isinstance(value, Integers):
        return value.to_list()
    if isinstance(value, list):
        return [_listed(opened, one) if isinstance(one, StoredTensor | Integers) else one for one in value]
    return value


def _rows(content: Any, file: Path) -> list[list[Any]]:
    if not isinstance(content, dict):
        raise refuse("no object at the top level", _EXPECTED, "", file)
    extra = sorted(set(content) - {_KEY})
    if _KEY not in content:
        found = "a load recording (logical_count)" if "logical_count" in content else "no such key"
        raise refuse(found, "the slots' experts; from loads SGLang plans itself", _KEY, file)
    if extra:
        names = ", ".join(repr(name[:60]) for name in extra[:5])
        expected = f"{_KEY} alone: SGLang 0.5.23 stops with a TypeError at any other key"
        raise refuse(f"also the key {names}", expected, "", file)
    rows = content[_KEY]
    if not isinstance(rows, list) or not rows:
        raise refuse("no list of layers", _EXPECTED, _KEY, file)
    for index, row in enumerate(rows):
        if not isinstance(row, list) or not row:
            raise refuse("no list of slots", "the expert of each slot", f"{_KEY}[{index}]", file)
    return rows
