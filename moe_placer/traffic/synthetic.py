"""Seeded tokens with the skew and structure of real routing.

Calibrated to figures published for, or measured on, recordings of real models (ranges over models and texts). The right
columns are medians over layers and domains, measured by tests/traffic/test_synthetic.py on 12 MoE layers, seed 1, with
20,000 tokens a domain:

======================================================  ==============  ==========  ==========
figure                                                  real            64, top-8   256, top-8
======================================================  ==============  ==========  ==========
largest / mean load of a layer, one domain              2.2 to 6.1      3.0         5.8
  least and largest over layers (DeepSeek-V3, 256)      3.2 and 13.2    2.2, 5.2    4.3, 19.4
sigma of ln load, one domain                            0.21 to 1.21    0.80        0.95
largest / mean load, all domains mixed                  2.0 to 3.6      2.0         3.5
sigma of ln load, all domains mixed                     0.23 to 0.50    0.38        0.59
correlation of expert loads between domains             0.06 to 0.21    0.12        0.14
pair mass away from independence, within a layer        0.35 to 0.46    0.37        0.39
99th percentile of a pair's lift                        5 to 9          5.9         6.2
bits that an expert tells about the next layer's        0.5 to 0.9      0.55        0.67
======================================================  ==============  ==========  ==========

DeepSeek-V3's loads spread less than generated ones with as many experts (sigma 0.66), though their peaks are as high:
it has fewer cold experts than any log-normal popularity gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.instance.schema import Model
from moe_placer.traffic.recording import Recording, Traffic

__all__ = ["DOMAINS", "Domain", "make_domain", "sample_domain", "steepness", "synthesize"]

Floats = npt.NDArray[np.float64]
Groups = tuple[int, int] | None

DOMAINS = 4
TOKENS = 1024  # per domain
TOPICS = 24  # per domain
SIGMA = 0.60  # of ln popularity of an expert in a domain, before topics add theirs
SIGMA_SPREAD = 0.35  # of ln sigma, from layer to layer
COMMON = 0.40  # share of the variance of ln popularity that all domains have in common
TOPIC_SIGMA = 2.2  # of ln popularity of an expert in a topic, around its domain's
SPARSITY = 32.0  # experts per chosen expert for which the sigmas hold; denser routing saturates, and needs more
_MIX = 2.0  # concentration of a node's domain shares: the lower, the more uneven
_NEIGHBOURS = 4  # nodes that share half of their mix
_GRID = 2.0**-30  # of the mix: processors that fuse multiplications differ in the last bits, and the hash must not
_BLOCK = 256  # tokens at a time, so that their keys stay in the cache


@dataclass(frozen=True)
class Domain:
    """The popularity of experts in one domain: ``chance[layer, topic, expert]``, rows sum to 1."""

    chance: Floats


def synthesize(instance: Instance, seed: int, tokens: int = TOKENS, window: int = 0) -> Traffic:
    """Generate four domains of so many tokens each, and a mix of them for every node.

    Windows are other tokens of the same domains in the same mix: 0 is what an instance names, 1 what comes next.

    A token has a topic, the same in all layers, and draws its top-k experts one after the other without replacement
    (Plackett-Luce) from the topic's log-normal popularity. Topics make experts co-activate and make one layer tell
    about the next. The same instance sizes and seed always give the same tokens.

    Parameters
    ----------
    instance : Instance
    seed : int
        Of everything random.
    tokens : int
        Tokens of each domain.
    window : int
        Which draw of tokens from the same domains; 0 is the first.
    """
    rng = np.random.default_rng(seed)
    layers, experts, groups = len(instance.moe_layers), instance.model.experts, _groups(instance.model)
    common = rng.standard_normal((layers, experts))
    steep = steepness(experts, instance.model.top_k)
    sigma = SIGMA * steep * np.exp(SIGMA_SPREAD * rng.standard_normal(layers))
    recordings = []
    for number in range(DOMAINS):
        domain = make_domain(rng, common, sigma, TOPIC_SIGMA * steep)
        topk = sample_domain(domain, tokens, instance.model.top_k, rng, groups)
        if window:  # beside the first, whose draws decide what the next domain is
            later = np.random.default_rng((seed, number, window))
            topk = sample_domain(domain, tokens, instance.model.top_k, later, groups)
        load = np.stack([np.bincount(topk[:, layer].ravel(), minlength=experts) for layer in range(layers)])
        count = np.full(layers, float(tokens))
        name = f"synthetic-{number}" + (f", window {window}" if window else "")
        recordings.append(Recording(name, load.astype(np.float64), count, topk))
    return Traffic(tuple(recordings), _mix(rng, instance.cluster.nodes))


def steepness(experts: int, top_k: int) -> float:
    """How much larger than stated the sigmas must be where a token chooses a larger share of the experts."""
    return float(np.clip(np.sqrt(SPARSITY * top_k / experts), 0.5, 3.0))


def make_domain(rng: np.random.Generator, common: Floats, sigma: Floats, topic_sigma: float) -> Domain:
    """Draw a domain's popularities around what all domains have in common [layers, experts].

    Parameters
    ----------
    rng : Generator
        Source of everything random.
    common : float array
        Popularity that all domains share [layers, experts].
    sigma : float array
        Spread of the logarithms [layers].
    topic_sigma : float
        Spread of the logarithms between topics.
    """
    layers, experts = common.shape
    own = np.sqrt(COMMON) * common + np.sqrt(1 - COMMON) * rng.standard_normal((layers, experts))
    chance = rng.standard_normal((layers, TOPICS, experts))
    # In place: with 1000 layers of 8192 experts this is the largest array by far.
    chance *= topic_sigma
    chance += sigma[:, None, None] * own[:, None, :]
    np.exp(chance, out=chance)
    chance /= chance.sum(axis=2, keepdims=True)
    return Domain(chance)


def _groups(model: Model) -> Groups:
    return None if model.expert_groups is None or model.top_groups is None else (model.expert_groups, model.top_groups)


def sample_domain(
    domain: Domain, tokens: int, top_k: int, rng: np.random.Generator, groups: Groups = None
) -> npt.NDArray[np.uint16]:
    """Draw tokens' choices [tokens, layers, top_k].

    Parameters
    ----------
    domain : Domain
        Popularities to draw from.
    tokens : int
        How many tokens.
    top_k : int
        Experts that a token chooses.
    rng : Generator
        Source of everything random.
    groups : (int, int) or None
        Groups of neighbouring experts, and how many of them a token's experts are from; None: any.
    """
    topics = domain.chance.shape[1]
    # Some topics are common and some rare (Zipf), as in text.
    frequency = 1 / (np.arange(topics) + 3.0)
    topic = _draw(np.cumsum(frequency / frequency.sum()), rng.random(tokens))
    return np.stack([_choose(chance, topic, top_k, rng, groups) for chance in domain.chance], axis=1)


def _draw(cumulative: Floats, u: Floats) -> npt.NDArray[np.int64]:
    return np.minimum(np.searchsorted(cumulative, u, side="right"), len(cumulative) - 1)


def _choose(
    chance: Floats, topic: npt.NDArray[np.int64], top_k: int, rng: np.random.Generator, groups: Groups
) -> npt.NDArray[np.uint16]:
    """Draw top_k different experts for each token: those of the smallest exponential keys.

    Choosing by the smallest of keys ``Exponential / chance`` is drawing one after the other without replacement in
    proportion to what is left (Efraimidis and Spirakis, 2006). With groups, those with the best pair of experts stay
    (DeepSeek-V3, 2024, section 2.1.2): the smallest product of two keys, which is the largest sum of logarithms.
    """
    experts = chance.shape[1]
    rate = (1 / np.maximum(chance, 1e-30)).astype(np.float32)
    chosen = np.empty((len(topic), top_k), dtype=np.uint16)
    for start in range(0, len(topic), _BLOCK):
        block = topic[start : start + _BLOCK]
        keys = rng.standard_exponential((len(block), experts), dtype=np.float32)
        keys *= rate[block]
        if groups is not None:
            _forbid_groups(keys, *groups)
        chosen[start : start + _BLOCK] = _smallest(keys, top_k)
    return chosen


def _forbid_groups(keys: npt.NDArray[np.float32], count: int, top: int) -> None:
    """Make infinite the keys of experts in all but each token's best groups."""
    by_group = keys.reshape(len(keys), count, -1)
    pair = min(2, by_group.shape[2])
    best = np.partition(by_group, pair - 1, axis=2)[:, :, :pair].prod(axis=2, dtype=np.float64)
    chosen = np.argsort(best, axis=1, kind="stable")[:, :top]
    others = np.ones(best.shape, dtype=bool)
    np.put_along_axis(others, chosen, False, axis=1)
    by_group[others] = np.inf


def _smallest(keys: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Return the columns of each row's smallest keys, in ascending order; of equal keys, the first."""
    rows, columns = keys.shape
    limit = np.partition(keys, count - 1, axis=1)[:, count - 1 : count]
    found = np.flatnonzero(keys <= limit)
    if len(found) == rows * count:
        return np.asarray((found % columns).reshape(rows, count))
    return np.asarray(np.sort(np.argsort(keys, axis=1, kind="stable")[:, :count], axis=1))


def _mix(rng: np.random.Generator, nodes: int) -> Floats:
    """Draw each node's shares of the domains, half of it shared with its neighbours (as request routing makes it)."""
    own = rng.dirichlet(np.full(DOMAINS, _MIX), nodes)
    shared = rng.dirichlet(np.full(DOMAINS, _MIX), -(-nodes // _NEIGHBOURS))
    mix = (own + np.repeat(shared, _NEIGHBOURS, axis=0)[:nodes]) / 2
    mix = np.round(mix / mix.sum(axis=1, keepdims=True) / _GRID) * _GRID
    mix[:, 0] = 1.0 - mix[:, 1:].sum(axis=1)  # exact on a grid of binary fractions
    return np.asarray(mix)
