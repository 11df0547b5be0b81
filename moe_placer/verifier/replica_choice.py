"""By which rule a token picks one of an expert's replicas, exactly: engines' rules, the nearest, the best split.

A rule is a list of views. A view is how some share of each node's tokens picks: which replicas with which chance, one
expert independent of another. One rank that always takes the same replica is a view, and so are the tokens of one
residue class of a hash; nothing is sampled. docs/replica-choice.md defines the rules.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake
from moe_placer.instance import Instance
from moe_placer.verifier.links import Network
from moe_placer.verifier.rules import Replica

__all__ = ["RULES_BY_NAME", "View", "best_split", "check_rule", "views_of"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_HASH, _WORD = 2_654_435_769, 2**32  # of vLLM's router, over the index of a token in its rank's batch
_SEED = 42  # of SGLang's map from ranks to replicas


@dataclass(frozen=True, eq=False)
class View:
    """How some share of each node's tokens picks replicas.

    Attributes
    ----------
    start : float array [nodes, GPUs of a node]
        Which share of each node's tokens, by the GPU where they start; over all views and GPUs of a node it is 1.
    chance : float array [replicas]
        Of each replica, if the token chooses its expert; over the replicas of one expert it is 1.
    """

    start: Floats
    chance: Floats

    @property
    def weight(self) -> Floats:
        """Which share of each node's tokens pick so [nodes]."""
        return np.asarray(self.start.sum(axis=1))


@dataclass(frozen=True, eq=False)
class _Layer:
    """The replicas of one layer, expert by expert, each expert's by GPU: the order of flat slots in all engines.

    Attributes
    ----------
    expert, gpu : int array [replicas]
    order : int array [replicas]
        Where each of them is in the order that was given.
    """

    instance: Instance
    expert: Ints
    gpu: Ints
    order: Ints

    def of(self, expert: int) -> Ints:
        """Return the places [count] of an expert's replicas, by GPU."""
        return np.flatnonzero(self.expert == expert)


def check_rule(instance: Instance, rule: str) -> None:
    """Refuse a rule that is not known, or that the instance cannot be served by, and say why.

    Raises
    ------
    InputError
    """
    if rule not in RULES_BY_NAME and rule != "optimal":
        known = ", ".join(["group", "even", *RULES_BY_NAME, "optimal"])
        raise InputError(Mistake(rule, f"one of {known}", "routing"))
    placement, ranked = instance.placement, rule not in {"nearest", "optimal", "trtllm-round-robin"}
    if instance.parallelism.expert_tp > 1:
        expected = "expert_tp: 1 (the rules pick among ranks that hold whole experts)"
        raise InputError(Mistake(f"{rule}, with parallelism.expert_tp above 1", expected, "routing"))
    if ranked and placement.failed_gpus:
        expected = "a cluster without them (the rule counts ranks, and a failed GPU has none)"
        raise InputError(Mistake(f"{rule}, with failed GPUs", expected, "routing"))
    if rule == "vllm-hash" and instance.traffic.tokens_per_gpu != int(instance.traffic.tokens_per_gpu):
        expected = "whole tokens (the rule hashes the index of a token in its rank's batch)"
        raise InputError(
            Mistake(f"{rule}, with {instance.traffic.tokens_per_gpu:g} tokens per GPU", expected, "routing")
        )
    if rule == "optimal" and placement.counts_tokens_once:
        expected = "dispatch: per-expert (a split of tokens does not say which of them go to which replica)"
        raise InputError(Mistake(f"{rule}, with placement.dispatch: {placement.dispatch}", expected, "routing"))


def views_of(instance: Instance, rule: str, layers: Sequence[Sequence[Replica]], hops: Ints) -> Iterator[list[View]]:
    """Yield the views of each MoE layer under a rule that `check_rule` lets pass, `optimal` excepted.

    Parameters
    ----------
    instance : Instance
        Whose ranks are its GPUs, in the order of their ids.
    rule : str
        One of `RULES_BY_NAME`.
    layers : sequence of sequence of Replica
        The replicas of each MoE layer, expert by expert.
    hops : int array [nodes, nodes]
        Links between every two nodes, 0 on the diagonal.
    """
    sorted_ = [_sorted(instance, replicas) for replicas in layers]
    if rule == "sglang-static":
        picks = _sglang_static(instance, sorted_)
        for row, layer in enumerate(sorted_):
            yield _by_rank(layer, lambda gpu, row=row: picks[gpu][row])  # type: ignore[misc]
        return
    for layer in sorted_:
        yield RULES_BY_NAME[rule](layer, hops)


def _sorted(instance: Instance, replicas: Sequence[Replica]) -> _Layer:
    expert = np.array([replica.expert for replica in replicas], dtype=np.int64)
    gpu = np.array([replica.gpus[0] for replica in replicas], dtype=np.int64)
    order = np.lexsort((gpu, expert))
    return _Layer(instance, expert[order], gpu[order], order)


