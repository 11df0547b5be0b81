"""What any placement costs on any traffic, beside what engines do and what no placement is below.

A placement need not be made for the instance's traffic, routing or dispatch: that is a fact about it, not a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake, NothingFoundError, UsageError
from moe_placer.experiments.compare.current_plan import check_plan, plan_of
from moe_placer.experiments.compare.metrics import Flows, find_flows
from moe_placer.fabric.nics import nics_among
from moe_placer.instance import Instance
from moe_placer.instance.sizes import back_ratio
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.schedule.coarse_network import Sharing
from moe_placer.schedule.step import step_time
from moe_placer.schedule.workload import Workload
from moe_placer.solve.solve import Solution, solve
from moe_placer.traffic import Traffic, load_traffic
from moe_placer.verifier import verify
from moe_placer.verifier.layer_time import expert_token_us
from moe_placer.verifier.links import Network
from moe_placer.verifier.loads import read_network
from moe_placer.verifier.replica_choice import check_rule
from moe_placer.verifier.verification import CONSTRAINTS

__all__ = ["Evaluation", "PlanCosts", "check_servable", "costs_of", "evaluate"]

Floats = npt.NDArray[np.float64]

_IN_INSTANCES = ("group", "even")
_SOLVED = ("trtllm-round-robin", "vllm-hash", "vllm-ascend", "nearest", "sglang-static", "sglang-dynamic")


@dataclass(frozen=True)
class PlanCosts:
    """Loads and times of one placement in one step.

    Attributes
    ----------
    total_z, max_z : float
        Sum over layers, and largest, of the cost of the busiest link (tokens at node-link speed), NICs included.
    busiest_link : str
        The link with ``max_z``; empty where no link carries anything.
    aggregate : float
        Largest cost of any link over all layers together.
    dispatch_us, combine_us : float
        Microseconds of all layers in turn, each as long as its slowest link needs.
    nic_z : float or None
        As ``total_z``, of NICs alone; None where none are counted as links.
    busiest_gpu_tokens : float
        Sum over layers of the tokens that the busiest GPU computes.
    above_mean : float
        How far that is above the mean of working GPUs: 0.1 is 10%.
    layer_time_us : float
        Microseconds of all layers' dispatch, slowest GPU and combine in turn.
    inter_node_tokens : float
        Copies of tokens that are sent between nodes, over all layers.
    step_us, step_one_batch_us : float or None
        Of one simulated step with two micro-batches, and with one; None where it was not simulated.
    """

    total_z: float
    max_z: float
    busiest_link: str
    aggregate: float
    dispatch_us: float
    combine_us: float
    nic_z: float | None
    busiest_gpu_tokens: float
    above_mean: float
    layer_time_us: float
    inter_node_tokens: float
    step_us: float | None = None
    step_one_batch_us: float | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a placement costs, and what it is held against.

    Attributes
    ----------
    instance : Instance
        With the dispatch that was asked for, and the routing where an instance can have it.
    routing : str
        The rule by which tokens pick replicas.
    same_instance, same_traffic : bool
        Whether the placement says that it was made for these.
    breaks : tuple of str
        Constraints of the instance that it breaks, in words; it is evaluated all the same.
    placement : PlanCosts
    rivals : mapping
        Name of a heuristic to what its plan for this traffic costs, or to why it cannot serve.
    bound : float or None
        No placement that the instance allows has a smaller ``total_z``; derived anew by the verifier. None under rules
        for which nothing is proved.
    layer_time_bound_us : float or None
        Nor a smaller ``layer_time_us``.
    best_split : PlanCosts or None
        Under rules beside ``group`` and ``even``, with one copy per chosen expert: what the placement costs where every
        node's tokens are split so that the busiest link costs least. No rule does better on links.
    sharing : str or None
        How finely the simulated steps shared links out; None where none was simulated.
    """

    instance: Instance
    routing: str
    same_instance: bool
    same_traffic: bool
    breaks: tuple[str, ...]
    placement: PlanCosts
    rivals: Mapping[str, PlanCosts | str]
    bound: float | None
    layer_time_bound_us: float | None
    best_split: PlanCosts | None = None
    sharing: Sharing | None = None


