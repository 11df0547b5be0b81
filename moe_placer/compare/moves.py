"""How far a placement is from the plan that runs today."""

from __future__ import annotations

from collections import Counter

from moe_placer.errors import MoePlacerError
from moe_placer.instance import Instance
from moe_placer.packing import pack
from moe_placer.placement import Placement
from moe_placer.problem import compile_problem
from moe_placer.registry import find_solver
from moe_placer.solver import Limits
from moe_placer.traffic import Traffic

__all__ = ["count_moves", "current_plan"]

Plan = list[Counter[tuple[int, int]]]  # per MoE layer, how often an expert is on a GPU


def current_plan(instance: Instance, traffic: Traffic) -> Plan | None:
    """Return what runs without a map, the contiguous plan; None where it cannot serve the instance."""
    problem, method = compile_problem(instance, traffic), find_solver("contiguous")
    if method.refuses(problem):
        return None
    results = method.solve(problem, Limits(), 0, None, lambda _index, _result: None)
    if any(result.node is None for result in results):
        return None
    try:
        packed = pack(problem, results)
    except MoePlacerError:
        return None
    plan = []
    for index, result in enumerate(results):
        expert, _ = problem.items(index, result.copies)
        pairs = zip(expert.tolist(), packed[index], strict=True)
        plan.append(Counter((e, gpu) for e, gpus in pairs for gpu in gpus))
    return plan


def count_moves(placement: Placement, plan: Plan | None) -> int | None:
    """Count the replicas (shards, where experts are sharded) that a GPU must load: it has no such expert today."""
    if plan is None:
        return None
    return sum((_held(placement, layer) - before).total() for layer, before in enumerate(plan))


def _held(placement: Placement, layer: int) -> Counter[tuple[int, int]]:
    experts = range(len(placement.gpu[layer]))
    return Counter((e, gpu) for e in experts for copy in placement.shards(layer, e) for gpu in copy)
