"""From layers' results to a placement that states its figures, as the file has them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.best_split import SplitProof
from moe_placer.bounds.bounds import SAFETY, Bound
from moe_placer.bounds.mutual_companions import MutualCompanions
from moe_placer.bounds.weighted_companions import WeightedCompanions
from moe_placer.decomposition.aggregate import aggregate_bound, link_totals
from moe_placer.decomposition.memory import MemoryDivision
from moe_placer.errors import DefectError, NothingFoundError
from moe_placer.fabric import kinds_in
from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.placement import (
    SCHEMA,
    AggregateRecord,
    CompanionsRecord,
    InstanceKey,
    LayerRecord,
    LayerTimeRecord,
    MemoryRecord,
    MutualRecord,
    Placement,
    SolverRecord,
    SplitRecord,
)
from moe_placer.problem.compile import Problem
from moe_placer.result import LayerResult
from moe_placer.solve.base import Solver
from moe_placer.solve.by_nearness import costs_as_served
from moe_placer.solve.gpu_assignment import pack
from moe_placer.solve.layer_time import layer_times, least_busiest
from moe_placer.solve.numbered import bound_as_stated
from moe_placer.solve.registry import installed_version
from moe_placer.traffic import Traffic

__all__ = ["bare_placement", "state_aggregate", "state_layer", "state_placement"]

_WEIGHTED = {"dual", "threshold", "weighted-companions", "mutual-companions", "best-split"}  # proofs by link weights


def state_placement(
    instance: Instance,
    traffic: Traffic,
    problem: Problem,
    by_load: npt.NDArray[np.int64],
    method: Solver,
    results: Sequence[LayerResult],
    limits: Limits,
    seed: int,
    division: MemoryDivision | None,
) -> Placement:
    """Give every replica its GPUs, and put what is known of the placement beside it.

    Parameters
    ----------
    instance : Instance
    traffic : Traffic
        Routing statistics of the instance's sources.
    problem : Problem
        The compiled instance.
    by_load : int array
        Replicas of each expert by load [MoE layers, experts]: what other choices are compared with.
    method : Solver
        Who decides.
    results : sequence of LayerResult
        One per MoE layer.
    limits : Limits
        Time, gap, workers and deterministic effort.
    seed : int
        Of everything random.
    division : MemoryDivision or None
        How memory that binds over layers is divided; None: it does not bind, or is not divided.

    Raises
    ------
    DefectError
        The method broke the limits of nodes, or named a GPU that does not exist.
    NothingFoundError
        The replicas of a node do not go on its GPUs.
    """
    packed = _pack(problem, method, results)
    costs = None if problem.near is None else costs_as_served(problem, results, packed)
    parameters = {
        "gap": limits.gap,
        "time_limit_s": limits.time_s,
        "workers": limits.workers,
        "work": limits.total_work,
    }
    return Placement(
        schema=SCHEMA,
        instance=InstanceKey(name=instance.name, sha256=instance.sha256, traffic_sha256=traffic.sha256),
        solver=SolverRecord(
            name=method.name, version=installed_version("moe-placer"), seed=seed, parameters=parameters
        ),
        gpu=_gpu_lists(problem, results, packed),
        layers=tuple(
            state_layer(problem, index, result, None if costs is None else costs[index])
            for index, result in enumerate(results)
        ),
        memory=_memory_record(problem, division, results),
        layer_time=_layer_time_record(problem, division, results),
        aggregate=state_aggregate(problem, results, costs),
        versions={
            "python": platform.python_version(),
            **{n: installed_version(n) for n in ("numpy", "scipy", "ortools")},
        },
        traffic=_traffic_facts(instance, traffic),
        fabric=_fabric_facts(instance),
        replicas=_replica_facts(problem, by_load, method.name, results),
    )


def bare_placement(
    instance: Instance, traffic: Traffic, problem: Problem, solver: str, seed: int, results: Sequence[LayerResult]
) -> Placement:
    """Give every replica its GPUs, and state nothing of the placement: for what is not written, only measured.

    Parameters
    ----------
    instance : Instance
    traffic : Traffic
        Routing statistics of the instance's sources.
    problem : Problem
        The compiled instance.
    solver : str
        Name of the method.
    results : sequence of LayerResult
        One per MoE layer, each with its nodes.
    seed : int
        Of everything random.

    Raises
    ------
    NothingFoundError
        The replicas of a node do not go on its GPUs.
    """
    return Placement(
        schema=SCHEMA,
        instance=InstanceKey(name=instance.name, sha256=instance.sha256, traffic_sha256=traffic.sha256),
        solver=SolverRecord(name=solver, version=installed_version("moe-placer"), seed=seed),
        gpu=_gpu_lists(problem, results, pack(problem, results)),
        layers=(),
    )


def _gpu_lists(
    problem: Problem, results: Sequence[LayerResult], packed: Sequence[Sequence[tuple[int, ...]]]
) -> tuple[tuple[Any, ...], ...]:
    """Return ``gpu[l][e]`` of the placement file; ``packed`` has, per layer, the GPUs of each item."""
    gpu = []
    for index, result in enumerate(results):
        expert, _ = problem.items(index, result.replicas)
        rows: list[list[int | tuple[int, ...]]] = [[] for _ in range(problem.replicas.shape[1])]
        for e, gpus in zip(expert.tolist(), packed[index], strict=True):
            rows[e].append(gpus if problem.shards > 1 else gpus[0])
        gpu.append(tuple(tuple(row) for row in rows))
    return tuple(gpu)


def _pack(problem: Problem, method: Solver, results: Sequence[LayerResult]) -> list[list[tuple[int, ...]]]:
    """Give every item GPUs; where that fails, say whether the method broke the nodes' limits."""
    for result in results:
        if result.gpu is not None and not ((result.gpu >= 0) & (result.gpu < len(problem.capacity.memory_slots))).all():
            raise DefectError(f"the placement of {method.name} names a GPU that does not exist", ["gpu-id"])
    try:
        return pack(problem, results)
    except NothingFoundError:
        for index, result in enumerate(results):
            if result.node is not None and not problem.layer(index, result.replicas).valid(result.node):
                layer = problem.moe_layers[index]
                message = f"the placement of {method.name} breaks slots, pins or distances of nodes in layer {layer}"
                raise DefectError(message, ["slots"]) from None
        raise