def evaluate(
    instance: Instance,
    placement: Placement,
    traffic: Traffic | None = None,
    *,
    routing: str | None = None,
    dispatch: str | None = None,
    step: bool = False,
    sharing: Sharing = "fine",
    limits: Limits | None = None,
    tell: Callable[[str], None] = lambda _name: None,
) -> Evaluation:
    """Say what a placement costs on some traffic: links, NICs, GPUs and step, beside rivals and bounds.

    Parameters
    ----------
    instance : Instance
        The cluster, the model and how replicas are served.
    placement : Placement
        Of this model on this cluster; for which traffic, routing or dispatch it was made does not matter.
    traffic : Traffic, optional
        Absent: what the instance names.
    routing : str, optional
        Instead of the instance's ``placement.replica_routing``: ``group``, ``even``, or a rule of
        docs/replica-choice.md such as ``nearest``, ``optimal`` or ``sglang-static``.
    dispatch : str, optional
        Instead of the instance's ``placement.dispatch``.
    step : bool
        Whether to simulate a step of every plan, with two micro-batches and with one: seconds each.
    sharing : str
        How finely steps share links out over time (`moe_placer.schedule.coarse_network.Sharing`).
    limits : Limits, optional
        Of what bounds the links; absent: 60 s, one worker.
    tell : callable, optional
        Told of each plan before its step is simulated, or its tokens are counted by a named rule: what takes seconds.

    Raises
    ------
    InputError
        The placement is of another shape, leaves experts without a replica or uses GPUs that failed; traffic does not
        fit; or the routing or dispatch cannot be served.
    UsageError
        A step cannot be simulated with this dispatch or routing.
    """
    rule = routing if routing not in {None, *_IN_INSTANCES} else None
    own = instance.with_serving("even" if rule else routing, dispatch)
    if rule is not None:
        check_rule(own, rule)
        own = _served_by(instance, rule, dispatch) or own
        if step and own.placement.replica_routing != rule:
            raise UsageError(f"a step does not simulate {rule} here; leave out the step")
    return _evaluated(own, placement, traffic, rule, sharing if step else None, limits or Limits(), tell)


def _evaluated(
    instance: Instance,
    placement: Placement,
    traffic: Traffic | None,
    rule: str | None,
    sharing: Sharing | None,
    limits: Limits,
    tell: Callable[[str], None],
) -> Evaluation:
    """Evaluate with a routing that instances can have, or by a named rule."""
    check_servable(instance, placement)
    traffic = traffic or load_traffic(instance)
    found = verify(instance, placement, traffic)
    proved = rule is None or instance.placement.replica_routing == rule
    same_instance = proved and placement.instance.sha256 == instance.sha256
    instance = instance.on_the_mix()
    solution = _solved(instance, traffic, limits)
    plans: dict[str, Placement | str] = {
        name: solution.baseline_placements().get(name, "it finds no valid placement")
        if isinstance(total, float)
        else total
        for name, total in solution.baselines.items()
    }
    network = read_network(instance)

    def costs(name: str, plan: Placement | str) -> PlanCosts | str:
        if isinstance(plan, str):
            return plan
        if sharing is not None or rule is not None:
            tell(name)
        return costs_of(instance, plan, traffic, network, sharing=sharing, rule=rule)

    split = rule not in {None, "optimal"} and not instance.placement.counts_tokens_once
    mine = costs("the placement", placement)
    assert isinstance(mine, PlanCosts)
    return Evaluation(
        instance=instance,
        routing=rule or instance.placement.replica_routing,
        same_instance=same_instance,
        same_traffic=placement.instance.traffic_sha256 == traffic.sha256,
        breaks=tuple(str(one) for one in found.violations if one.rule in CONSTRAINTS),
        placement=mine,
        rivals={name: costs(name, plan) for name, plan in plans.items()},
        bound=solution.verification.total_bound if proved else None,
        layer_time_bound_us=solution.verification.layer_us_bound if proved else None,
        best_split=costs_of(instance, placement, traffic, network, rule="optimal") if split else None,
        sharing=sharing,
    )


