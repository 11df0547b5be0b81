"""Layers judged by the worst of several traffics, each link and each source counted once for each of them.

In scenario j the tokens of every node are like recording j, or like window j of the recordings that it mixes. Node s of
scenario j is source ``j * nodes + s``, and loads links of that scenario only, whose names end in ``@j``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake
from moe_placer.instance import Instance
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.verifier.links import Network
from moe_placer.verifier.placed_layers import PlacedLayer, read_layers
from moe_placer.verifier.rules import Replica

__all__ = ["count_scenarios", "judge", "judged", "lawful_weights", "most_over_busiest"]

TOLERANCE = 1e-12
NO_WEIGHT = 1e-100  # less than this of all links of a scenario together counts as none


def judged(instance: Instance, scenarios: int, cost: npt.NDArray[np.float64]) -> float:
    """Return z of a layer: the largest cost of any link, or the mean over scenarios, and standard deviations."""
    objective = instance.objective
    if objective.take == "worst":
        return float(cost.max(initial=0.0))
    each = [float(part.max(initial=0.0)) for part in np.split(cost, scenarios)]
    mean = math.fsum(each) / scenarios
    return mean + objective.sigmas * math.sqrt(math.fsum((one - mean) ** 2 for one in each) / scenarios)


def most_over_busiest(instance: Instance, scenarios: int) -> float:
    """Return the most that z of a layer can be over the cost of its busiest link: above 1 where deviations are added.

    ``mean + s * deviation`` is convex in what scenarios cost. So over all costs of at most 1 it is largest where so
    many of them cost 1, and the others nothing.
    """
    if instance.objective.take == "worst":
        return 1.0
    parts = [count / scenarios for count in range(1, scenarios + 1)]
    return max(part + instance.objective.sigmas * math.sqrt(part * (1 - part)) for part in parts)


def lawful_weights(instance: Instance, links: Sequence[str], weights: Mapping[str, float]) -> Mapping[str, float]:
    """Return link weights that prove something of a mean over scenarios, near to those given.

    ``mean + s * deviation >= sum_j p[j] z[j]`` for all p with sum 1 and ``sum_j (p[j] - 1/J)**2 <= s**2 / J`` (Cauchy
    and Schwarz), and ``z[j]`` is at least any weighted mean of the links of j. So p is drawn towards the even one until
    it is such, and the weights of each scenario are scaled to it; one without any has its first link.
    """
    if instance.objective.take == "worst" or not links:
        return weights
    of: dict[str, list[str]] = {}
    for link in links:
        of.setdefault(link.rpartition("@")[2], []).append(link)
    sums = {key: math.fsum(max(0.0, weights.get(link, 0.0)) for link in own) for key, own in of.items()}
    total, even, s = math.fsum(sums.values()), 1 / len(of), instance.objective.sigmas
    away = {key: (value / total if total >= NO_WEIGHT else even) - even for key, value in sums.items()}
    length = math.sqrt(math.fsum(value**2 for value in away.values()))
    most = s / math.sqrt(len(of)) * (1 - TOLERANCE)
    drawn = min(1.0, most / length) if length > 0 else 0.0
    found: dict[str, float] = {}
    for key, own in of.items():
        part = even + away[key] * drawn
        if sums[key] >= NO_WEIGHT:
            found.update((link, max(0.0, weights.get(link, 0.0)) / sums[key] * part) for link in own)
        else:
            found[own[0]] = part
    return found


def judge(
    instance: Instance,
    network: Network,
    traffic: Traffic,
    replicas: Sequence[Replica],
    whole: set[int],
    of_mix: list[PlacedLayer],
) -> tuple[Network, list[PlacedLayer]]:
    """Return links and layers as the objective judges them: those of the mix, or of every recording in turn.

    Parameters
    ----------
    instance : Instance
    network : Network
        Links, routes and bandwidths of the fabric.
    traffic : Traffic
        Routing statistics of the instance's sources.
    replicas : sequence of Replica
        Every replica of the placement.
    whole : set of int
        Layers whose replicas can all be located.
    of_mix : list of PlacedLayer
        Layers with the tokens of the mix.
    """
    if instance.objective.scenarios == "mix":
        return network, of_mix
    each = [read_layers(instance, network, one, replicas, whole) for one in _scenarios(instance, traffic)]
    together = [_together(layers) for layers in zip(*each, strict=True)]
    return _repeated(network, instance.cluster.nodes, len(each)), together


def count_scenarios(instance: Instance, traffic: Traffic) -> int:
    """Return how many scenarios there are; without any, the recordings of the mix."""
    return instance.objective.windows or len(traffic.recordings)


def _scenarios(instance: Instance, traffic: Traffic) -> list[Traffic]:
    """Return each recording as what all tokens are like, or each window of the recordings, mixed as they are."""
    windows = instance.objective.windows
    if windows is None:
        alone = np.ones((instance.cluster.nodes, 1))
        return [Traffic((recording,), alone) for recording in traffic.recordings]
    return [
        Traffic(tuple(_window(recording, windows, at) for recording in traffic.recordings), traffic.mix)
        for at in range(windows)
    ]


def _window(recording: Recording, windows: int, at: int) -> Recording:
    """Return one of so many parts of a recording, the first ones a token longer where these are not of one length."""
    if recording.topk is None or len(recording.topk) < windows:
        found = "no token choices" if recording.topk is None else f"{len(recording.topk):,} tokens"
        raise InputError(Mistake(f"{recording.name} with {found}", f"tokens in order for {windows} windows"))
    each, longer = divmod(len(recording.topk), windows)
    first = at * each + min(at, longer)
    return replace(recording, topk=recording.topk[first : first + each + (at < longer)])


def _repeated(network: Network, nodes: int, times: int) -> Network:
    """Give every scenario its own links and sources."""
    links = len(network.links)
    return replace(
        network,
        links=tuple(f"{link}@{scenario}" for scenario in range(times) for link in network.links),
        bandwidth=np.tile(network.bandwidth, times),
        scale=np.tile(network.scale, times),
        us_per_token=np.tile(network.us_per_token, times),
        link=np.concatenate([network.link + scenario * links for scenario in range(times)]),
        source=np.concatenate([network.source + scenario * nodes for scenario in range(times)]),
        target=np.tile(network.target, times),
        share=np.tile(network.share, times),
        alike=np.concatenate([network.alike + scenario * links for scenario in range(times)]),
    )


def _together(scenarios: Sequence[PlacedLayer]) -> PlacedLayer:
    """Put one layer of every scenario side by side."""
    known = all(one.replicas is not None for one in scenarios)

    def demand() -> npt.NDArray[np.float64]:
        return np.vstack([one.demand for one in scenarios if one.demand is not None])

    return replace(
        scenarios[0],
        replicas=scenarios[0].replicas if known else None,
        received=np.sum([one.received for one in scenarios], axis=0) if known else np.zeros(0),
        work_out=demand,
        roundings=max(one.roundings for one in scenarios),
        load=np.concatenate([one.load for one in scenarios]),
        worst_pair=max(one.worst_pair for one in scenarios),
    )
