"""How many copies of tokens every node sends to every other, token by token, for each unit of dispatch.

What `verify` and comparisons count; each formula is the definition of the placement model, without any shortcut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from moe_placer.errors import Mistake
from moe_placer.instance import Instance
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier.loads import read_network, replica_demand
from moe_placer.verifier.nics import receives_by_gpu
from moe_placer.verifier.replica_choice import View, views_of
from moe_placer.verifier.rules import Replica
from moe_placer.verifier.verification import Violation

__all__ = [
    "asked_of_replicas",
    "check_proof_fits",
    "copies_sent",
    "find_dispatch_mistakes",
    "reached",
    "sends_every_choice",
    "tokens_between",
    "views_by_row",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_OF_EVERY_CHOICE = {"dual", "hot-experts", "hot-replicas", "threshold"}
_ONCE = {"companions", "weighted-companions", "mutual-companions"}
_BLOCK = 2_000_000  # numbers in one temporary array


def sends_every_choice(instance: Instance) -> bool:
    """Whether every chosen expert gets a copy of its own, so that loads of experts say all.

    With one expert on each GPU, one copy per GPU is one per expert.
    """
    placement = instance.placement
    alone = placement.slots_per_gpu == 1 and instance.parallelism.expert_tp == 1
    return placement.dispatch == "per-expert" or (placement.dispatch == "per-gpu" and alone)


def find_dispatch_mistakes(instance: Instance, traffic: Traffic) -> list[Mistake]:
    """List recordings that lack what the instance's unit of dispatch needs: every token's choice."""
    if sends_every_choice(instance):
        return []
    found = f"expert loads only, with placement.dispatch: {instance.placement.dispatch}"
    expected = "every token's choice (topk), since loads do not say which experts a token chooses together"
    blind = (index for index, recording in enumerate(traffic.recordings) if recording.topk is None)
    return [Mistake(found, expected, f"traffic.recordings[{index}]") for index in blind]


def check_proof_fits(instance: Instance, proof: str | None, layer: int | None, what: str) -> Iterator[Violation]:
    """Rule ``proof``: a copy for every chosen expert proves nothing where tokens are sent once per place.

    Parameters
    ----------
    instance : Instance
    proof : str or None
        Kind of the proof; None: there is none.
    layer : int or None
        Index in the model; None: of no layer.
    what : str
        The proof in words, for the message.
    """
    every = sends_every_choice(instance)
    if proof in _ONCE and every:
        yield Violation("proof", f"{what}, required is a proof for a copy for every chosen expert", layer)
    if proof in _ONCE and not (instance.placement.draws_evenly or instance.placement.replica_routing == "group"):
        required = "required is group routing, or one by which every replica is drawn alike"
        yield Violation(
            "proof", f"{what}, with replica_routing: {instance.placement.replica_routing}, {required}", layer
        )
    if proof in _OF_EVERY_CHOICE and not every:
        required = f"required is a proof for placement.dispatch: {instance.placement.dispatch}"
        yield Violation("proof", f"{what}, which counts a copy for every chosen expert, {required}", layer)


def tokens_between(
    instance: Instance,
    traffic: Traffic,
    row: int,
    choices: Floats,
    replicas: Sequence[Replica],
    views: Sequence[View] | None = None,
) -> tuple[Floats, Floats]:
    """Count the copies of tokens per step from every node to every place, and the tokens of every replica.

    What stays in a node crosses no link, and is left out; otherwise as `copies_sent`.

    Parameters
    ----------
    instance, traffic, row, choices, replicas, views
        As `copies_sent`.
    """
    flow, demand = copies_sent(instance, traffic, row, choices, replicas, views)
    part = instance.gpus // flow.shape[1]  # GPUs of a place
    flow[np.arange(flow.shape[1]) * part // instance.cluster.gpus_per_node, np.arange(flow.shape[1])] = 0.0
    return flow, demand


def copies_sent(
    instance: Instance,
    traffic: Traffic,
    row: int,
    choices: Floats,
    replicas: Sequence[Replica],
    views: Sequence[View] | None = None,
) -> tuple[Floats, Floats]:
    """Count the copies of tokens per step from every node to every place, its own included, and tokens by replica.

    Parameters
    ----------
    instance : Instance
    traffic : Traffic
        Routing statistics of the instance's sources.
    row : int
        The MoE layer, in their order.
    choices : float array [recordings, experts]
        How often a token chooses each expert, in this layer.
    replicas : sequence of Replica
        All replicas of this layer, expert by expert.
    views : sequence of View or None
        What `views_by_row` says of this layer.

    Returns
    -------
    flow : float array [nodes, places]
        Places are nodes, or GPUs where these receive by NICs of their own.
    demand : float array [nodes, replicas]
        Tokens per step from every node that each replica works on; it does not depend on the unit of dispatch.
    """
    demand = asked_of_replicas(instance, traffic, choices, replicas, views)
    counts = _counts(instance, replicas)
    nodes, size = instance.cluster.nodes, instance.cluster.gpus_per_node
    part = 1 if receives_by_gpu(instance) else size  # GPUs of a place
    flow = np.zeros((nodes, instance.gpus // part))
    if sends_every_choice(instance):
        arriving = np.zeros(flow.shape[::-1])  # adding rows is quick, adding columns is not
        for replica, tokens in zip(replicas, np.ascontiguousarray(demand.T), strict=True):
            arriving[replica.gpus[0] // part] += tokens
        flow = np.ascontiguousarray(arriving.T)
    else:
        per_gpu = instance.placement.dispatch == "per-gpu"
        places = instance.gpus if per_gpu else nodes
        group = np.arange(nodes) * instance.parallelism.dp // nodes
        even = instance.placement.draws_evenly
        started = instance.traffic.tokens_per_gpu * size
        for view in range(1 if even else instance.parallelism.dp):
            mine = np.full(nodes, True) if even else group == view
            chance = _chance(replicas, counts, None if even else view, places, 1 if per_gpu else size)
            for file, recording in enumerate(traffic.recordings):
                share = reached(recording.choices_in(row), chance)
                by_place = share.reshape(flow.shape[1], -1).sum(axis=1)  # what was reached: nodes, or their GPUs
                flow += np.outer(started * traffic.mix[:, file] * mine, by_place)
    return flow, demand


def asked_of_replicas(
    instance: Instance,
    traffic: Traffic,
    choices: Floats,
    replicas: Sequence[Replica],
    views: Sequence[View] | None = None,
) -> Floats:
    """Count the tokens per step from every node that each replica of a layer works on [nodes, replicas].

    Parameters
    ----------
    instance, traffic, choices, replicas, views
        As `copies_sent`.
    """
    if views is None and instance.placement.numbers_replicas:
        nowhere = np.zeros((instance.cluster.nodes,) * 2, dtype=np.int64)  # these rules do not ask how far replicas are
        views = next(views_of(instance, instance.placement.replica_routing, [replicas], nowhere))
    if views is not None:
        return _demand_by_views(instance, traffic, choices, replicas, views)
    return replica_demand(instance, traffic, choices, _counts(instance, replicas))


def _counts(instance: Instance, replicas: Sequence[Replica]) -> Ints:
    count = Counter(replica.expert for replica in replicas)
    return np.array([count[expert] for expert in range(instance.model.experts)])


def views_by_row(instance: Instance, layers: Sequence[Sequence[Replica]]) -> Sequence[list[View] | None]:
    """Return how tokens pick replicas in each MoE layer where that depends on where all of them are; else None each.

    ``layers`` are the replicas of every MoE layer, expert by expert.
    """
    rule = instance.placement.replica_routing
    if not instance.placement.prefers_near:
        return [None] * len(layers)
    hops = np.zeros((instance.cluster.nodes,) * 2, dtype=np.int64)
    if rule == "nearest":
        network = read_network(instance).whole
        links = np.zeros(hops.shape)
        np.add.at(links, (network.source, network.home[network.target]), network.share)
        hops = np.rint(links).astype(np.int64)  # all routes between two nodes are as long
    return list(views_of(instance, rule, layers, hops))


def _demand_by_views(
    instance: Instance, traffic: Traffic, choices: Floats, replicas: Sequence[Replica], views: Sequence[View]
) -> Floats:
    """Count as `replica_demand` does where an engine's rule picks replicas: view by view of its tokens.

    Parameters
    ----------
    instance : Instance
    traffic : Traffic
        Routing statistics of the instance's sources.
    choices : float array [recordings, experts]
        How often a token chooses each expert, in this layer.
    replicas : sequence of Replica
        All replicas of this layer, expert by expert.
    views : sequence of View
        By what chance shares of each node's tokens pick each of them.
    """
    expert = np.array([one.expert for one in replicas])
    started = instance.traffic.tokens_per_gpu * instance.cluster.gpus_per_node
    asked = (started * (traffic.mix @ choices))[:, expert]
    demand = np.zeros((instance.cluster.nodes, len(replicas)))
    for view in views:
        demand += view.weight[:, None] * view.chance * asked
    return demand


def _chance(replicas: Sequence[Replica], counts: Ints, view: int | None, places: int, gpus: int) -> Floats:
    """Chance that a token that chooses an expert goes to each place for it [experts, places].

    ``view`` is the only replica that the token uses, None where it draws one; a place is ``gpus`` GPUs.
    """
    chance = np.zeros((len(counts), places))
    for replica in replicas:
        if view is None or replica.replica == view:
            for place in {gpu // gpus for gpu in replica.gpus}:  # all shards of a replica work on its tokens
                chance[replica.expert, place] += 1.0 if view is not None else 1.0 / counts[replica.expert]
    return chance


def reached(topk: npt.NDArray[np.integer], chance: Floats) -> Floats:
    """Share of tokens that go to each place at least once [places]: one minus what misses it with every choice."""
    chosen, times = np.unique(np.sort(topk, axis=1), axis=0, return_counts=True)
    reached = np.zeros(chance.shape[1])
    step = max(1, _BLOCK // chance[0].size // chosen.shape[1])
    for first in range(0, len(chosen), step):
        some = slice(first, first + step)
        missed = np.prod(1.0 - chance[chosen[some]], axis=1)
        reached += times[some] @ (1.0 - missed)
    return reached / len(topk)
