"""A plug-in of vLLM's: serves a plan from a file, or replans at every rebalance, where the engine's own planner would.

vLLM 0.33.0 reads no map of experts, but asks a policy for one at every rebalance. `register` puts a policy in place of
the default one:

- with ``MOE_PLACER_VLLM_PLAN`` set to a plan (``moe-placer export --format vllm-plan``), one that answers with that;
- with ``MOE_PLACER_VLLM_INSTANCE`` set to an instance, one that replans what runs, within
  ``MOE_PLACER_VLLM_DEADLINE_S`` seconds and ``MOE_PLACER_VLLM_MAX_MOVES`` moves (with ``MOE_PLACER_VLLM_WORK`` as
  deterministic effort); a plan that is set, too, is the first.

Whatever does not fit the running model is logged, and left to the engine's own policy.

vLLM calls `register` in the engine's core and in every worker, through the entry-point group ``vllm.general_plugins``.
Nothing but the standard library is imported before, and nothing at all happens where no variable is set.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_placer.engines.slot_rows import mismatch, plan_rows

if TYPE_CHECKING:
    import torch

__all__ = ["INSTANCE", "PREFIX", "VARIABLE", "register"]

PREFIX = "MOE_PLACER_VLLM_"
VARIABLE = f"{PREFIX}PLAN"
INSTANCE = f"{PREFIX}INSTANCE"
_LOG = logging.getLogger("vllm.moe_placer")  # below vLLM's own logger, so that its settings apply


def register() -> None:
    """Replace vLLM's default policy by what the environment names; does nothing where it names nothing."""
    path, replans = os.environ.get(VARIABLE), bool(os.environ.get(INSTANCE))
    if not path and not replans:
        return
    rows: list[list[int]] = []
    if path and not replans:  # else the rank that plans reads it, for all ranks
        try:
            rows = plan_rows(Path(path).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            _LOG.error("%s=%s is not used: %s. vLLM's own policy stays.", VARIABLE, path, error)
            return
    variable = INSTANCE if replans else VARIABLE
    try:
        from vllm.distributed.eplb import policy
    except ImportError as error:
        _LOG.error("%s is not used: this vLLM has no EPLB policies (%s).", variable, error)
        return
    default = policy.EPLB_POLICIES.get("default")
    if default is None or not hasattr(default, "rebalance_experts"):
        _LOG.error("%s is not used: this vLLM has no default EPLB policy to replace.", variable)
        return
    if getattr(default, "moe_placer_plan", None) is not None:
        return  # vLLM may load plug-ins more than once in a process
    if replans:
        policy.EPLB_POLICIES["default"] = replan_policy(default)
        _LOG.info("EPLB policy: replanning for the instance %s.", os.environ[INSTANCE])
        return
    policy.EPLB_POLICIES["default"] = plan_policy(default, rows, str(path))
    _LOG.info("EPLB policy: the plan in %s (%d rows of %d slots).", path, len(rows), len(rows[0]))


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
            return _in_old_slots(rows, layers, num_ranks, old_global_expert_indices)

    return PlanPolicy


def _in_old_slots(rows: list[list[int]], layers: int, ranks: int, old: torch.Tensor | None) -> torch.Tensor:
    """Return the plan as a tensor; experts that are on a rank already keep their slots, as vLLM's own policy does."""
    import numpy as np

    from moe_placer.engines.old_slots import in_old_slots

    plan = np.array(rows if len(rows) == layers else rows * layers, dtype=np.int64)
    if old is not None and tuple(old.shape) == plan.shape:
        plan = in_old_slots(plan, ranks, old.cpu().numpy())
    return _tensor(plan)


def _tensor(rows: Any) -> torch.Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(rows, dtype=np.int64))  # a copy: the engine may write to it


def replan_policy(default: type[Any]) -> type[Any]:
    """Return a policy in which one rank replans what runs, and all ranks do what it says.

    Parameters
    ----------
    default : type
        vLLM's own policy.
    """

    class ReplanPolicy(default):  # type: ignore[misc]  # known only when vLLM is there
        moe_placer_plan = "replanned"
        moe_placer_planner = _Planner()

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
            old = old_global_expert_indices
            kind, rows = cls.moe_placer_planner.ask(weight, num_replicas, num_ranks, old)
            if kind == "plan":
                return _tensor(rows)
            if kind == "keep" and old is not None:
                return _tensor(old.cpu().numpy())
            answer: torch.Tensor = default.rebalance_experts(
                weight, num_replicas, num_groups, num_nodes, num_ranks, old
            )
            return answer

    return ReplanPolicy


class _Planner:
    """Asks the first rank of vLLM's EPLB group for a plan, and tells it to all."""

    def __init__(self) -> None:
        self._replanner: Any = None
        self._logged: set[str] = set()

    def ask(self, weight: torch.Tensor, slots: int, ranks: int, old: torch.Tensor | None) -> tuple[str, Any]:
        """Return what all ranks do (``plan``, ``keep``, ``default``), and the rows of a plan."""
        group = _eplb_group()
        if ranks > 1 and (group is None or group.world_size != ranks):
            found = "no group of ranks" if group is None else f"a group of {group.world_size} ranks"
            self._say(logging.ERROR, f"this vLLM has {found} for EPLB, expected one of {ranks}: its own policy decides")
            return "default", None
        plans = ranks == 1 or group.rank_in_group == 0
        answer = self._answer(weight, slots, ranks, old) if plans else None
        if ranks > 1:
            answer = group.broadcast_object(answer, src=0)
        kind, rows = answer or ("default", None)
        return kind, rows

    def _answer(self, weight: torch.Tensor, slots: int, ranks: int, old: torch.Tensor | None) -> tuple[str, Any]:
        """Plan, and log what came of it; it never fails, since other ranks wait for it."""
        try:
            from moe_placer.engines.vllm_replanning import Asked, Replanner, Settings
        except ImportError as error:
            self._say(logging.ERROR, f"EPLB is not replanned, vLLM's own policy decides: {error}.")
            return "default", None
        if self._replanner is None:
            self._replanner = Replanner(lambda: Settings.from_environment(os.environ, PREFIX))
        running = None if old is None else old.cpu().numpy()
        kind, reason, rows = self._replanner.answer(Asked(weight.cpu().numpy().astype(float), slots, ranks, running))
        if kind == "plan":
            changed = rows.size if running is None else int((rows != running).sum())
            _LOG.info("EPLB replanned: %d of %d slots take another expert.", changed, rows.size)
        else:
            follows = "what runs stays" if kind == "keep" else "vLLM's own policy decides"
            self._say(logging.WARNING, f"EPLB is not replanned, {follows}: {reason}.")
        return kind, rows

    def _say(self, level: int, text: str) -> None:
        """Log every reason once, not at every rebalance."""
        if text not in self._logged:
            self._logged.add(text)
            _LOG.log(level, "%s", text)


def _eplb_group() -> Any:
    """Return vLLM's group of the ranks that share experts; None where there is none."""
    try:
        from vllm.distributed import parallel_state
    except ImportError:
        return None
    for name in ("get_eplb_group", "get_ep_group"):  # the first one is EPLB's own, which its thread may use
        try:
            return getattr(parallel_state, name)()
        except (AttributeError, AssertionError):
            continue
    return None
