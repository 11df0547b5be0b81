"""The network models of SimGrid that ours is compared with, from our own assumptions to its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LINK_LATENCY_US", "MODELS", "NetworkModel"]

LINK_LATENCY_US = 0.5  # of a link and the switch or NIC behind it; µs

# SimGrid's names; all that its model LV08 changes against plain max-min sharing is set here, whatever the defaults are.
_PLAIN = {
    "network/model": "CM02",
    "network/bandwidth-factor": "1",
    "network/latency-factor": "1",
    "network/weight-S": "0",
    "network/TCP-gamma": "0",
    "network/crosstraffic": "0",
}
_LV08 = {
    "network/model": "LV08",
    "network/bandwidth-factor": "0.97",
    "network/latency-factor": "13.01",
    "network/weight-S": "20537",
    "network/TCP-gamma": "4194304",
    "network/crosstraffic": "1",
}


@dataclass(frozen=True)
class NetworkModel:
    """One way to run an all-to-all in SimGrid.

    Every flow of a node pair is split evenly into one flow per shortest path.

    Attributes
    ----------
    summary : str
        What it assumes.
    config : mapping
        SimGrid's options.
    latency_us : float
        Of every link.
    fair_pairs : bool
        Whether a node pair, not each of its paths, has one share of a link: its flows then weigh 1 / paths.
    """

    summary: str
    config: Mapping[str, str]
    latency_us: float
    fair_pairs: bool


MODELS = {
    "fair pairs": NetworkModel(
        "CM02 without latency; the paths of a node pair together have one share of a link, as ours assumes",
        _PLAIN,
        0.0,
        fair_pairs=True,
    ),
    "fair paths": NetworkModel(
        "CM02 without latency; each path of a node pair has a share of its own, as connections of their own have",
        _PLAIN,
        0.0,
        fair_pairs=False,
    ),
    "CM02": NetworkModel(
        f"CM02 with {LINK_LATENCY_US} µs a link; shares in inverse proportion to a path's latency, no TCP corrections",
        _PLAIN,
        LINK_LATENCY_US,
        fair_pairs=False,
    ),
    "LV08, no ACKs": NetworkModel(
        f"LV08, made for TCP, with {LINK_LATENCY_US} µs a link: 97% of the bandwidth, 13.01 times the latency",
        {**_LV08, "network/crosstraffic": "0"},
        LINK_LATENCY_US,
        fair_pairs=False,
    ),
    "LV08": NetworkModel(
        "SimGrid's default: the same, and each flow's acknowledgements take 5% of its rate on the way back",
        _LV08,
        LINK_LATENCY_US,
        fair_pairs=False,
    ),
}
