"""Batches in which no GPU sends or receives two experts at once: an edge colouring of a bipartite multigraph.

Transfers are edges from what sends to what receives. As many batches as the largest degree suffice (Koenig 1916): an
edge for which no batch is free at both ends gets one by exchanging two batches along an alternating path. Links of the
fabric that all transfers of a batch together would fill more than once are then relieved by exchanging two batches on
components of their edges (Kempe chains), which leaves every batch without two transfers at one end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["colour_edges", "relieve"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_ROUNDS = 400
_HELPS = 1e-9
_OTHERS = 0.01


def colour_edges(edges: Sequence[tuple[int, int]], colours: int, use: Floats) -> Ints:
    """Return a colour for each edge, so that edges with an end in common have different ones.

    Parameters
    ----------
    edges : sequence of (sender, receiver)
    colours : int
        At least the largest degree.
    use : float array [edges, links]
        What each edge uses of the links that count; of colours that are free, the one with the least of that is taken.
    """
    colour = np.full(len(edges), -1, dtype=np.int64)
    sends: dict[int, dict[int, int]] = {}  # sender: colour: edge
    takes: dict[int, dict[int, int]] = {}
    load = np.zeros((colours, use.shape[1]))
    count = np.zeros(colours)
    for edge, (sender, receiver) in enumerate(edges):
        mine, theirs = sends.setdefault(sender, {}), takes.setdefault(receiver, {})
        both = [c for c in range(colours) if c not in mine and c not in theirs]
        if both:
            after = (load[both] + use[edge]).max(axis=1, initial=0.0)
            chosen = min(range(len(both)), key=lambda i: (after[i], count[both[i]]))
            c = both[chosen]
        else:
            c = next(c for c in range(colours) if c not in mine)
            other = next(c for c in range(colours) if c not in theirs)
            _exchange(edges, colour, sends, takes, receiver, c, other, (load, use, count))
        colour[edge] = c
        mine[c] = theirs[c] = edge
        load[c] += use[edge]
        count[c] += 1
    return colour


def _exchange(
    edges: Sequence[tuple[int, int]],
    colour: Ints,
    sends: dict[int, dict[int, int]],
    takes: dict[int, dict[int, int]],
    receiver: int,
    c: int,
    other: int,
    tally: tuple[Floats, Floats, Floats],
) -> None:
    """Exchange two colours on the path from a receiver that has an edge of colour ``c`` and none of the other."""
    path, at, table, now = [], receiver, takes, c
    while now in table.get(at, {}):
        edge = table[at][now]
        path.append(edge)
        at = edges[edge][0] if table is takes else edges[edge][1]
        table = sends if table is takes else takes
        now = other if now == c else c
    load, use, count = tally
    for edge in path:
        sender, end = edges[edge]
        sends[sender].pop(int(colour[edge]))
        takes[end].pop(int(colour[edge]))
        load[colour[edge]] -= use[edge]
        count[colour[edge]] -= 1
    for edge in path:
        sender, end = edges[edge]
        colour[edge] = other if colour[edge] == c else c
        sends[sender][int(colour[edge])] = edge
        takes[end][int(colour[edge])] = edge
        load[colour[edge]] += use[edge]
        count[colour[edge]] += 1


def relieve(edges: Sequence[tuple[int, int]], colour: Ints, colours: int, use: Floats) -> Ints:
    """Exchange colours on components of two of them while that shortens the batches together.

    A batch takes as long as its fullest link needs, and at least 1.

    Parameters
    ----------
    edges : sequence of (sender, receiver)
    colour : int array [edges]
        Edges with an end in common have different ones.
    colours : int
        How many there are.
    use : float array [edges, links]
        Share of each link's bandwidth that each edge uses.
    """
    colour = colour.copy()
    if not use.size:
        return colour
    load = np.zeros((colours, use.shape[1]))
    np.add.at(load, colour, use)
    for _ in range(_ROUNDS):
        longest = load.max(axis=1)
        for one in np.argsort(-longest, kind="stable").tolist():
            if longest[one] <= 1 + _HELPS:
                return colour
            if _relieve_one(edges, colour, load, use, one):
                break
        else:
            return colour
    return colour


def _relieve_one(edges: Sequence[tuple[int, int]], colour: Ints, load: Floats, use: Floats, one: int) -> bool:
    """Exchange one colour with the other, and on the component, that shortens both together most."""
    best: tuple[float, list[int], int, Floats] | None = None
    for other in np.argsort(load.max(axis=1), kind="stable").tolist():
        if other == one:
            continue
        before = _length(load[one]) + _length(load[other])
        for part in _components(edges, np.flatnonzero((colour == one) | (colour == other))):
            sign = np.where(colour[part] == one, -1.0, 1.0)
            moved = sign @ use[part]  # what `one` gets more
            after = _length(load[one] + moved) + _length(load[other] - moved)
            if after - before < (best[0] if best else -_HELPS):
                best = (after - before, part, other, moved)
    if best is None:
        return False
    _, part, other, moved = best
    colour[part] = np.where(colour[part] == one, other, one)
    load[one] += moved
    load[other] -= moved
    return True


def _length(load: Floats) -> float:
    """Return how long a batch takes, and a little for every other link that is too full."""
    over = np.maximum(0.0, load - 1.0)
    return 1.0 + float(over.max()) + _OTHERS * float(over @ over)


def _components(edges: Sequence[tuple[int, int]], some: Ints) -> list[list[int]]:
    """Group edges that are connected by common ends."""
    at: dict[tuple[bool, int], list[int]] = {}
    for edge in some.tolist():
        sender, receiver = edges[edge]
        at.setdefault((True, sender), []).append(edge)
        at.setdefault((False, receiver), []).append(edge)
    seen: set[int] = set()
    found = []
    for first in some.tolist():
        if first in seen:
            continue
        part, todo = [], [first]
        seen.add(first)
        while todo:
            edge = todo.pop()
            part.append(edge)
            for end in ((True, edges[edge][0]), (False, edges[edge][1])):
                for near in at[end]:
                    if near not in seen:
                        seen.add(near)
                        todo.append(near)
        found.append(part)
    return found
