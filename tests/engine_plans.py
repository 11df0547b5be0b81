"""Plans and the instances they are for, for tests of engine files."""

from __future__ import annotations

from typing import Any

import numpy as np
from builders import Gpus, honest, tiny_instance, tiny_traffic

from moe_placer.engines.plans.plan import Deployment, Plan, read_deployment
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic


def engine_instance(
    nodes: int = 4,
    per_node: int = 2,
    experts: int = 12,
    redundant: int = 4,
    layers: int = 5,
    dense: tuple[int, ...] = (0, 1),
    **changes: Any,
) -> Instance:
    """Build an instance that every engine can number: equal slots on every GPU."""
    slots = (experts + redundant) // (nodes * per_node)
    changes.setdefault("placement", {})
    changes["placement"] = {
        "replica_routing": "even",
        "replicas": {"redundant_slots": redundant},
        "slots_per_gpu": slots,
        **changes["placement"],
    }
    changes.setdefault("cluster", {})
    changes["cluster"] = {"nodes": nodes, "gpus_per_node": per_node, **changes["cluster"]}
    return tiny_instance(
        name="engines",
        model={"layers": layers, "dense_layers": list(dense), "experts": experts},
        parallelism={"dp": 1},
        **changes,
    )


def drawn_plan(deployment: Deployment, seed: int, repeats: bool = False) -> Plan:
    """Draw a plan of equal slots: experts ascend on every rank, and repeat on none unless asked for."""
    rng = np.random.default_rng(seed)
    assert deployment.slots_by_layer is not None
    layers = []
    for slots in deployment.slots_by_layer:
        each = slots // deployment.ranks
        while True:
            extra = rng.choice(deployment.experts, slots - deployment.experts, replace=slots > 2 * deployment.experts)
            flat = rng.permutation(np.concatenate([np.arange(deployment.experts), extra]))
            ranks = [tuple(sorted(flat[r * each : (r + 1) * each].tolist())) for r in range(deployment.ranks)]
            if repeats or all(len(set(held)) == len(held) for held in ranks):
                break
        layers.append(tuple(ranks))
    return Plan(deployment.experts, tuple(layers))


def gpus_of(plan: Plan, deployment: Deployment) -> Gpus:
    """Return a plan as the placement file has it."""
    return [
        [
            [deployment.gpu_of(rank) for rank, held in enumerate(ranks) for one in held if one == expert]
            for expert in range(plan.experts)
        ]
        for ranks in plan.slots
    ]


def placed(instance: Instance, plan: Plan) -> tuple[Placement, Traffic]:
    """Return an honest placement of a plan, and its traffic."""
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic, gpus_of(plan, read_deployment(instance)))
    return Placement.model_validate(data), traffic
