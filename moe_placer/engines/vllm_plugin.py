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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_placer.engines.slot_rows import mismatch, plan_rows

if TYPE_CHECKING:
    import torch

    Decide = Callable[[torch.Tensor, int, int, torch.Tensor | None], Any]

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
        policy.EPLB_POLICIES["default"] = _policy(default, _Planner().decide)
        _LOG.info("EPLB policy: replanning for the instance %s.", os.environ[INSTANCE])
        return
    policy.EPLB_POLICIES["default"] = _policy(default, _Given(rows, str(path)).decide)
    _LOG.info("EPLB policy: the plan in %s (%d rows of %d slots).", path, len(rows), len(rows[0]))


def _policy(default: type[Any], decide: Decide) -> type[Any]:
    """Return vLLM's own policy, whose plan that of ``decide`` replaces where there is one.

    Parameters
    ----------
    default : type
        vLLM's own policy.
    decide : callable
        From weights [MoE layers, experts], slots, ranks and what runs, the slots' experts [MoE layers, slots]; None
        leaves them to ``default``.
    """

    class Policy(default):  # type: ignore[misc]  # known only when vLLM is there
        moe_placer_plan = decide

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
            found = decide(weight, num_replicas, num_ranks, old_global_expert_indices)
            if found is not None:
                return _tensor(found)
            answer: torch.Tensor = default.rebalance_experts(
                weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices
            )
            return answer

    return Policy


class _Once:
    """Logs every reason once, not at every rebalance."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, level: int, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            _LOG.log(level, "%s", text)


class _Given:
    """Answers with a plan wherever it fits: one row for all MoE layers, or one for each."""

    def __init__(self, rows: list[list[int]], path: str) -> None:
        self._rows, self._path, self._log = rows, path, _Once()

    def decide(self, weight: torch.Tensor, slots: int, ranks: int, old: torch.Tensor | None) -> Any:
        """Return the plan; experts that are on a rank already keep their slots, as vLLM's own policy does."""
        layers, experts = weight.shape
        reason = mismatch(self._rows, layers, experts, slots, ranks)
        if reason:
            self._log.say(
                logging.WARNING, f"The plan in {self._path} is not used, vLLM's own policy decides: {reason}."
            )
            return None
        from moe_placer.engines.old_slots import rows_in_old_slots

        self._log.say(logging.INFO, f"EPLB follows the plan in {self._path}.")
        return rows_in_old_slots(self._rows, layers, ranks, None if old is None else old.cpu().numpy())


def _tensor(rows: Any) -> torch.Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(rows, dtype=np.int64))  # a copy: the engine may write to it


class _Planner:
    """Asks the first rank of vLLM's EPLB group for a plan, and tells it to all."""

    def __init__(self) -> None:
        self._replanner: Any = None
        self._log = _Once()

    def decide(self, weight: torch.Tensor, slots: int, ranks: int, old: torch.Tensor | None) -> Any:
        """Return the plan of the rank that plans, or what runs where that stays."""
        kind, rows = self._ask(weight, slots, ranks, old)
        if kind == "keep" and old is not None:
            return old.cpu().numpy()
        return rows if kind == "plan" else None

    def _ask(self, weight: torch.Tensor, slots: int, ranks: int, old: torch.Tensor | None) -> tuple[str, Any]:
        """Return what all ranks do (``plan``, ``keep``, ``default``), and the rows of a plan."""
        group = _eplb_group()
        if ranks > 1 and (group is None or group.world_size != ranks):
            found = "no group of ranks" if group is None else f"a group of {group.world_size} ranks"
            self._log.say(
                logging.ERROR, f"this vLLM has {found} for EPLB, expected one of {ranks}: its own policy decides"
            )
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
            self._log.say(logging.ERROR, f"EPLB is not replanned, vLLM's own policy decides: {error}.")
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
            self._log.say(logging.WARNING, f"EPLB is not replanned, {follows}: {reason}.")
        return kind, rows


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