def state_layer(
    problem: Problem, index: int, result: LayerResult, cost: npt.NDArray[np.float64] | None = None
) -> LayerRecord:
    """Return the record of a placed layer: its busiest link, and what its bound's proof needs.

    Parameters
    ----------
    problem : Problem
        The compiled instance.
    index : int
        The MoE layer, counted among MoE layers.
    result : LayerResult
        The layer, with the node of each item.
    cost : float array [K] or None
        Of every link, where it depends on more than this layer's nodes; z is then the largest.
    """
    assert result.node is not None
    layer, bound = problem.layer(index, result.replicas), bound_as_stated(problem, index, result)
    z = result.z if cost is None else float(cost.max(initial=0.0))
    cost = layer.cost(result.node) if cost is None else cost
    worst_link, worst_tokens = _worst_link(problem, cost)
    return LayerRecord(
        layer=problem.moe_layers[index],
        z=z,
        bound=min(bound.value, z),
        proof=bound.proof,
        weights=_named_weights(problem, bound) if bound.proof in _WEIGHTED else None,
        threshold=bound.threshold,
        hot=None if bound.hot is None else (int(layer.expert[bound.hot]), int(layer.replica[bound.hot])),
        companions=_companions_record(bound),
        mutual=_mutual_record(bound),
        split=None if bound.split is None else _split_record(bound.split),
        any_copies=bound.any_replicas or None,
        bound_given_replicas=None if bound.given_replicas is None else min(bound.given_replicas, z),
        worst_link=worst_link,
        worst_link_tokens=worst_tokens,
        solver_bound=None if problem.shares is not None and problem.shares.chosen else result.solver_bound,
    )


def _companions_record(bound: Bound) -> CompanionsRecord | None:
    found = bound.companions
    if found is None or isinstance(found, MutualCompanions):
        return None
    guess = tuple(tuple(tuple(np.flatnonzero(row).tolist()) for row in table) for table in found.guess)
    if isinstance(found, WeightedCompanions):
        return CompanionsRecord(depth=0, order=tuple(range(found.guess.shape[1])), guess=guess)
    return CompanionsRecord(depth=found.depth, order=tuple(found.order.tolist()), guess=guess)


def _mutual_record(bound: Bound) -> MutualRecord | None:
    found = bound.companions
    if not isinstance(found, MutualCompanions):
        return None
    near = tuple(
        tuple(
            tuple((other, int(row[other])) for other in np.flatnonzero(row).tolist() if other > expert)
            for expert, row in enumerate(table)
        )
        for table in found.near
    )
    return MutualRecord(near=near, prices=tuple(tuple(row) for row in found.prices.tolist()))


def _split_record(split: SplitProof) -> SplitRecord:
    paid = tuple(tuple(row) for row in split.paid.tolist())
    return SplitRecord(slot_prices=tuple(split.slot_prices.tolist()), paid=paid)


def state_aggregate(
    problem: Problem, results: Sequence[LayerResult], costs: Sequence[npt.NDArray[np.float64]] | None = None
) -> AggregateRecord:
    """Return the record of all layers together, with a bound if the bounds of the layers add up.

    ``costs`` are those of every link [K] in each layer, where they are known already.
    """
    totals = link_totals(problem, results) if costs is None else np.sum(costs, axis=0)
    bounds = [result.bound for result in results]
    value, bound = float(totals.max(initial=0.0)), aggregate_bound(bounds)
    worst_link, worst_tokens = _worst_link(problem, totals)
    record = AggregateRecord(value=value, worst_link=worst_link, worst_link_tokens=worst_tokens)
    if not bound:
        return record
    return record.model_copy(
        update={
            "bound": min(bound, value),
            "proof": "dual",
            "weights": _named_weights(problem, bounds[0]),
            "any_copies": bounds[0].any_replicas or None,
        }
    )


