"""Transfers in batches: those over the network one after the other, and beside them those inside nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.replan.edge_colouring import colour_edges, relieve
from moe_placer.replan.transfers import Transfer, Wires, degree

__all__ = ["Batch", "batch_us", "batches_of", "least_us"]

Floats = npt.NDArray[np.float64]

_ATTEMPTS = 6
_CLOSE = 1.01  # times the bound: good enough


@dataclass(frozen=True)
class Batch:
    """Transfers that run together, and how long they take."""

    transfers: tuple[Transfer, ...]
    us: float


def least_us(wires: Wires, transfers: Sequence[Transfer]) -> float:
    """Return what no order of transfers is faster than: the busiest GPU, or the busiest link of the fabric.

    A GPU sends one expert at a time, and receives one, each no faster than the slowest link on its way.
    """
    near, far = _split(wires, transfers)
    use = _use(wires, far)
    alone, busiest = np.maximum(1.0, use.max(axis=1, initial=0.0)), float(use.sum(axis=0).max(initial=0.0))
    for end in ([t.source for t in far], [t.target for t in far]):
        busiest = max(busiest, float(np.bincount(np.array(end, dtype=np.int64), alone).max(initial=0.0)))
    return max(wires.network_us * busiest, wires.node_us * degree(near))


def batch_us(wires: Wires, transfers: Sequence[Transfer]) -> float:
    """Return how long transfers take that run together, no two at one end: as long as the fullest link needs."""
    near, far = _split(wires, transfers)
    links = float(_use(wires, far).sum(axis=0).max(initial=0.0))
    return max(wires.network_us * max(1.0, links) if far else 0.0, wires.node_us if near else 0.0)


def batches_of(wires: Wires, transfers: Sequence[Transfer]) -> tuple[list[Batch], list[Batch]]:
    """Divide transfers into batches over the network, and batches inside nodes: NVLink is apart from the network."""
    near, far = _split(wires, transfers)
    found = []
    for some in (far, near):
        fewest = degree(some)
        use = _use(wires, some)
        use = use[:, use.sum(axis=0) > 1] if some is far else np.zeros((len(some), 0))
        most = max(fewest, int(np.ceil(use.sum(axis=0).max(initial=0.0) - 1e-9)))
        found.append(_best(wires, some, fewest, most, use) if some else [])
    return found[0], found[1]


def _best(wires: Wires, transfers: Sequence[Transfer], fewest: int, most: int, use: Floats) -> list[Batch]:
    """Try several numbers of batches and orders of the transfers, until the bound is almost reached."""
    rng, enough = np.random.default_rng(0), _CLOSE * least_us(wires, transfers)
    best: list[Batch] = []
    for attempt in range(_ATTEMPTS):
        order = rng.permutation(len(transfers)) if attempt else np.arange(len(transfers))
        for count in sorted({fewest, (fewest + most) // 2, most}):
            found = _batches(wires, [transfers[i] for i in order], count, use[order])
            if not best or sum(b.us for b in found) < sum(b.us for b in best):
                best = found
            if sum(batch.us for batch in best) <= enough:
                return best
    return best


def _batches(wires: Wires, transfers: Sequence[Transfer], count: int, use: Floats) -> list[Batch]:
    ends = [(t.source, t.target) for t in transfers]
    colour = relieve(ends, colour_edges(ends, count, use), count, use)
    groups: list[list[Transfer]] = [[] for _ in range(count)]
    for transfer, c in zip(transfers, colour.tolist(), strict=True):
        groups[c].append(transfer)
    return [Batch(tuple(group), batch_us(wires, group)) for group in groups if group]


def _split(wires: Wires, transfers: Sequence[Transfer]) -> tuple[list[Transfer], list[Transfer]]:
    near = [t for t in transfers if wires.between(t)[0] == wires.between(t)[1]]
    return near, [t for t in transfers if wires.between(t)[0] != wires.between(t)[1]]


def _use(wires: Wires, transfers: Sequence[Transfer]) -> Floats:
    """Share of each link's bandwidth that each transfer uses at full speed [transfers, links]."""
    pairs = np.array([wires.between(t) for t in transfers], dtype=np.int64).reshape(-1, 2)
    return wires.share[pairs[:, 0], pairs[:, 1]]
