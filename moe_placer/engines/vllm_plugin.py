"""A plug-in of vLLM's: serves a plan from a file where the engine's own planner would make one.

vLLM 0.33.0 reads no map of experts, but asks a policy for one at every rebalance. With ``MOE_PLACER_VLLM_PLAN`` set to
a plan (``moe-placer export --format vllm-plan``), `register` puts a policy in place of the default one that answers
with that plan. Whatever does not fit the running model is logged, and left to the engine's own policy.

vLLM calls `register` in the engine's core and in every worker, through the entry-point group ``vllm.general_plugins``.
Nothing but the standard library is imported before, and nothing at all happens where the variable is not set.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["VARIABLE", "plan_rows", "register"]

VARIABLE = "MOE_PLACER_VLLM_PLAN"
_LOG = logging.getLogger("vllm.moe_placer")  # below vLLM's own logger, so that its settings apply


def register() -> None:
    """Replace vLLM's default policy by the plan that the environment names; does nothing where it names none."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        rows = plan_rows(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        _LOG.error("%s=%s is not used: %s. vLLM's own policy stays.", VARIABLE, path, error)
        return
    try:
        from vllm.distributed.eplb import policy
    except ImportError as error:
        _LOG.error("%s is not used: this vLLM has no EPLB policies (%s).", VARIABLE, error)
        return
    default = policy.EPLB_POLICIES.get("default")
    if default is None or not hasattr(default, "rebalance_experts"):
        _LOG.error("%s is not used: this vLLM has no default EPLB policy to replace.", VARIABLE)
        return
    if getattr(default, "moe_placer_plan", None) is not None:
        return  # vLLM may load plug-ins more than once in a process
    policy.EPLB_POLICIES["default"] = plan_policy(default, rows, path)
    _LOG.info("EPLB policy: the plan in %s (%d rows of %d slots).", path, len(rows), len(rows[0]))


def plan_rows(raw: bytes) -> list[list[int]]:
    """Return the rows of a plan: one for all MoE layers, or one for each.

    Raises
    ------
    ValueError
        It is not a list of whole numbers, or a list of such lists of one length.
    """
    content = json.loads(raw)
    rows = content if isinstance(content, list) and content and isinstance(content[0], list) else [content]
    for row in rows:
        if not isinstance(row, list) or not row or not all(type(entry) is int for entry in row):
            raise ValueError("it holds something other than lists of whole numbers")
        if len(row) != len(rows[0]):
            raise ValueError("its rows differ in length")
    return rows


def plan_policy(default: type[Any], rows: list[list[int]], path: str) -> type[Any]:
    """Return a policy that answers with the plan wherever it fits, and else as ``default`` does.

    Parameters
    ----------
    default : type
        vLLM's own policy.
    rows : list of lists
        The plan: one row for all MoE layers, or one for each.
    path : str
        Where it is from, for the log.
    """

    class PlanPolicy(default):  # type: ignore[misc]  # known only when vLLM is there
        moe_placer_plan = rows
        moe_placer_logged: set[str] = set()  # noqa: RUF012 - of this class, so that every reason is logged once

        @classmethod
        def rebalance_experts(
            cls,
            weight: torch.Tensor,
            num_replicas: int,
            num_groups: int,
            num_nodes: int,
            num_ranks: int,
            old_global_expert_indices: torch.Tensor | None = None,
        ) -> torch.Tensor:
            layers, experts = weight.shape
            reason = mismatch(rows, layers, experts, num_replicas, num_ranks)
            if reason:
                if reason not in cls.moe_placer_logged:
                    cls.moe_placer_logged.add(reason)
                    _LOG.warning("The plan in %s is not used, vLLM's own policy decides: %s.", path, reason)
                answer: torch.Tensor = default.rebalance_experts(
                    weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices
                )
                return answer
            if "used" not in cls.moe_placer_logged:
                cls.moe_placer_logged.add("used")
                _LOG.info("EPLB follows the plan in %s.", path)
            return _in_old_slots(default, rows, layers, num_ranks, old_global_expert_indices)

    return PlanPolicy


def mismatch(rows: list[list[int]], layers: int, experts: int, slots: int, ranks: int) -> str:
    """Say why a plan does not fit what vLLM asks for; empty where it does.

    Parameters
    ----------
    rows : list of lists
    layers, experts, slots, ranks : int
        MoE layers, logical experts, physical experts, expert-parallel ranks.
    """
    if len(rows) not in (1, layers):
        return f"it has {len(rows)} rows, and the model {layers} MoE layers"
    if len(rows[0]) != slots:
        return f"it has {len(rows[0])} slots in a layer, and vLLM {slots} physical experts"
    if slots % ranks:
        return f"{slots} slots are no multiple of {ranks} ranks"
    for layer, row in enumerate(rows):
        if min(row) < 0 or max(row) >= experts:
            return f"row {layer} names an expert that is not among 0 to {experts - 1}"
        if len(set(row)) != experts:
            return f"row {layer} lacks {experts - len(set(row))} of {experts} experts"
    return ""


def _in_old_slots(
    default: type[Any], rows: list[list[int]], layers: int, ranks: int, old: torch.Tensor | None
) -> torch.Tensor:
    """Return the plan as a tensor; experts that are on a rank already keep their slots, as vLLM's own policy does."""
    import numpy as np
    import torch

    plan = np.array(rows if len(rows) == layers else rows * layers, dtype=np.int64)
    preserve = getattr(default, "preserve_intragpu_slots", None)
    if old is not None and preserve is not None and tuple(old.shape) == plan.shape:
        plan = preserve(plan, ranks, old.cpu().numpy())
    return torch.from_numpy(np.ascontiguousarray(plan))
