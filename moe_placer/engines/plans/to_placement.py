"""From an engine's slots back to a placement that states what `verify` recomputes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from moe_placer.bounds.bounds import Bound, best_bound, even_weights, relaxed_bound
from moe_placer.bounds.largest import largest
from moe_placer.engines.plans.plan import Deployment, Plan
from moe_placer.errors import VerificationError
from moe_placer.instance import Instance
from moe_placer.placement import (
    SCHEMA,
    InstanceKey,
    LayerRecord,
    Placement,
    SolverRecord,
)
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.result import LayerResult, Stop
from moe_placer.solve.assemble import state_aggregate, state_layer
from moe_placer.solve.by_nearness import costs_as_served
from moe_placer.solve.gpu_assignment import pack
from moe_placer.solve.numbered import in_gpu_order
from moe_placer.solve.registry import installed_version
from moe_placer.traffic import Traffic
from moe_placer.verifier import Verification, verify

__all__ = ["placement_from_plan"]


def placement_from_plan(
    instance: Instance, traffic: Traffic, plan: Plan, deployment: Deployment, form: str, raw: bytes
) -> tuple[Placement, Verification]:
    """Return a plan as a placement with recomputed figures, and what the verifier says of it.

    Replicas of an expert are in the order of their ranks, since engines' files do not number them.

    Parameters
    ----------
    instance, traffic
        What the figures are computed for.
    plan : Plan
    deployment : Deployment
        Of the instance.
    form : str
        Format of the file that the plan is from.
    raw : bytes
        The file, for its SHA-256.

    Raises
    ------
    VerificationError
        The plan breaks constraints of the instance; all are listed.
    """
    gpu = plan.gpus(deployment)
    blank = tuple(LayerRecord(layer=layer, z=0, bound=0, proof="solver") for layer in instance.moe_layers)
    placement = Placement(
        schema=SCHEMA,
        instance=InstanceKey(name=instance.name, sha256=instance.sha256, traffic_sha256=traffic.sha256),
        solver=SolverRecord(
            name=f"file:{form}",
            version=installed_version("moe-placer"),
            seed=0,
            parameters={"file_sha256": hashlib.sha256(raw).hexdigest()},
        ),
        gpu=gpu,
        layers=blank,
    )
    first = verify(instance, placement, traffic)
    figures = {"z", "worst-link"}  # of the blank records
    broken = [violation for violation in first.violations if violation.rule not in figures]
    if broken:
        shown = "\n".join(map(str, broken[:20])) + (f"\n... and {len(broken) - 20} more" if len(broken) > 20 else "")
        apart = all(one.rule == "apart" for one in broken) and instance.placement.replicas_apart == "gpu"
        hint = "\nplacement.replicas_apart: none lets replicas of one expert share a GPU" if apart else ""
        raise VerificationError(f"the plan breaks rules of the instance:\n{shown}{hint}", [one.rule for one in broken])
    problem = compile_problem(instance, traffic)
    results = [_result(problem, index, gpus) for index, gpus in enumerate(gpu)]
    costs = None if problem.near is None else costs_as_served(problem, results, pack(problem, results))
    records = tuple(
        state_layer(problem, index, result, None if costs is None else costs[index])
        for index, result in enumerate(results)
    )
    stated = placement.model_copy(update={"layers": records, "aggregate": state_aggregate(problem, results, costs)})
    verification = verify(instance, stated, traffic)
    if not verification.ok:
        raise VerificationError(f"the recomputed figures do not hold: {verification.violations[0]}")
    return stated, verification


def _result(problem: Problem, index: int, gpus: Sequence[Sequence[int]]) -> LayerResult:
    """Return a layer with its quick bound: from even weights over each kind of link, without a linear program."""
    replicas = np.array([len(of_expert) for of_expert in gpus])
    layer = problem.layer(index, replicas)
    pairs = zip(layer.expert.tolist(), layer.replica.tolist(), strict=True)
    gpu = np.array([gpus[expert][replica] for expert, replica in pairs])
    node = gpu // problem.gpus_per_node
    if problem.near is not None:
        return LayerResult(node, layer.z(node), relaxed_bound(layer), Stop.FINISHED, gpu=gpu, replicas=replicas)
    bounds = [best_bound(layer, weights) for weights in even_weights(layer)]
    bound = largest([*bounds, Bound(0.0, "solver")])
    return in_gpu_order(problem, index, LayerResult(node, layer.z(node), bound, Stop.FINISHED, replicas=replicas))
