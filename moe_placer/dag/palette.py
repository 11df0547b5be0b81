"""Colours that stay apart for colour-blind people, and hatches where there are more nodes than colours."""

from __future__ import annotations

__all__ = [
    "COLOURS",
    "EQUAL",
    "HATCHES",
    "HOT",
    "INK",
    "LINE",
    "MIXED",
    "WARNING",
    "WORST",
    "node_colour",
    "node_hatch",
    "node_stripe",
]

# Paul Tol's "light" scheme, made for areas under black text, without its orange, which would look like the warning.
COLOURS = ("#77AADD", "#EEDD88", "#FFAABB", "#99DDFF", "#44BB99", "#BBCC33", "#AAAA00", "#DDDDDD")
HATCHES = ("plain", "rising", "upright", "level", "falling")
MIXED = "#FFFFFF"  # operations on GPUs of several nodes
INK, LINE = "#1A1A1A", "#6B7280"
WARNING = "#D55E00"  # vermilion of the Okabe-Ito scheme; always thicker too
WORST = 1 - 1e-6  # share of the busiest link's cost, from which on a link is that one
EQUAL = 0.99  # links that cost this share of the busiest one are as busy, for people
HOT = 0.9  # links that cost this share of the busiest link, or more, are near it


def node_colour(node: int) -> str:
    """Return a node's fill colour."""
    return COLOURS[node % len(COLOURS)]


def node_hatch(node: int) -> str:
    """Return the hatch that tells nodes of one colour apart."""
    return HATCHES[node // len(COLOURS) % len(HATCHES)]


def node_stripe(node: int) -> str:
    """Return the colour of a node's hatch: white, but dark on the grey, on which white would hardly be seen."""
    return "#777777" if node_colour(node) == "#DDDDDD" else "#FFFFFF"