def _given(layer: _Layer, chance: Floats) -> Floats:
    """Return chances in the order in which replicas were given."""
    found = np.zeros(len(chance))
    found[layer.order] = chance
    return found


def _by_rank(layer: _Layer, picks: Callable[[int], Floats]) -> list[View]:
    """Return one view for all ranks that pick alike; ``picks`` gives a rank's chances [replicas], by GPU."""
    cluster = layer.instance.cluster
    found: dict[bytes, View] = {}
    for gpu in range(layer.instance.gpus):
        chance = _given(layer, picks(gpu))
        view = found.setdefault(chance.tobytes(), View(_everywhere(layer, 0.0), chance))
        view.start[divmod(gpu, cluster.gpus_per_node)] += 1 / cluster.gpus_per_node
    return list(found.values())


def _everywhere(layer: _Layer, share: float) -> Floats:
    """Return the same share of every node's tokens, evenly over the GPUs where they start."""
    cluster = layer.instance.cluster
    return np.full((cluster.nodes, cluster.gpus_per_node), share / cluster.gpus_per_node)


def _round_robin(layer: _Layer, hops: Ints) -> list[View]:
    """TensorRT-LLM: one after the other for each expert, whatever the source."""
    del hops
    chance = 1 / np.bincount(layer.expert)[layer.expert]
    return [View(_everywhere(layer, 1.0), _given(layer, chance))]


