"""Layers judged by the worst of several traffics, each link and each source counted once for each of them.

In scenario j the tokens of every node are like recording j. Node s of scenario j is source ``j * nodes + s``, and loads
links of that scenario only, whose names end in ``@j``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moe_placer.instance import Instance
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier.network import Network
from moe_placer.verifier.placed import PlacedLayer, read_layers
from moe_placer.verifier.rules import Replica

__all__ = ["judge"]


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
    alone = np.ones((instance.cluster.nodes, 1))
    each = [
        read_layers(instance, network, Traffic((recording,), alone), replicas, whole)
        for recording in traffic.recordings
    ]
    together = [_together(layers) for layers in zip(*each, strict=True)]
    return _repeated(network, instance.cluster.nodes, len(each)), together


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
    )


def _together(scenarios: Sequence[PlacedLayer]) -> PlacedLayer:
    """Put one layer of every scenario side by side."""
    demands = [one.demand for one in scenarios if one.demand is not None]
    return replace(
        scenarios[0],
        demand=np.vstack(demands) if len(demands) == len(scenarios) else None,
        roundings=max(one.roundings for one in scenarios),
        load=np.concatenate([one.load for one in scenarios]),
        worst_pair=max(one.worst_pair for one in scenarios),
    )
