"""What a drawing is made of: shapes and texts at places, in the order in which they are painted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

__all__ = ["FONT", "Box", "Drawing", "Form", "Item", "Look", "Section", "Shape", "Stamp", "Text", "Type", "plain"]

FONT = "DejaVu Sans Mono, Menlo, Consolas, Liberation Mono, monospace"
Box: TypeAlias = tuple[float, float, float, float]  # left, top, width, height


class Form(NamedTuple):
    """An outline as SVG path data; of a closed one its box (left, top, right, bottom), of a symbol its name.

    ``radius`` is that of a rectangle's corners, which is written as such.
    """

    path: str
    box: Box | None = None
    name: str = ""
    radius: float | None = None


class Look(NamedTuple):
    """How a shape is painted: colours, width and dashes of its line, and whether that ends in an arrow."""

    fill: str
    stroke: str
    width: float
    dash: str
    opacity: float
    arrow: bool


class Type(NamedTuple):
    """How a text is written: size, where its place is along it, and whether a halo keeps hatches off it."""

    size: float
    anchor: str
    bold: bool
    halo: bool


class Shape(NamedTuple):
    """A form at a place; ``operation`` is the id of the operation that it stands for, or empty."""

    form: Form
    x: float
    y: float
    look: Look
    operation: str
    tip: str


class Text(NamedTuple):
    """One line of text, its baseline at y."""

    text: str
    x: float
    y: float
    type: Type


class Stamp(NamedTuple):
    """Items that are drawn at several places."""

    items: tuple[Shape | Text, ...]
    x: float
    y: float


class Section(NamedTuple):
    """What follows is in a group of this id."""

    name: str


Item: TypeAlias = Shape | Text | Stamp | Section


@dataclass
class Drawing:
    """Shapes and texts on a page, in pixels from the top left.

    Parameters
    ----------
    width, height : float
    title : str
        Also what screen readers say.
    tips : bool
        Whether operations and edges get tooltips in the SVG; they are a third of a large drawing.
    items : list of Item
    hatches : dict
        Colour, stripe and its path, by the name that a hatch has as a fill.
    """

    width: float
    height: float
    title: str
    tips: bool = field(default=True, kw_only=True)
    items: list[Item] = field(default_factory=list, kw_only=True)
    hatches: dict[str, tuple[str, str, str]] = field(default_factory=dict, kw_only=True)


_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def plain(text: str) -> str:
    """Drop characters that XML forbids."""
    return _FORBIDDEN.sub("", text)