def _nearest(layer: _Layer, hops: Ints) -> list[View]:
    """Take a replica with fewest links on the way, ties evenly."""
    size = layer.instance.cluster.gpus_per_node
    home = layer.gpu // size

    def picks(gpu: int) -> Floats:
        chance = np.zeros(len(layer.gpu))
        for expert in np.unique(layer.expert).tolist():
            own = layer.of(expert)
            way = hops[gpu // size, home[own]]
            chance[own[way == way.min()]] = 1 / (way == way.min()).sum()
        return chance

    return _by_rank(layer, picks)


def _near(layer: _Layer) -> Ints:
    """Return the replica that each rank of SGLang takes without drawing, -1 where it draws [GPUs, experts].

    The only one there is; else the one on its own GPU; else the first on its own node, where that excludes some.
    """
    size = layer.instance.cluster.gpus_per_node
    near = np.full((layer.instance.gpus, layer.instance.model.experts), -1, dtype=np.int64)
    for expert in range(near.shape[1]):
        own = layer.of(expert)
        if len(own) == 1:
            near[:, expert] = own[0]
            continue
        for node in np.unique(layer.gpu[own] // size).tolist():
            beside = own[layer.gpu[own] // size == node]
            if len(beside) < len(own):
                near[node * size : (node + 1) * size, expert] = beside[0]
        there = own[layer.gpu[own] < len(near)][::-1]  # slots of dense layers may be beyond the last GPU
        near[layer.gpu[there], expert] = there  # of two on one GPU the first
    return near


def _sglang_dynamic(layer: _Layer, hops: Ints) -> list[View]:
    """SGLang, dynamic: what is near (`_near`), else any replica, at random."""
    del hops
    near, even = _near(layer), 1 / np.bincount(layer.expert)[layer.expert]

    def picks(gpu: int) -> Floats:
        taken = near[gpu, layer.expert]
        return np.where(taken < 0, even, taken == np.arange(len(taken)))

    return _by_rank(layer, picks)


def _sglang_static(instance: Instance, layers: Sequence[_Layer]) -> list[list[Floats]]:
    """Return what each rank of SGLang (static) picks in each MoE layer: chances of 0 and 1.

    Every rank draws for itself, with the same seed: for an expert of which it has none near, it deals the replicas to
    all ranks that have none near, as evenly as can be, and keeps what comes to itself. Layers of the model are gone
    through in order, dense ones too, in whose rows of the map slot p has expert p modulo the experts.
    """
    rows = {layer: row for row, layer in enumerate(instance.moe_layers)}
    dense = _dense_layer(instance, len(layers[0].gpu))
    order = [layers[rows[index]] if index in rows else dense for index in range(instance.model.layers)]
    near = {id(layer): _near(layer) for layer in (*layers, dense)}
    without = {
        key: [np.flatnonzero(column < 0).tolist() for column in table.T] for key, table in near.items()
    }  # ranks that draw, by expert
    own = {id(layer): [layer.of(e).tolist() for e in range(instance.model.experts)] for layer in (*layers, dense)}
    picks = []
    for rank in range(instance.gpus):
        draw, found = random.Random(_SEED), {}  # noqa: S311  # the engine's own numbers
        for index, layer in enumerate(order):
            taken = near[id(layer)][rank].copy()
            for expert in np.flatnonzero(taken < 0).tolist():
                taken[expert] = _dealt(own[id(layer)][expert], without[id(layer)][expert], rank, draw)
            found[index] = taken
        moe = [(layers[row], found[index]) for index, row in rows.items()]
        picks.append([(taken[layer.expert] == np.arange(len(layer.expert))).astype(np.float64) for layer, taken in moe])
    return picks


def _dense_layer(instance: Instance, slots: int) -> _Layer:
    """Return the layer that a dense layer's row of SGLang's map describes; no token ever asks for it."""
    expert = np.arange(slots) % instance.model.experts
    gpu = np.arange(slots) // max(1, slots // instance.gpus)
    order = np.lexsort((gpu, expert))
    return _Layer(instance, expert[order], gpu[order], order)


def _dealt(own: list[int], without: list[int], rank: int, draw: random.Random) -> int:
    """Deal an expert's replicas to the ranks that have none near, and return what comes to ``rank``."""
    whole, rest = divmod(len(without), len(own))
    cards = own * whole + draw.sample(own, k=rest)
    draw.shuffle(cards)
    return cards[without.index(rank)]


def _vllm_hash(layer: _Layer, hops: Ints) -> list[View]:
    """vLLM: a hash of the token's index in its rank's batch, modulo replicas; one class of indices is one view."""
    del hops
    index = np.arange(int(layer.instance.traffic.tokens_per_gpu), dtype=np.int64)
    hashed = (index * _HASH) % _WORD
    count = np.bincount(layer.expert)
    sizes = np.unique(count[count > 0])
    classes, times = np.unique(hashed[:, None] % sizes[None, :], axis=0, return_counts=True)
    nth = np.concatenate([np.arange(m) for m in count.tolist()])
    views = []
    for residues, share in zip(classes, times / len(index), strict=True):
        picked = residues[np.searchsorted(sizes, count[layer.expert])]
        chance = (nth == picked).astype(np.float64)
        views.append(View(_everywhere(layer, share), _given(layer, chance)))
    return views


def _vllm_ascend(layer: _Layer, hops: Ints) -> list[View]:
    """vllm-ascend: one replica for each rank, by its number and, with tensor parallelism, by the expert's."""
    del hops
    tp = layer.instance.parallelism.attention_tp
    count = np.bincount(layer.expert)
    nth = np.concatenate([np.arange(m) for m in count.tolist()])

    def picks(gpu: int) -> Floats:
        number = gpu if tp == 1 else gpu % tp + gpu // tp + layer.expert
        return np.asarray(nth == number % count[layer.expert], dtype=np.float64)

    return _by_rank(layer, picks)


RULES_BY_NAME: dict[str, Callable[[_Layer, Ints], list[View]]] = {
    "nearest": _nearest,
    "sglang-static": _sglang_dynamic,  # through `_sglang_static`, since a rank's draws go on from layer to layer
    "sglang-dynamic": _sglang_dynamic,
    "vllm-hash": _vllm_hash,
    "vllm-ascend": _vllm_ascend,
    "trtllm-round-robin": _round_robin,
}


def best_split(network: Network, tokens: Floats, expert: Ints, place: Ints) -> Floats:
    """Split every node's tokens for each expert over its replicas so that the busiest link costs least.

    ``minimise z`` with ``sum over replicas i of e of x[s, i] = tokens[s, e]`` and, for every link,
    ``sum of scale * share * x <= z``: whatever rule tokens follow, no link can do better with this placement.

    Parameters
    ----------
    network : Network
        Links, and who crosses them.
    tokens : float array [nodes, experts]
        Tokens per step of each node that choose each expert.
    expert, place : int array [replicas]
        Which expert each is of, and where it is: a node, or a GPU where these receive by NICs of their own.

    Returns
    -------
    float array [nodes, replicas]
    """
    from scipy import sparse  # only where a split is asked for
    from scipy.optimize import linprog

    nodes, items = len(tokens), len(expert)
    source, item = (grid.ravel() for grid in np.meshgrid(np.arange(nodes), np.arange(items), indexing="ij"))
    places = len(network.home)
    costs = (network.share * network.scale[network.link], (network.link, network.source * places + network.target))
    at = sparse.csr_array(costs, shape=(len(network.links), nodes * places))
    left = at[:, source * places + place[item]]
    bound = sparse.hstack([left, sparse.csr_array(-np.ones((len(network.links), 1)))])
    groups = sparse.csr_array(
        (np.ones(nodes * items), (source * tokens.shape[1] + expert[item], np.arange(nodes * items))),
        shape=(nodes * tokens.shape[1], nodes * items + 1),
    )
    cost = np.zeros(nodes * items + 1)
    cost[-1] = 1.0
    solved = linprog(
        cost, A_ub=bound, b_ub=np.zeros(len(network.links)), A_eq=groups, b_eq=tokens.ravel(), method="highs"
    )
    if solved.x is None:
        raise InputError(Mistake(f"no split ({solved.message})", "one for each expert with a replica", "routing"))
    return np.asarray(solved.x[:-1].reshape(nodes, items))
