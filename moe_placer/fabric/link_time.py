"""What tokens on links cost, and how long they take: the one place where loads become costs and times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe_placer.fabric.graph import cable, link_name
from moe_placer.fabric.nics import nic_bandwidths
from moe_placer.instance import Instance
from moe_placer.instance.sizes import GB, dispatch_wire

__all__ = ["COST", "dispatch_us", "link_bandwidths", "link_us", "link_words", "token_cost", "wire_us"]

Floats = npt.NDArray[np.float64]

# What a cost is, in the words that every table, drawing and page uses, by `objective.metric`.
COST = {
    "time": "tokens at node-link speed (a token on a link of half a node's bandwidth costs 2)",
    "tokens": "plain tokens, whatever the link's bandwidth (metric: tokens)",
}


def link_bandwidths(instance: Instance, links: Sequence[str]) -> Floats:
    """Bandwidths of links by name, in GB/s, one direction [K]; ``@`` and a number say for which scenario, if any."""
    edges = cable(instance).links()
    known = {link_name(source, target): float(data["bandwidth"]) for source, target, data in edges}
    known |= nic_bandwidths(instance)
    return np.array([known[name.partition("@")[0]] for name in links], dtype=np.float64)


def token_cost(instance: Instance, gb_per_s: Floats) -> Floats:
    """Cost of one token on links of these bandwidths [K]: ``B_node / bandwidth``, or 1 under ``metric: tokens``."""
    if instance.objective.metric == "tokens":
        return np.ones_like(gb_per_s)
    return np.asarray(instance.cluster.fabric.node_gb_per_s / gb_per_s)


def wire_us(size: float, gb_per_s: Floats, utilization: float) -> Floats:
    """Microseconds that links need for so many bytes each [K]; all times of links come from here.

    Parameters
    ----------
    size : float
        Bytes, of one token for instance.
    gb_per_s : float array [K]
        Bandwidths of the links, one direction.
    utilization : float
        Share of a link's bandwidth that is reached.
    """
    return np.asarray(1e6 * size / (gb_per_s * GB * utilization))


def link_us(instance: Instance, gb_per_s: Floats, load: Floats) -> Floats:
    """Microseconds of dispatch that each link needs for its tokens, at its real bandwidth whatever the metric counts.

    The way back takes `moe_placer.instance.sizes.back_ratio` times as long on the link of the other direction.

    Parameters
    ----------
    gb_per_s : float array [K]
        Bandwidths of the links.
    load : float array [..., K]
        Plain tokens on each of them.

    Returns
    -------
    float array [..., K]
        ``tokens * bytes per token / (bandwidth * link_utilization)``.
    """
    fabric = instance.cluster.fabric
    return np.asarray(load * wire_us(dispatch_wire(instance).token_bytes, gb_per_s, fabric.link_utilization))


def dispatch_us(instance: Instance, gb_per_s: Floats, load: Floats) -> float:
    """Microseconds of the dispatch of layers one after the other, each as long as the link that needs longest.

    Parameters
    ----------
    gb_per_s : float array [K]
        Bandwidths of the links.
    load : float array [MoE layers, K]
        Plain tokens per step on each of them.
    """
    return float(link_us(instance, gb_per_s, load).max(axis=-1, initial=0.0).sum())


def link_words(tokens: float, us: float, cost: float) -> str:
    """Write what a link carries per step, as everywhere: ``31,768 tokens, 2,846.4 µs (cost 63,536)``.

    Parameters
    ----------
    tokens : float
        Plain tokens.
    us : float
        Microseconds that the link needs for them, one way, at its real bandwidth.
    cost : float
        As `COST` defines it.
    """
    return f"{tokens:,.0f} tokens, {us:,.1f} µs (cost {cost:,.0f})"
