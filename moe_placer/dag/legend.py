"""What colours, hatches, symbols and lines mean, and how loaded the links are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from moe_placer.dag.canvas import Canvas, text_width
from moe_placer.dag.labels import link_figures
from moe_placer.dag.operation import Dag, Role
from moe_placer.dag.palette import EQUAL, LINE, WARNING

__all__ = ["draw_legend", "draw_links", "legend_height", "links_height"]

Entry: TypeAlias = tuple[str, Mapping[str, Any]]

_ROLES: dict[Role, str] = {
    "computation": "computation",
    "communication": "communication",
    "routing": "routing, aggregation",
}
_SWATCH = 74.0  # width of a node's swatch with its gap


def _per_row(width: float, size: float) -> int:
    return max(1, int(width // (_SWATCH * size / 11)))


def _rows(entries: Sequence[Entry], width: float, size: float) -> list[list[Entry | Role]]:
    """Break symbols and lines into rows."""
    rows: list[list[Entry | Role]] = [[]]
    used = 0.0
    for entry in (*_ROLES, *entries):
        wide = 5.2 * size + text_width(_words(entry), size)
        if rows[-1] and used + wide > width:
            rows.append([])
            used = 0.0
        rows[-1].append(entry)
        used += wide
    return rows


def _words(entry: Entry | Role) -> str:
    return _ROLES[entry] if isinstance(entry, str) else entry[0]


def legend_height(nodes: int, width: float, entries: Sequence[Entry], size: float = 11.0) -> float:
    """Height that `draw_legend` needs.

    Parameters
    ----------
    nodes : int
        Nodes of the cluster.
    width : float
        Of the legend; pixels.
    entries : sequence
        What lines mean: words, and how the line looks.
    size : float
        Of the text; pixels.
    """
    return (2.2 + 2.6 * len(_rows(entries, width, size)) + 2.2 * -(-nodes // _per_row(width, size))) * size


def draw_legend(
    canvas: Canvas,
    place: tuple[float, float, float],
    nodes: int,
    entries: Sequence[Entry],
    note: str,
    *,
    size: float = 11.0,
) -> None:
    """Draw the legend: symbols, lines, one swatch per node, and a note in words.

    Parameters
    ----------
    canvas : Canvas
        Where to draw.
    place : tuple of float
        Left, top and width on the canvas; pixels.
    nodes : int
        Nodes of the cluster.
    entries : sequence
        What lines mean: words, and how the line looks.
    note : str
        One line, made smaller where it is wider than the legend.
    size : float
        Of the text.
    """
    x, y, width = place
    for row in _rows(entries, width, size):
        at = x
        for entry in row:
            if isinstance(entry, str):
                canvas.symbol(entry, (at, y, 3 * size, 1.7 * size), [])
            else:
                canvas.line(f"M{at:.1f} {y + 0.85 * size:.1f}h{3 * size:.1f}", **entry[1])
            canvas.text(_words(entry), at + 3.6 * size, y + 1.2 * size, size)
            at += 5.2 * size + text_width(_words(entry), size)
        y += 2.6 * size
    step, per_row = _SWATCH * size / 11, _per_row(width, size)
    for node in range(nodes):
        row_at, column = divmod(node, per_row)
        box = (x + column * step, y + row_at * 2.2 * size, step - 0.5 * size, 1.7 * size)
        canvas.symbol("computation", box, [f"node {node}"], fill=canvas.fill_of(node), size=0.85 * size)
    low = y + 2.2 * size * -(-nodes // per_row)
    canvas.text(note, x, low + 1.2 * size, round(min(size, width / text_width(note, 1.0)) - 0.05, 1))


def _shown(cost: Mapping[str, float], limit: int) -> list[tuple[str, float]]:
    return sorted(cost.items(), key=lambda item: -item[1])[:limit]


def links_height(cost: Mapping[str, float], width: float, *, limit: int = 64, cell: float = 300.0) -> float:
    """Height that `draw_links` needs.

    Parameters
    ----------
    cost : mapping
        Of every link.
    width, cell : float
        Of the list, and of a column; pixels.
    limit : int
        Links shown at most.
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
    dag : Dag
        Whose facts are drawn.
    layer : int
        Index in the model.
    limit : int
        Links shown at most.
    cell : float
        Width of a column.
    """
    cost: Mapping[str, float] = dag.facts["links"][layer]
    shown = _shown(cost, limit)
    if not shown:
        return
    worst = shown[0][1] or 1.0
    more = f", the {len(shown)} costliest of {len(cost)}" if len(cost) > len(shown) else ""
    level = sum(value >= EQUAL * shown[0][1] for value in cost.values())
    more += f"; {level} are within {1 - EQUAL:.0%} of the costliest, so equally busy" if level > 1 else ""
    canvas.text(f"Inter-node links, the costliest first{more}", x, y + 12, 12)
    columns = max(1, int(width // cell))
    rows = -(-len(shown) // columns)
    for index, (name, value) in enumerate(shown):
        column, row = divmod(index, rows)
        left, top = x + column * cell, y + 24 + row * 18
        colour = WARNING if value >= EQUAL * worst else LINE
        bar = max(0.5, (cell - 16) * value / worst)
        canvas.line(f"M{left:.1f} {top + 14:.1f}h{bar:.1f}", arrow=False, stroke=colour, width=3)
        words = link_figures(dag, name, value)
        size = min(9.0, (cell - 16) / text_width(words, 1.0))
        canvas.text(words, left, top + 9, round(size - 0.05, 1))
