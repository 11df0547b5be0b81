"""The plan that runs today, and how many replicas a placement moves from it."""

from __future__ import annotations

from collections import Counter

from moe_placer.errors import InputError, Mistake, MoePlacerError
from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import compile_problem
from moe_placer.solve.gpu_assignment import pack
from moe_placer.solve.registry import find_solver
from moe_placer.traffic import Traffic

__all__ = ["check_plan", "contiguous_plan", "count_moves", "plan_of"]

Plan = list[Counter[tuple[int, int]]]  # per MoE layer, how often an expert is on a GPU


def contiguous_plan(instance: Instance, traffic: Traffic) -> Plan | None:
    """Return the plan that engines run without a map; None where it cannot serve the instance."""
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
        expert, _ = problem.items(index, result.replicas)
        pairs = zip(expert.tolist(), packed[index], strict=True)
        plan.append(Counter((e, gpu) for e, gpus in pairs for gpu in gpus))
    return plan


def plan_of(placement: Placement) -> Plan:
    """Return the GPUs of every replica of a placement."""
    return [_held(placement, layer) for layer in range(len(placement.gpu))]


def check_plan(instance: Instance, placement: Placement) -> None:
    """Refuse a current plan of other layers, experts or GPUs; replicas and slots may be others than the instance's.

    Raises
    ------
    InputError
        It is not a plan for this model on this cluster.
    """
    rows = len(instance.moe_layers)
    if len(placement.gpu) != rows:
        raise InputError(Mistake(f"a current plan of {len(placement.gpu)} MoE layers", f"{rows}", instance.name))
    for layer, experts in zip(instance.moe_layers, placement.gpu, strict=True):
        found = f"a current plan of {len(experts)} experts in layer {layer}"
        if len(experts) != instance.model.experts:
            raise InputError(Mistake(found, f"{instance.model.experts}", instance.name))
    gpus = [gpu for held in plan_of(placement) for _, gpu in held]
    if not gpus:
        raise InputError(Mistake("a current plan without any replica", "what GPUs hold", instance.name))
    last = max(gpus)
    if last >= instance.gpus:
        raise InputError(Mistake(f"a current plan on GPU {last}", f"GPUs 0 to {instance.gpus - 1}", instance.name))


def count_moves(placement: Placement, plan: Plan | None) -> int | None:
    """Count the replicas (shards, where experts are sharded) that a GPU must load: it has no such expert today."""
    if plan is None:
        return None
    return sum((held - before).total() for held, before in zip(plan_of(placement), plan, strict=True))


def _held(placement: Placement, layer: int) -> Counter[tuple[int, int]]:
    experts = range(len(placement.gpu[layer]))
    return Counter((e, gpu) for e in experts for replica in placement.shards(layer, e) for gpu in replica)
