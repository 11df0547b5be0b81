"""A drawing as a list of shapes and texts, which is written as SVG, or as data for the page that paints it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moe_placer.dag.drawing_items import FONT, Box, Drawing, Form, Item, Look, Section, Shape, Stamp, Text, Type, plain
from moe_placer.dag.operation import Role
from moe_placer.dag.palette import COLOURS, HATCHES, INK, LINE, MIXED, WARNING, node_colour, node_hatch, node_stripe
from moe_placer.dag.svg_writer import SvgWriter

__all__ = ["ADVANCE", "SKEW", "Canvas", "text_size", "text_width"]

ADVANCE = 0.61  # width of a character over the font size; these fonts have 0.60
LINE_HEIGHT = 1.25
SKEW = 7.0  # how far a parallelogram leans
_SMALLEST = 3.0
_STROKES = {"rising": "M-1 10L10 -1", "upright": "M4.5 0V9", "level": "M0 4.5H9", "falling": "M-1 -1L10 10"}


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
    width, height : float
        Of the symbol; pixels.
    lines : sequence of str
        What to write, line by line.
    size : float
        Largest size of the letters; pixels.
    """
    if role == "communication":
        rooms = [(wide * width, high * height) for wide, high in _IN_ELLIPSE]
    elif role == "routing":
        rooms = [(width - 2 * SKEW - 4, height - 4)]
    else:
        rooms = [(width - 6, height - 4)]
    widest, rows = max(text_width(line, 1.0) for line in lines), len(lines) * LINE_HEIGHT
    return min(size, max(min(wide / widest, high / rows) for wide, high in rooms))


