"""Compiles what every node sends where a token goes once per node (or GPU); refuses traffic that does not say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.errors import InputError, Mistake
from moe_placer.instance import Instance
from moe_placer.problem.coverage import Coverage, Sending
from moe_placer.problem.link_costs import scaled_rows
from moe_placer.traffic import Traffic
from moe_placer.traffic.token_sets import token_sets_of_layers

__all__ = ["compile_coverage"]

Floats = npt.NDArray[np.float64]


def compile_coverage(
    instance: Instance, traffic: Traffic, shares: sparse.csr_array, scale: Floats
) -> tuple[Coverage, ...]:
    """Compile what every MoE layer sends; empty where each chosen expert gets its own copy.

    Parameters
    ----------
    instance : Instance
    traffic : Traffic
    shares : sparse array [links, nodes * nodes]
        Share of the traffic from node s to node d that crosses each link, in column ``s * nodes + d``.
    scale : float array [links]
        Cost of one token on each link.

    Raises
    ------
    InputError
        A recording has loads only: which experts a token chose together is not known.
    """
    if not instance.placement.counts_tokens_once:
        return ()
    blind = [number for number, recording in enumerate(traffic.recordings) if recording.topk is None]
    if blind:
        dispatch = instance.placement.dispatch
        found = f"{dispatch}, with expert loads only ({traffic.recordings[blind[0]].name})"
        expected = (
            "per-expert, or traces with every token's choice (kind: trace or synthetic): how many copies of a token "
            f"{dispatch} saves depends on which experts it chooses together, and loads do not say"
        )
        raise InputError(Mistake(found, expected, "placement.dispatch"))
    nodes, drawn = instance.cluster.nodes, instance.placement.draws_evenly
    views = 1 if drawn else instance.parallelism.dp
    view = np.zeros(nodes, dtype=np.int64) if drawn else np.arange(nodes) * views // nodes
    started = instance.traffic.tokens_per_gpu * instance.cluster.gpus_per_node
    sending = Sending(view, views, drawn, started * traffic.mix, scaled_rows(shares, scale))
    layers = range(len(instance.moe_layers))
    return tuple(Coverage(sets, sending) for sets in token_sets_of_layers(traffic, layers, instance.model.experts))
