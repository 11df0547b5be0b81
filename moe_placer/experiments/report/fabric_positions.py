"""Where things are drawn: a fabric's switches in rows above the nodes, or all on circles; names beside lines."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

from moe_placer.experiments.report.rows import InstanceRow, Link

__all__ = ["Point", "label_spots", "lines_of", "place_vertices"]

Point = tuple[float, float]
_LABEL = (0.13, 0.08)  # width and height of a line's name, of the picture's
_GRID = 60  # places at which a line is looked at for its name
_APART = 0.006  # how far a link is drawn from its twin in the other direction, of the picture's width


def place_vertices(row: InstanceRow) -> dict[str, Point]:
    """Return a place in the unit square for every vertex.

    Where links join only neighbouring ranks (nodes, leaves, spines), each rank is a row; where some join vertices of
    one rank, as in a full mesh or a dragonfly, ranks are circles, with the nodes outside.
    """
    ranks = _ranks(row.links)
    rows = [sorted((v for v in ranks if ranks[v] == rank), key=_natural) for rank in range(max(ranks.values()) + 1)]
    if any(ranks[link.source] == ranks[link.target] for link in row.links):
        return _circles(rows)
    places = {}
    for rank, names in enumerate(rows):
        for index, name in enumerate(names):
            places[name] = ((index + 0.5) / len(names), rank / max(1, len(rows) - 1))
    return places


def lines_of(row: InstanceRow, places: dict[str, Point]) -> list[tuple[float, float, float, float]]:
    """Return where each link is drawn, ``(x, y, x2, y2)``; a link and its twin lie side by side."""
    lines = []
    for link in row.links:
        (x, y), (x2, y2) = places[link.source], places[link.target]
        length = math.hypot(x2 - x, y2 - y) or 1.0
        dx, dy = _APART * (y2 - y) / length, -_APART * (x2 - x) / length
        lines.append((round(x + dx, 4), round(y + dy, 4), round(x2 + dx, 4), round(y2 + dy, 4)))
    return lines


def _ranks(links: Iterable[Link]) -> dict[str, int]:
    """Return how far each vertex is from the nodes, in links."""
    neighbours: dict[str, set[str]] = {}
    for link in links:
        neighbours.setdefault(link.source, set()).add(link.target)
        neighbours.setdefault(link.target, set()).add(link.source)
    front = sorted(v for v in neighbours if re.fullmatch(r"node\d+", v)) or sorted(neighbours)
    ranks = dict.fromkeys(front, 0)
    while front:
        reached = sorted({v for here in front for v in neighbours[here]} - ranks.keys())
        ranks |= dict.fromkeys(reached, ranks[front[0]] + 1)
        front = reached
    return {v: ranks.get(v, 0) for v in sorted(neighbours)}


def _circles(rows: list[list[str]]) -> dict[str, Point]:
    places = {}
    for rank, names in enumerate(rows):
        radius = 0.46 * (len(rows) - rank) / len(rows)
        for index, name in enumerate(names):
            angle = 2 * math.pi * (index + 0.5) / len(names) - math.pi / 2
            places[name] = (0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle))
    return places


def _natural(name: str) -> tuple[str, int]:
    """Sort node2 before node10."""
    match = re.fullmatch(r"(.*?)(\d+)", name)
    return (match[1], int(match[2])) if match else (name, -1)


def label_spots(lines: Mapping[str, Sequence[Point]], named: Iterable[str]) -> dict[str, Point]:
    """Return for each named line a point of it beside which its name is farthest from other lines and names.

    Lines are stepped: each holds its height until its next point.
    """
    points = sorted({point for line in lines.values() for point in line})
    if not points:
        return {}
    left, right = points[0][0], points[-1][0]
    bottom, top = min(y for _, y in points), max(y for _, y in points)
    wide, high = (right - left) or 1.0, (top - bottom) or 1.0
    shown = {}  # in the unit square
    for name, line in lines.items():
        line = sorted(line)
        samples = [left + wide * step / _GRID for step in range(_GRID + 1)]
        places = [bisect_right(line, (x, math.inf)) - 1 for x in samples]
        shown[name] = [
            ((x - left) / wide, (line[place][1] - bottom) / high)
            for x, place in zip(samples, places, strict=True)
            if place >= 0 and x <= line[-1][0]
        ] or [((line[0][0] - left) / wide, (line[0][1] - bottom) / high)]
    spots: dict[str, Point] = {}
    taken: list[Point] = []
    for name in named:
        others = [point for other, line in shown.items() if other != name for point in line] + taken

        def room(spot: Point, others: Sequence[Point] = others) -> float:
            x, y = spot[0] + _LABEL[0] / 2, spot[1] + _LABEL[1] / 2
            return min((max(abs(x - a) / _LABEL[0], abs(y - b) / _LABEL[1]) for a, b in others), default=1.0)

        fits = [spot for spot in shown[name] if spot[0] <= 1 - _LABEL[0] and spot[1] <= 1 - _LABEL[1] / 2]
        best = max(fits or shown[name][:1], key=lambda spot: (min(room(spot), 2.0), spot[0]))
        spots[name] = (left + best[0] * wide, bottom + best[1] * high)
        taken += [(best[0] + _LABEL[0] * part, best[1] + _LABEL[1] / 2) for part in (0, 0.5, 1)]
    return spots