class Canvas(Drawing):
    """A drawing in the making."""

    def fill_of(self, node: int | None) -> str:
        """Return the fill of a node: its colour, hatched where the colour is used again; white for several nodes."""
        if node is None:
            return MIXED
        if node_hatch(node) == HATCHES[0]:
            return node_colour(node)
        fill = f"url(#node{node % (len(COLOURS) * len(HATCHES))})"
        self.hatches[fill] = (node_colour(node), node_stripe(node), _STROKES[node_hatch(node)])
        return fill

    def symbol(
        self,
        role: Role,
        box: Box,
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
            Left, top, width and height; pixels.
        lines : sequence of str
            What to write, line by line.
        fill : str
            Colour, or a hatch of `fill_of`.
        tip : str
            Tooltip.
        size : float
            Largest size of the letters; pixels.
        warn : bool
            Whether its outline has the colour of a warning.
        name : str
            Id of the operation.
        """
        x, y, width, height = box
        look = Look(fill, WARNING if warn else INK, 2.5 if warn else 0.8, "", 1.0, False)
        self.items.append(Shape(_symbol(role, _r(width), _r(height)), _r(x), _r(y), look, name, tip))
        self.lines(lines, box, role=role, size=size)

    def lines(self, lines: Sequence[str], box: Box, *, role: Role = "computation", size: float = 10.0) -> None:
        """Write lines in the middle of a box; the first is bold where there are several.

        Parameters
        ----------
        lines : sequence of str
            What to write, line by line.
        box : tuple
            Left, top, width and height; pixels.
        role : Role
            Role of the operation: its symbol, which they must fit.
        size : float
            Largest size of the letters; pixels.
        """
        shown = [line for line in lines if line]
        if not shown:
            return
        x, y, width, height = box
        size = _r(max(text_size(role, width, height, shown, size) - 0.05, _SMALLEST))
        top = y + height / 2 - len(shown) * size * LINE_HEIGHT / 2
        for index, line in enumerate(shown):
            baseline = top + (index + 0.78) * size * LINE_HEIGHT
            self.text(line, x + width / 2, baseline, size, anchor="middle", bold=index == 0 and len(shown) > 1)

    def text(
        self,
        text: str,
        x: float,
        y: float,
        size: float,
        *,
        anchor: str = "start",
        bold: bool = False,
        halo: bool = False,
    ) -> None:
        """Write one line with its baseline at y.

        Parameters
        ----------
        text : str
            One line.
        x, y : float
            Where it starts, or its middle is; pixels.
        size : float
            Of the letters; pixels.
        anchor : str
            SVG's text-anchor: start, middle or end.
        bold : bool
        halo : bool
            Whether the letters have one, so that hatches under them do not cross them.
        """
        self.items.append(Text(plain(text), _r(x), _r(y), Type(size, anchor, bold, halo)))

    def group(self, name: str) -> None:
        """Put what follows into a group with an id."""
        self.items.append(Section(name))

    def line(
        self,
        path: str,
        *,
        dashed: bool = False,
        warn: bool = False,
        tip: str = "",
        arrow: bool = True,
        stroke: str = "",
        width: float = 0.0,
        opacity: float = 1.0,
    ) -> None:
        """Draw an edge along SVG path commands.

        Parameters
        ----------
        path : str
            SVG path commands.
        dashed : bool
            Whether the line is dashed.
        warn : bool
            Whether it is thick, and in the colour of a warning.
        tip : str
            Tooltip.
        arrow : bool
            Whether it ends in an arrow.
        stroke, width : str, float
            Colour and pixels, in place of what ``warn`` chooses.
        opacity : float
            From 0 to 1.
        """
        colour, wide = stroke or (WARNING if warn else LINE), width or (2.2 if warn else 1.0)
        look = Look("none", colour, _r(wide, 2), "5 3" if dashed else "", opacity, arrow)
        self.items.append(Shape(Form(path), 0, 0, look, "", tip))

    def area(self, path: str, fill: str, tip: str = "") -> None:
        """Fill an outline of SVG path commands."""
        self.items.append(Shape(Form(path), 0, 0, Look(fill, "none", 0, "", 1.0, False), "", tip))

    def frame(
        self,
        box: Box,
        *,
        fill: str = "none",
        stroke: str = LINE,
        width: float = 1.0,
        radius: float = 6.0,
        opacity: float = 1.0,
        tip: str = "",
    ) -> None:
        """Draw a rectangle, with rounded corners.

        Parameters
        ----------
        box : tuple
            Left, top, width and height; pixels.
        fill, stroke : str
            Colours, or ``none``; a fill may be a hatch of `fill_of`.
        width, radius : float
            Of the line, and of the corners; pixels.
        opacity : float
            From 0 to 1.
        tip : str
            Tooltip.
        """
        x, y, wide, high = map(_r, box)
        flat, tall, turn = _r(wide - 2 * radius), _r(high - 2 * radius), f"a{radius:g} {radius:g} 0 0 1 "
        path = f"M0 0H{wide:g}V{high:g}H0z"
        if radius:
            path = (
                f"M{radius:g} 0h{flat:g}{turn}{radius:g} {radius:g}v{tall:g}{turn}-{radius:g} {radius:g}"
                f"h-{flat:g}{turn}-{radius:g} -{radius:g}v-{tall:g}{turn}{radius:g} -{radius:g}z"
            )
        form = Form(path, (0, 0, wide, high), "", radius)
        self.items.append(Shape(form, x, y, Look(fill, stroke, width, "", opacity, False), "", tip))

    def stamp(self, items: Iterable[Item], x: float, y: float) -> None:
        """Draw items of another canvas, moved; what is stamped several times is written once."""
        self.items.append(Stamp(tuple(item for item in items if isinstance(item, Shape | Text)), _r(x), _r(y)))

    def svg(self) -> str:
        """Return the document: the same drawing always gives the same text."""
        return SvgWriter(self).document()

    def scene(self, places: Mapping[str, int]) -> dict[str, Any]:
        """Return the drawing as lists that JSON can hold, for a program that paints it.

        Parameters
        ----------
        places : mapping
            Place of every operation by its id.

        Returns
        -------
        dict
            ``forms`` (path, box where it is no line, whether it is a symbol), ``looks``, ``types`` of text,
            ``hatches`` by fill, ``stamps`` (lists of items), and ``items`` in the order of painting:
            ``[form, x, y, look]``, with the operation's place after it where it is one, ``[text, x, y, type]``, or
            ``[stamp, x, y]``.
        """
        tables: dict[str, dict[Any, int]] = {name: {} for name in ("forms", "looks", "types", "stamps")}

        def place(table: str, value: Any) -> int:
            return tables[table].setdefault(value, len(tables[table]))

        def row(item: Shape | Text | Stamp) -> list[Any]:
            if isinstance(item, Stamp):
                return [place("stamps", item.items), item.x, item.y]
            if isinstance(item, Text):
                return [item.text, item.x, item.y, place("types", item.type)]
            known = [places[item.operation]] if item.operation in places else []
            return [place("forms", item.form), item.x, item.y, place("looks", item.look), *known]

        items = [row(item) for item in self.items if not isinstance(item, Section)]
        stamps = [[row(item) for item in stamp] for stamp in tables["stamps"]]
        forms = [[form.path, form.box, int(bool(form.name))] for form in tables["forms"]]
        drawn = {"width": _r(self.width), "height": _r(self.height), "font": FONT, "ink": INK, "hatches": self.hatches}
        return {
            **drawn,
            "forms": forms,
            "looks": list(tables["looks"]),
            "types": list(tables["types"]),
            "stamps": stamps,
            "items": items,
        }


def _symbol(role: Role, width: float, height: float) -> Form:
    """Return the form of an operation: an ellipse communicates, a rectangle computes, a parallelogram routes."""
    path = f"M0 0H{width:g}V{height:g}H0Z"
    if role == "communication":
        arc = f"A{width / 2:g} {height / 2:g} 0 0 1 "
        path = f"M0 {height / 2:g}{arc}{width:g} {height / 2:g}{arc}0 {height / 2:g}Z"
    elif role == "routing":
        path = f"M{SKEW:g} 0H{width:g}L{width - SKEW:g} {height:g}H0Z"
    return Form(path, (0, 0, width, height), f"{role}-{width:g}-{height:g}")


def _r(value: float, digits: int = 1) -> float:
    """Round to a tenth of a pixel, whole where possible: short files."""
    near = round(float(value), digits)
    return int(near) if near.is_integer() else near