def _served_by(instance: Instance, rule: str, dispatch: str | None) -> Instance | None:
    """Return the instance solved by an engine's rule, whose bounds then hold; None where it cannot be."""
    if rule not in _SOLVED:
        return None
    with suppress(InputError):  # such as a dispatch for which the rule is only counted
        return instance.with_serving(rule, dispatch)
    return None


def check_servable(instance: Instance, placement: Placement) -> None:
    """Refuse a placement that cannot serve the instance's tokens, whatever it was made for.

    Raises
    ------
    InputError
        It is of another shape, an expert has no replica or not one for each DP group, or a failed GPU holds something.
    """
    check_plan(instance, placement)
    failed, groups = set(instance.placement.failed_gpus), instance.parallelism.dp
    exact = instance.placement.replica_routing == "group"
    for layer, experts in zip(instance.moe_layers, placement.gpu, strict=True):
        for expert, replicas in enumerate(experts):
            found = f"a placement with {len(replicas)} replicas of layer {layer} expert {expert}"
            if not replicas or (exact and len(replicas) != groups):
                raise InputError(Mistake(found, f"{groups}, one for each DP group" if exact else "at least one"))
    for gpus in plan_of(placement):
        if used := {gpu for _, gpu in gpus} & failed:
            raise InputError(Mistake(f"a placement on the failed GPU {min(used)}", "working GPUs only"))


def costs_of(
    instance: Instance,
    placement: Placement,
    traffic: Traffic,
    network: Network | None = None,
    *,
    sharing: Sharing | None = None,
    rule: str | None = None,
) -> PlanCosts:
    """Measure one plan that can serve, by the verifier's slow and obvious loads.

    Parameters
    ----------
    instance, placement, traffic
        What runs where, and which tokens choose which experts.
    network : Network, optional
        As `read_network` says, where it is known.
    sharing : str, optional
        Simulate steps, with links shared out this finely; absent: simulate none.
    rule : str, optional
        By which tokens pick replicas; absent: the instance's.
    """
    network = network or read_network(instance)
    flows = find_flows(instance, placement, traffic, rule)
    load = flows.load(network)
    cost, us = load * network.scale, (load * network.us_per_token).max(axis=1, initial=0.0)
    at = np.unravel_index(int(cost.argmax()), cost.shape) if cost.any() else None
    nics = nics_among(network.links)
    busiest, mean = _gpus(instance, flows)
    wire, back = float(us.sum()), back_ratio(instance)
    computing = float(busiest.sum()) * instance.parallelism.expert_tp * expert_token_us(instance)
    found = PlanCosts(
        total_z=float(cost.max(axis=1, initial=0.0).sum()),
        max_z=float(cost.max(initial=0.0)),
        busiest_link=network.links[int(at[1])] if at is not None else "",
        aggregate=float(cost.sum(axis=0).max(initial=0.0)),
        dispatch_us=wire,
        combine_us=wire * back,
        nic_z=float(cost[:, nics].max(axis=1).sum()) if nics.any() else None,
        busiest_gpu_tokens=float(busiest.sum()),
        above_mean=float(busiest.sum() / mean.sum() - 1) if mean.sum() > 0 else 0.0,
        layer_time_us=wire * (1 + back) + computing,
        inter_node_tokens=float(flows.between.sum()),
    )
    if sharing is None:
        return found
    loads = (Workload(micro_batches=n) for n in (2, 1))
    two, one = (step_time(instance, placement, traffic, load, sharing=sharing).step_us for load in loads)
    return PlanCosts(**{**vars(found), "step_us": two, "step_one_batch_us": one})


def _gpus(instance: Instance, flows: Flows) -> tuple[Floats, Floats]:
    """Tokens of the busiest GPU, and of a mean GPU that works [MoE layers] each."""
    works = np.full(instance.gpus, True)
    works[list(instance.placement.failed_gpus)] = False
    return flows.gpu.max(axis=1), flows.gpu[:, works].mean(axis=1)


def _solved(instance: Instance, traffic: Traffic, limits: Limits) -> Solution:
    """Solve by the first quick method that can serve: for the heuristics' plans and for the bound."""
    with suppress(NothingFoundError):  # it refuses where plans in order break a constraint
        return solve(instance, traffic, solver="contiguous", limits=limits)
    return solve(instance, traffic, solver="greedy", limits=limits)
