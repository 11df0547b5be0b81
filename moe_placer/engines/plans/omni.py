"""OmniPlacement's pattern: a 0/1 array [ranks, MoE layers, experts]."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_placer.engines.plans.checks import check_row_count, refuse
from moe_placer.engines.plans.form import PlanForm, Start
from moe_placer.engines.plans.plan import Deployment, Plan
from moe_placer.engines.plans.vllm import across_nodes, parallel_flags
from moe_placer.traffic.readers import array_of_bytes

__all__ = ["OmniForm"]

_EXPECTED = "a .npy file of whole numbers 0 and 1, [ranks, MoE layers, experts]"
_DIMENSIONS = 3


class OmniForm(PlanForm):
    """Slots of a rank are in ascending order of experts, and no expert can be twice on a rank."""

    name = "omni"
    what = "OmniPlacement: pattern_path"
    mtp = "its pattern counts max_moe_layer_num layers of the model, and nothing is published of others"

    def encode(self, plan: Plan, deployment: Deployment, mtp_layers: int = 0) -> bytes:
        """Return the pattern as int32, as the engine's own files have it."""
        del deployment, mtp_layers
        pattern = np.zeros((plan.ranks, plan.layers, plan.experts), dtype=np.int32)
        for layer, ranks in enumerate(plan.slots):
            for rank, held in enumerate(ranks):
                pattern[rank, layer, list(held)] = 1
        stream = io.BytesIO()
        np.save(stream, pattern, allow_pickle=False)
        return stream.getvalue()

    def decode(self, raw: bytes, deployment: Deployment | None, file: Path) -> Plan:
        """Read the pattern."""
        pattern = _read(raw, file)
        ranks, layers, experts = pattern.shape
        if deployment is not None:
            why = "refuses any other shape than (world_size, max_moe_layer_num, num_experts)"
            if ranks != deployment.ranks:
                raise refuse(f"{ranks} ranks", f"{deployment.ranks}: {self.rules.label} {why}", "", file)
            check_row_count(layers, len(deployment.moe_layers), "MoE layer", self.rules, "", file, why)
            if experts != deployment.experts:
                raise refuse(f"{experts} experts", f"{deployment.experts}: {self.rules.label} {why}", "", file)
        wrong = np.argwhere((pattern != 0) & (pattern != 1))
        if len(wrong):
            rank, layer, expert = wrong[0].tolist()
            found = f"{pattern[rank, layer, expert]} for expert {expert} on rank {rank}"
            expected = f"0 or 1: {self.rules.label} adds these up to slot numbers"
            raise refuse(found, expected, f"layer {layer}", file)
        self._check_layers(pattern, deployment, file)
        slots = tuple(
            tuple(tuple(np.flatnonzero(pattern[rank, layer]).tolist()) for rank in range(ranks))
            for layer in range(layers)
        )
        return Plan(experts, slots)

    def _check_layers(self, pattern: npt.NDArray[np.int64], deployment: Deployment | None, file: Path) -> None:
        replicas = pattern.sum(axis=0)
        missing = np.argwhere(replicas == 0)
        if len(missing):
            layer, expert = missing[0].tolist()
            more = f" (and {len(missing) - 1} more such gaps)" if len(missing) > 1 else ""
            expected = f"every expert on some rank: {self.rules.label} has no weights for its tokens"
            raise refuse(f"no rank with expert {expert}{more}", expected, f"layer {layer}", file)
        if deployment is None or deployment.slots_by_layer is None:
            return
        for layer, (found, required) in enumerate(
            zip(replicas.sum(axis=1).tolist(), deployment.slots_by_layer, strict=True)
        ):
            if found != required:
                redundant = required - deployment.experts
                expected = f"{required} ({deployment.experts} experts and {redundant} redundant slots)"
                raise refuse(f"{found} ones", expected, f"layer {layer}", file)

    def start(self, plan: Plan, deployment: Deployment, file: Path) -> Start:
        """Return the settings; the engine wants all of them."""
        most = max(held.count(expert) for held in map(plan.flat, range(plan.layers)) for expert in set(held))
        config = {
            "pattern_path": str(file.resolve()),
            "max_moe_layer_num": plan.layers,
            "enable_dynamic": False,
            "max_redundant_per_expert": most,
            "max_redundant_per_rank": -(-plan.redundant // plan.ranks),
            "enable_rank_round_robin": True,
            "enable_dump": False,
            "dump_dir": "/tmp/omni_dump",  # noqa: S108 - a setting that the engine wants, and does not use here
        }
        additional = {"enable_omni_placement": True, "omni_placement_config": config}
        return Start(
            "vllm serve $MODEL",
            (
                *parallel_flags(deployment),
                f"--additional-config {shlex.quote(json.dumps(additional))}",
            ),
        )

    def warnings(self, plan: Plan, deployment: Deployment) -> Sequence[str]:
        """Say what its published code does not check."""
        uneven = any(len({len(held) for held in ranks}) > 1 for ranks in plan.slots)
        warnings = [
            *across_nodes(deployment),
            "OmniPlacement does not combine redundant experts with all-gather communication.",
        ]
        if uneven:
            warnings.append("Ranks hold different numbers of experts: OmniPlacement sizes weights by the largest.")
        return warnings


def _read(raw: bytes, file: Path) -> npt.NDArray[np.int64]:
    if raw[:2] == b"PK":
        raise refuse("an archive of arrays", _EXPECTED, "", file)
    try:
        array = array_of_bytes(raw)
    except (ValueError, OverflowError) as error:
        raise refuse(f"no array ({str(error).splitlines()[0][:80]})", _EXPECTED, "", file) from None
    if array.ndim != _DIMENSIONS or 0 in array.shape:
        raise refuse(f"an array of shape {array.shape}", _EXPECTED, "", file)
    if array.dtype.kind not in "iub":
        raise refuse(f"values of type {array.dtype}", f"{_EXPECTED}: OmniPlacement cuts fractions off", "", file)
    return array.astype(np.int64)
