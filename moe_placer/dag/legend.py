"""What colours, hatches, symbols and lines mean, and how loaded the links are."""

from __future__ import annotations

from collections.abc import Mapping

from moe_placer.dag.canvas import Canvas, text_width
from moe_placer.dag.labels import link_figures
from moe_placer.dag.operation import Dag, Role
from moe_placer.dag.palette import HOT, LINE, WARNING

__all__ = ["draw_legend", "draw_links", "legend_height", "links_height"]

_ROLES: tuple[tuple[Role, str], ...] = (
    ("computation", "computation"),
    ("communication", "communication"),
    ("routing", "routing, aggregation"),
)
_SWATCH = 74.0  # width of a node's swatch with its gap


def _per_row(width: float, size: float) -> int:
    return max(1, int(width // (_SWATCH * size / 11)))


def legend_height(nodes: int, width: float, size: float = 11.0) -> float:
    """Height that `draw_legend` needs."""
    return 4.4 * size + 2.2 * size * -(-nodes // _per_row(width, size))


def draw_legend(canvas: Canvas, x: float, y: float, width: float, nodes: int, note: str, *, size: float = 11.0) -> None:
    """Draw the legend: symbols, lines, one swatch per node, and a note in words.

    Parameters
    ----------
    canvas : Canvas
        Where to draw.
    x, y, width : float
        Its place on the canvas.
    nodes : int
        Nodes of the cluster.
    note : str
        One line, made smaller where it is wider than the legend.
    size : float
        Of the text.
    """
    height, at = 1.7 * size, x
    for role, words in _ROLES:
        canvas.symbol(role, (at, y, 3 * size, height), [])
        canvas.text(words, at + 3.6 * size, y + 1.2 * size, size)
        at += 3.6 * size + text_width(words, size) + 1.6 * size
    middle = y + height / 2
    for words, dashed, warn in (
        ("tensor", False, False),
        ("MHA and gating communication", True, False),
        (f"crosses a link at {HOT:.0%} of the worst or more", False, True),
    ):
        canvas.line([f"M{at:.1f} {middle:.1f} h{3 * size:.1f}"], dashed=dashed, warn=warn)
        canvas.text(words, at + 3.6 * size, y + 1.2 * size, size)
        at += 3.6 * size + text_width(words, size) + 1.6 * size
    step, per_row = _SWATCH * size / 11, _per_row(width, size)
    for node in range(nodes):
        row, column = divmod(node, per_row)
        box = (x + column * step, y + 2.6 * size + row * 2.2 * size, step - 0.5 * size, 1.7 * size)
        canvas.symbol("computation", box, [f"node {node}"], fill=canvas.fill_of(node), size=0.85 * size)
    low = y + 2.6 * size + 2.2 * size * -(-nodes // per_row)
    canvas.text(note, x, low + 1.2 * size, round(min(size, width / text_width(note, 1.0)) - 0.05, 1))


def _shown(cost: Mapping[str, float], limit: int) -> list[tuple[str, float]]:
    return sorted(cost.items(), key=lambda item: -item[1])[:limit]


def links_height(cost: Mapping[str, float], width: float, *, limit: int = 64, cell: float = 300.0) -> float:
    """Height that `draw_links` needs.

    Parameters
    ----------
    cost : mapping
        Cost of each link by its name.
    width : float
        SVG units.
    limit : int
        Links that are drawn at most.
    cell : float
        Width of a column of links, SVG units.
    """
    columns = max(1, int(width // cell))
    return 26 + 18 * -(-len(_shown(cost, limit)) // columns) if cost else 0.0


def draw_links(
    canvas: Canvas, x: float, y: float, width: float, dag: Dag, layer: int, *, limit: int = 64, cell: float = 300.0
) -> None:
    """Draw a layer's costliest links, each with a bar as long as its cost, by columns from the worst one down.

    Parameters
    ----------
    canvas : Canvas
        Where to draw.
    x, y, width : float
        Their place on the canvas.
    layer : int
        Index in the model.
    limit : int
        Links shown at most.
    cell : float
        Width of a column.
    dag : Dag
        The DAG whose facts are drawn.
    """
    cost: Mapping[str, float] = dag.facts["links"][layer]
    shown = _shown(cost, limit)
    if not shown:
        return
    worst = shown[0][1] or 1.0
    more = f", the {len(shown)} costliest of {len(cost)}" if len(cost) > len(shown) else ""
    canvas.text(f"Inter-node links, the costliest first{more}", x, y + 12, 12)
    columns = max(1, int(width // cell))
    rows = -(-len(shown) // columns)
    for index, (name, value) in enumerate(shown):
        column, row = divmod(index, rows)
        left, top = x + column * cell, y + 24 + row * 18
        near = value >= HOT * worst
        colour = WARNING if near else LINE
        bar = max(0.5, (cell - 16) * value / worst)
        canvas.line([f"M{left:.1f} {top + 14:.1f} h{bar:.1f}"], arrow=False, stroke=colour, stroke_width=3)
        words = link_figures(dag, name, value)
        size = min(9.0, (cell - 16) / text_width(words, 1.0))
        canvas.text(words, left, top + 9, round(size - 0.05, 1))
