"""A drawing surface on which no text can leave its box: shared symbols, and texts that fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import drawsvg

from moe_placer.dag.operation import Role
from moe_placer.dag.palette import COLOURS, HATCHES, INK, LINE, MIXED, WARNING, node_colour, node_hatch, node_stripe

__all__ = ["ADVANCE", "FONT", "SKEW", "Canvas", "text_size", "text_width"]

FONT = "DejaVu Sans Mono, Menlo, Consolas, Liberation Mono, monospace"
ADVANCE = 0.61  # width of a character over the font size; these fonts have 0.60
LINE_HEIGHT = 1.25
SKEW = 7.0  # how far a parallelogram leans
_SMALLEST = 3.0


def text_width(text: str, size: float) -> float:
    """Width of a line of text, never less than it is in any of the fonts."""
    return len(text) * ADVANCE * size


# Rectangles whose corners lie on an ellipse, as shares of its width and height.
_IN_ELLIPSE = ((0.9, 0.43), (0.84, 0.54), (0.77, 0.63), (0.7, 0.71), (0.6, 0.8))


def text_size(role: Role, width: float, height: float, lines: Sequence[str], size: float) -> float:
    """Largest font size, up to ``size``, at which lines fit into a symbol.

    Parameters
    ----------
    role : Role
        Role of the operation: its symbol.
    width : float
        SVG units.
    height : float
        SVG units.
    lines : sequence of str
        What to write, line by line.
    size : float
        Largest size of the letters, SVG units.
    """
    if role == "communication":
        rooms = [(wide * width, high * height) for wide, high in _IN_ELLIPSE]
    elif role == "routing":
        rooms = [(width - 2 * SKEW - 4, height - 4)]
    else:
        rooms = [(width - 6, height - 4)]
    widest, rows = max(text_width(line, 1.0) for line in lines), len(lines) * LINE_HEIGHT
    return min(size, max(min(wide / widest, high / rows) for wide, high in rooms))


class Canvas:
    """An SVG in the making, in pixels from the top left.

    Parameters
    ----------
    width, height : float
    title : str
        Also what screen readers say.
    tips : bool
        Whether operations and edges get tooltips; they are a third of a large drawing.
    """

    def __init__(self, width: float, height: float, title: str, *, tips: bool = True) -> None:
        self.width, self.height, self.tips = width, height, tips
        self._drawing = drawsvg.Drawing(_r(width), _r(height), font_family=FONT, fill=INK, role="img")
        self._drawing.append_title(_plain(title))
        self._drawing.append(drawsvg.Rectangle(0, 0, _r(width), _r(height), fill="#FFFFFF", id="paper"))
        self._symbols: dict[tuple[Role, float, float], Any] = {}
        self._fills: dict[int, str] = {}
        self._markers: dict[str, Any] = {}
        self._defined: set[str] = set()
        self.parent: Any = self._drawing

    def group(self, **attributes: Any) -> Any:
        """Start a group at the top level; what follows goes into it until the next one."""
        made = drawsvg.Group(**attributes)
        self._drawing.append(made)
        self.parent = made
        return made

    def fill_of(self, node: int | None) -> str:
        """Return the fill of a node: its colour, hatched where the colour is used again; white for several nodes."""
        if node is None:
            return MIXED
        if node_hatch(node) == HATCHES[0]:
            return node_colour(node)
        kind = node % (len(COLOURS) * len(HATCHES))
        if kind not in self._fills:
            self._fills[kind] = f"url(#node{kind})"
            pattern = drawsvg.Pattern(9, 9, patternUnits="userSpaceOnUse", id=f"node{kind}")
            pattern.append(drawsvg.Rectangle(0, 0, 9, 9, fill=node_colour(node)))
            strokes = {
                "rising": "M-1 10 L10 -1",
                "upright": "M4.5 0 V9",
                "level": "M0 4.5 H9",
                "falling": "M-1 -1 L10 10",
            }
            pattern.append(
                drawsvg.Path(d=strokes[node_hatch(node)], stroke=node_stripe(node), stroke_width=2, opacity=0.6)
            )
            self._drawing.append_def(pattern)
        return self._fills[kind]

    def symbol(
        self,
        role: Role,
        box: tuple[float, float, float, float],
        lines: Sequence[str],
        *,
        fill: str = MIXED,
        tip: str = "",
        size: float = 10.0,
        warn: bool = False,
        name: str = "",
    ) -> None:
        """Draw an operation: its symbol, and lines of text shrunk until they fit it.

        Parameters
        ----------
        role : Role
            Role of the operation: its symbol.
        box : tuple
            Left, top, width and height, SVG units.
        lines : sequence of str
            What to write, line by line.
        fill : str
            Colour.
        tip : str
            Tooltip.
        size : float
            Size of the letters, SVG units.
        warn : bool
            Whether to draw it in the colour of a warning.
        name : str
            Id of the operation, for links between drawings.
        """
        x, y, width, height = box
        style: dict[str, Any] = {"fill": fill, "stroke": WARNING if warn else INK, "stroke_width": 2.5 if warn else 0.8}
        if name:
            style["id"] = _safe(name)
        use = drawsvg.Use(self._shape(role, width, height), _r(x), _r(y), **style)
        if tip and self.tips:
            use.append_title(_plain(tip))
        self.parent.append(use)
        self.lines(lines, (x, y, width, height), role=role, size=size)

    def _shape(self, role: Role, width: float, height: float) -> Any:
        key = (role, _r(width), _r(height))
        if key not in self._symbols:
            name = f"{role}-{key[1]}-{key[2]}"
            if role == "communication":
                shape = drawsvg.Ellipse(_r(width / 2), _r(height / 2), _r(width / 2), _r(height / 2), id=name)
            elif role == "routing":
                path = f"M{SKEW} 0 H{_r(width)} L{_r(width - SKEW)} {_r(height)} H0 Z"
                shape = drawsvg.Path(d=path, id=name)
            else:
                shape = drawsvg.Rectangle(0, 0, _r(width), _r(height), id=name)
            self._symbols[key] = shape
        return self._symbols[key]

    def lines(
        self,
        lines: Sequence[str],
        box: tuple[float, float, float, float],
        *,
        role: Role = "computation",
        size: float = 10.0,
    ) -> None:
        """Write lines in the middle of a box; the first is bold where there are several.

        Parameters
        ----------
        lines : sequence of str
            What to write, line by line.
        box : tuple
            Left, top, width and height, SVG units.
        role : Role
            Role of the operation: its symbol.
        size : float
            Size of the letters, SVG units.
        """
        shown = [line for line in lines if line]
        if not shown:
            return
        x, y, width, height = box
        size = _r(max(text_size(role, width, height, shown, size) - 0.05, _SMALLEST))
        top = y + height / 2 - len(shown) * size * LINE_HEIGHT / 2
        for index, line in enumerate(shown):
            weight = {"font_weight": "bold"} if index == 0 and len(shown) > 1 else {}
            baseline = top + (index + 0.78) * size * LINE_HEIGHT
            self.text(line, x + width / 2, baseline, size, anchor="middle", **weight)

    def text(self, text: str, x: float, y: float, size: float, *, anchor: str = "start", **style: Any) -> None:
        """Write one line with its baseline at y.

        Parameters
        ----------
        text : str
            One line.
        x : float
            Horizontal position, SVG units.
        y : float
            Vertical position, SVG units.
        size : float
            Size of the letters, SVG units.
        anchor : str
            SVG's text-anchor: start, middle or end.
        """
        if anchor != "start":
            style["text_anchor"] = anchor
        self.parent.append(drawsvg.Text(_plain(text), size, _r(x), _r(y), **style))

    def line(
        self,
        points: Iterable[str],
        *,
        dashed: bool = False,
        warn: bool = False,
        tip: str = "",
        arrow: bool = True,
        **style: Any,
    ) -> None:
        """Draw an edge along SVG path commands.

        Parameters
        ----------
        points : iterable of str
            SVG path commands.
        dashed : bool
            Whether the line is dashed.
        warn : bool
            Whether to draw it in the colour of a warning.
        tip : str
            Tooltip.
        arrow : bool
            Whether it ends in an arrow.
        """
        colour = WARNING if warn else LINE
        look: dict[str, Any] = {"fill": "none", "stroke": colour, "stroke_width": 2.2 if warn else 1.0}
        if dashed:
            look["stroke_dasharray"] = "5 3"
        if arrow:
            look["marker_end"] = self._arrow(colour)
        path = drawsvg.Path(d=" ".join(points), **{**look, **style})
        if tip and self.tips:
            path.append_title(_plain(tip))
        self.parent.append(path)

    def _arrow(self, colour: str) -> Any:
        if colour not in self._markers:
            marker = drawsvg.Marker(
                0, 0, 10, 10, refX=9, refY=5, markerWidth=7, markerHeight=7, orient="auto",
                markerUnits="userSpaceOnUse", id=f"arrow-{colour[1:]}",
            )  # fmt: skip
            marker.append(drawsvg.Path(d="M0 1 L10 5 L0 9 Z", fill=colour))
            self._markers[colour] = marker
        return self._markers[colour]

    def shape_id(self, role: Role, width: float, height: float) -> str:
        """Return the id of a symbol for markup that uses it, and make sure that it is defined."""
        shape = self._shape(role, width, height)
        if shape.id not in self._defined:
            self._defined.add(shape.id)
            self._drawing.append_def(shape)
        return str(shape.id)

    def define(self, markup: str) -> None:
        """Add markup with an id, to be used several times."""
        self._drawing.append_def(drawsvg.Raw(markup))

    def markup(self, text: str) -> None:
        """Add ready markup: for pictures with so many symbols that an object for each is too slow."""
        self.parent.append(drawsvg.Raw(text))

    def frame(self, box: tuple[float, float, float, float], **style: Any) -> None:
        """Draw a rounded frame."""
        x, y, width, height = box
        look = {"fill": "none", "stroke": LINE, "stroke_width": 1.0, "rx": 6, **style}
        self.parent.append(drawsvg.Rectangle(_r(x), _r(y), _r(width), _r(height), **look))

    def svg(self) -> str:
        """Return the document: the same drawing always gives the same text."""
        text: str = self._drawing.as_svg()
        return text + ("" if text.endswith("\n") else "\n")


def _r(value: float) -> float:
    """Round to a tenth of a pixel, whole where possible: short files."""
    near = round(float(value), 1)
    return int(near) if near.is_integer() else near


def _plain(text: str) -> str:
    """Drop characters that XML forbids."""
    return "".join(
        c for c in text if c in "\t\n" or (c >= " " and c not in "\x7f\ufffe\uffff" and not "\ud800" <= c <= "\udfff")
    )


def _safe(name: str) -> str:
    return name.replace(">", "-")
