"""How much a plan gains over another on traffic that it has not seen, and how sure that is: a bootstrap over units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.experiments.compare.metrics import find_flows
from moe_placer.fabric import link_bandwidths, link_us
from moe_placer.instance import Instance
from moe_placer.instance.sizes import back_ratio, expert_us
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.verifier.loads import read_network

__all__ = ["Interval", "LayerTimes", "draw_weights", "find_gain", "time_layers"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A gain, and where it lies with the confidence that was asked for; all are shares, below 0 for a loss.

    Attributes
    ----------
    gain : float
        On all units that are scored.
    low, high : float
        Percentiles of the gains on units drawn with replacement.
    """

    gain: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class LayerTimes:
    """What one plan takes in each layer, on all units (first row) and on each draw of them (other rows).

    Attributes
    ----------
    link_us : float array [1 + draws, MoE layers]
        Microseconds that the slowest link needs for dispatch, one way.
    gpu_us : float array [1 + draws, MoE layers]
        Microseconds that the busiest GPU computes.
    back : float
        How many times as long as dispatch combine takes, which is dispatch reversed with its own bytes per token.
    """

    link_us: Floats
    gpu_us: Floats
    back: float = 1.0

    @property
    def total_us(self) -> Floats:
        """Dispatch, the busiest GPU, and combine, one after the other."""
        return (1 + self.back) * self.link_us + self.gpu_us


def draw_weights(units: Sequence[Sequence[Recording]], draws: int, seed: int) -> list[Floats]:
    """Draw as many units of each recording as it has, with replacement: how often each, [1 + draws, units].

    Parameters
    ----------
    units : sequence of sequences of Recording
        By recording.
    draws, seed : int
        How many, and of which random generator. Row 0 has every unit once.
    """
    generator = np.random.default_rng(seed)
    found = []
    for of_recording in units:
        count = len(of_recording)
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=draws)
        found.append(np.concatenate([np.ones((1, count)), drawn.astype(np.float64)]))
    return found


def time_layers(
    instance: Instance,
    placement: Placement,
    units: Sequence[Sequence[Recording]],
    mix: Floats,
    weights: Sequence[Floats],
) -> LayerTimes:
    """Send every unit's tokens where a plan has their experts, and time layers of every draw of units.

    Loads are linear in how often tokens occur, so each unit is sent once, by the verifier's own rules.

    Parameters
    ----------
    instance : Instance
    placement : Placement
        Any that can serve the instance.
    units : sequence of sequences of Recording
        By recording.
    mix : float array [nodes, recordings]
        Share of a node's tokens that are like each recording.
    weights : sequence of float arrays [1 + draws, units]
        As `draw_weights` returns them.
    """
    sent = [_send(instance, placement, mix[:, [index]], of_recording) for index, of_recording in enumerate(units)]
    network = read_network(instance)
    bandwidths = link_bandwidths(instance, network.links)
    draws, layers = len(weights[0]), len(instance.moe_layers)
    link, gpu = np.zeros((draws, layers)), np.zeros((draws, layers))
    for layer in range(layers):
        shares = [_shares(weight, of[:, layer]) for weight, (of, _, _) in zip(weights, sent, strict=True)]
        pairs = list(zip(shares, sent, strict=True))
        load = sum((share @ links[:, layer] for share, (_, links, _) in pairs), np.zeros((draws, len(bandwidths))))
        work = sum((share @ gpus[:, layer] for share, (_, _, gpus) in pairs), np.zeros((draws, instance.gpus)))
        link[:, layer] = link_us(instance, bandwidths, load).max(axis=1, initial=0.0)
        gpu[:, layer] = work.max(axis=1)
    shards = instance.parallelism.expert_tp  # `find_flows` divides tokens over them, and `expert_us` does it again
    return LayerTimes(link, gpu * shards * expert_us(instance, 1.0), back_ratio(instance))


def _send(
    instance: Instance, placement: Placement, column: Floats, units: Sequence[Recording]
) -> tuple[Floats, Floats, Floats]:
    """Send each unit's tokens as if the step had only that unit of its recording.

    Returns tokens of each unit [units, layers], and what they put on links [units, layers, links] and on GPUs [units,
    layers, GPUs].
    """
    network = read_network(instance)
    load, work = [], []
    for unit in units:
        safe = Recording(unit.name, unit.load, np.maximum(unit.tokens, 1.0), unit.topk)  # empty layers will weigh 0
        flows = find_flows(instance, placement, Traffic((safe,), column))
        load.append(np.stack([network.load(flow) for flow in flows.sent]))
        work.append(flows.gpu)
    return np.stack([unit.tokens for unit in units]), np.stack(load), np.stack(work)


def _shares(weight: Floats, tokens: Floats) -> Floats:
    """Return each unit's share of a layer's tokens, in every draw [draws, units]."""
    drawn = weight * tokens
    total = drawn.sum(axis=1, keepdims=True)
    shares: Floats = np.divide(drawn, total, out=np.zeros_like(drawn), where=total > 0)
    return shares


def find_gain(before: Floats, after: Floats, confidence: float) -> Interval:
    """Return the share by which some time is shorter after than before, with its interval; draws belong together.

    Parameters
    ----------
    before, after : float arrays [1 + draws]
        Row 0 is of all units.
    confidence : float
        0.95: the interval leaves out 2.5% of the draws at either end.
    """
    gains = 1 - np.divide(after, before, out=np.ones_like(after), where=before > 0)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(gains[1:], [tail, 100 - tail]) if len(gains) > 1 else (gains[0], gains[0])
    return Interval(float(gains[0]), float(low), float(high))