def _worst_link(problem: Problem, cost: npt.NDArray[np.float64]) -> tuple[str, float]:
    """Name the link of the largest cost [K], and its plain tokens; no name where no link carries anything."""
    if not cost.any():
        return "", 0.0
    worst = int(cost.argmax())
    return problem.links[worst], float(cost[worst] / problem.token_cost[worst])


def _memory_record(
    problem: Problem, division: MemoryDivision | None, results: Sequence[LayerResult]
) -> MemoryRecord | None:
    """Say what bounds the sum of z where memory binds over layers, if that is more than the layers' bounds come to."""
    if division is None or division.total <= sum(result.bound.value for result in results):
        return None
    return MemoryRecord(
        bound=min(division.total, sum(result.z for result in results)),
        room_prices=tuple(division.prices.tolist()),
        weights=tuple(_by_name(problem, weights) for weights in division.weights),
    )


def _layer_time_record(
    problem: Problem, division: MemoryDivision | None, results: Sequence[LayerResult]
) -> LayerTimeRecord | None:
    """Say what the layers' times come to, where these are minimised, and what they are not below."""
    if problem.minimise != "layer-time":
        return None
    proved = [0.0 if result.bound.proof == "solver" else result.bound.value for result in results]
    on_links = max(sum(proved), 0.0 if division is None else division.total)
    on_gpus = sum(least_busiest(problem, index) for index in range(len(problem)))
    value = float(layer_times(problem, results).sum())
    bound = (on_links + problem.gpu_price * on_gpus) * problem.round_trip_us * (1 - SAFETY)
    return LayerTimeRecord(value_us=value, bound_us=min(bound, value))


def _named_weights(problem: Problem, bound: Bound) -> dict[str, float] | None:
    return None if bound.weights is None else _by_name(problem, bound.weights)


def _by_name(problem: Problem, weights: npt.NDArray[np.float64]) -> dict[str, float]:
    return {problem.links[k]: float(weights[k]) for k in np.flatnonzero(weights)}


def _traffic_facts(instance: Instance, traffic: Traffic) -> dict[str, object]:
    return {
        "kind": instance.traffic.kind,
        "tokens_per_gpu": instance.traffic.tokens_per_gpu,
        "recordings": [{"name": r.name, "tokens": float(r.tokens.max())} for r in traffic.recordings],
        "mix": traffic.mix.tolist(),
    }


def _fabric_facts(instance: Instance) -> dict[str, object]:
    """Bandwidths by kind of link: enough to see what a cost means."""
    fabric = instance.cluster.fabric
    metric, links = instance.objective.metric, kinds_in(instance)
    return {"kind": fabric.kind, "node_gb_per_s": fabric.node_gb_per_s, "metric": metric, "links": links}


def _replica_facts(
    problem: Problem, by_load: npt.NDArray[np.int64], method: str, results: Sequence[LayerResult]
) -> dict[str, object]:
    """Return the ``replicas`` block of a placement file (docs/files.md).

    Parameters
    ----------
    by_load : int array [MoE layers, experts]
        Replicas by load, with an equal share of the budget in every layer: what other choices are compared with.
    method : str
        Name of the solver.
    """
    chosen = zip(results, problem.replicas, strict=True)
    replicas = np.stack([own if result.replicas is None else result.replicas for result, own in chosen])
    each = replicas.sum(axis=1)
    facts: dict[str, object] = {"per_layer": int(each[0]) if (each == each[0]).all() else each.tolist()}
    if problem.redundant_in_all is not None:
        facts |= {"redundant_in_all": int((replicas - 1).sum()), "redundant_slots_in_all": problem.redundant_in_all}
    if not problem.replicas_are_chosen:
        return facts | {"copies": "given by the instance", "bound_covers_choice_of_copies": True}
    covers = all(bound_as_stated(problem, index, result).any_replicas for index, result in enumerate(results))
    others = (replicas != by_load).any(axis=1)
    facts["copies"] = "chosen by load"
    if others.any():
        load = problem.demand.load
        hottest, usual = (load / replicas).max(axis=1), (load / by_load).max(axis=1)
        growth = np.where(usual > 0, hottest / np.where(usual > 0, usual, 1.0), 1.0)
        facts["copies"] = f"chosen by {method}, other than by load in {others.sum()} of {len(others)} MoE layers"
        facts["hottest_copy_over_by_load"] = {"mean": float(growth.mean()), "most": float(growth.max())}
    return facts | {"bound_covers_choice_of_copies": covers}
