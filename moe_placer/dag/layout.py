"""What all drawings of a graph share: where operations are, how bands break, and what is drawn in which order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, TypeAlias

from moe_placer.dag.canvas import Canvas, text_width
from moe_placer.dag.labels import cost_note
from moe_placer.dag.legend import draw_legend, legend_height
from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.dag.palette import WORST

__all__ = ["Layout", "Point", "break_bands"]

Point: TypeAlias = tuple[float, float]
_THIN, _THICK = 0.8, 4.0  # pixels: an edge without bytes, and the one with most


class Layout(ABC):
    """A graph on a page: a subclass finds out where everything is, then `draw` draws it, what is above last.

    Attributes
    ----------
    dag : Dag
    nodes, per_node : int
        Of the cluster: its nodes, and the GPUs of each.
    title : str
    width, height : float
        Of the page, pixels; a subclass sets them.
    margin : float
        Left and right of everything.
    lean : bool
        Whether what only the page with details needs is left out.
    """

    title: str
    width: float
    height: float
    margin: float = 40.0

    def __init__(self, dag: Dag, *, lean: bool = False) -> None:
        self.dag, self.lean = dag, lean
        self.nodes, self.per_node = int(dag.facts["nodes"]), int(dag.facts["gpus_per_node"])

    @property
    def room(self) -> float:
        """Width between the margins."""
        return self.width - 2 * self.margin

    def home(self, op: Operation) -> int:
        """Return the node an operation is drawn at; its name tells it where it serves one."""
        last = op.id.rpartition(".")[2]
        return int(last[1:]) if last[:1] == "n" and last[1:].isdigit() else op.gpus[0] // self.per_node

    def fill(self, canvas: Canvas, op: Operation) -> str:
        """Return the colour of the node that an operation is on; white where it is on several."""
        nodes = {gpu // self.per_node for gpu in op.gpus}
        return canvas.fill_of(nodes.pop() if len(nodes) == 1 else None)

    @cached_property
    def most_bytes(self) -> float:
        """Bytes of the largest tensor."""
        return max((edge.bytes for edge in self.dag.edges()), default=0.0) or 1.0

    def look(self, edge: Edge, most: float = _THICK) -> dict[str, Any]:
        """Return how an edge looks: as wide as its tensor is large, in the warning colour on the busiest link."""
        wide = _THIN + (most - _THIN) * edge.bytes / self.most_bytes
        return {"width": round(wide, 1), "warn": edge.hot >= WORST, "dashed": edge.dashed}

    def above(self, edge: Edge, y: float) -> float:
        """Return the baseline of a label above an edge that runs at y."""
        return y - 2.2 - float(self.look(edge)["width"]) / 2

    def head(self, canvas: Canvas, size: float, top: float) -> None:
        """Write the title, as large as there is room for."""
        size = round(min(size, self.room / text_width(self.title, 1.0)) - 0.05, 1)
        canvas.text(self.title, self.margin, top, size, bold=True)

    def say(self, canvas: Canvas, text: str, top: float, size: float) -> None:
        """Write a line over the whole page, smaller where it is too long.

        Parameters
        ----------
        canvas : Canvas
            Where to draw.
        text : str
            One line.
        top, size : float
            Its baseline, and the largest size of its letters; pixels.
        """
        size = round(min(size, self.room / text_width(text, 1.0)) - 0.05, 1)
        canvas.text(text, self.margin, top, size)

    def legend(self, canvas: Canvas, top: float, size: float) -> None:
        """Draw what colours, symbols and lines mean."""
        draw_legend(canvas, (self.margin, top, self.room), self.nodes, self.entries(), cost_note(self.dag), size=size)

    def legend_height(self, width: float, size: float) -> float:
        """Return the height that `legend` needs on a page of some room."""
        return legend_height(self.nodes, width, self.entries(), size)

    def entries(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return what lines mean: words, and how the line looks."""
        dashed = self.dag.facts["tp"] > 1 or any(edge.dashed for edge in self.dag.edges())
        return [
            ("tensor, as wide as it is large", {"width": 2.4}),
            *([("communication of MHA and gating", {"dashed": True})] if dashed else []),
            ("crosses the layer's busiest link", {"warn": True}),
        ]

    def draw(self) -> Canvas:
        """Draw head and ground, edges, operations over them, and what is under all of it."""
        canvas = Canvas(self.width, self.height, self.title, tips=not self.lean)
        self.ground(canvas)
        canvas.group("edges")
        self.edges(canvas)
        canvas.group("operations")
        for op in self.dag.operations():
            self.operation(canvas, op)
        canvas.group("foot")
        self.foot(canvas)
        return canvas

    @abstractmethod
    def ground(self, canvas: Canvas) -> None:
        """Draw the head and the frames that everything stands on."""

    def edges(self, canvas: Canvas) -> None:
        """Draw all edges."""
        for edge in self.dag.edges():
            self.edge(canvas, edge)

    def edge(self, canvas: Canvas, edge: Edge) -> None:  # noqa: B027
        """Draw one edge with its label, unless `edges` has done it."""

    def operation(self, canvas: Canvas, op: Operation) -> None:  # noqa: B027
        """Draw one operation, unless `edges` has done it."""

    def foot(self, canvas: Canvas) -> None:  # noqa: B027
        """Draw what stands under the drawing, if anything."""


def break_bands(
    widths: Mapping[int, float], height: float, aspect: float, least: float = 0.0
) -> tuple[float, dict[int, Point]]:
    """Break stages into bands, so that the page has about a certain shape.

    Parameters
    ----------
    widths : mapping
        Of each stage, in their order; pixels.
    height : float
        Of a band.
    aspect : float
        Width over height of the page, about.
    least : float
        Width that the page has at least.

    Returns
    -------
    tuple
        Width of the page, and the top left of each stage.
    """
    total, widest = sum(widths.values()), max(widths.values())
    bands = max(1, round((total / (aspect * height)) ** 0.5))
    room = max(widest, total / bands + widest / 2, least)
    places: dict[int, Point] = {}
    x = y = 0.0
    for stage, width in widths.items():
        if x and x + width > room:
            x, y = 0.0, y + height
        places[stage] = (x, y)
        x += width
    return room, places
