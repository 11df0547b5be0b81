"""What colours, hatches, symbols and lines mean, and how loaded the links are."""

from __future__ import annotations

from collections.abc import Mapping

from moe_placer.dag.canvas import Canvas, text_width
from moe_placer.dag.operation import Role
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
    return 2.6 * size + 2.2 * size * -(-nodes // _per_row(width, size))


def draw_legend(canvas: Canvas, x: float, y: float, width: float, nodes: int, *, size: float = 11.0) -> None:
    """Draw the legend: symbols, lines, then one swatch per node."""
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


def _shown(cost: Mapping[str, float], limit: int) -> list[tuple[str, float]]:
    return sorted(cost.items(), key=lambda item: -item[1])[:limit]


def links_height(cost: Mapping[str, float], width: float, *, limit: int = 64, cell: float = 210.0) -> float:
    """Height that `draw_links` needs."""
    columns = max(1, int(width // cell))
    return 26 + 18 * -(-len(_shown(cost, limit)) // columns) if cost else 0.0


def draw_links(
    canvas: Canvas, x: float, y: float, width: float, cost: Mapping[str, float], *, limit: int = 64, cell: float = 210.0
) -> None:
    """Draw the costliest links, each with a bar as long as its cost, by columns from the worst one down."""
    shown = _shown(cost, limit)
    if not shown:
        return
    worst = shown[0][1] or 1.0
    more = f", the {len(shown)} costliest of {len(cost)}" if len(cost) > len(shown) else ""
    canvas.text(f"Inter-node links by cost in tokens per step at node-link speed, dispatch{more}", x, y + 12, 12)
    columns = max(1, int(width // cell))
    rows = -(-len(shown) // columns)
    for index, (name, value) in enumerate(shown):
        column, row = divmod(index, rows)
        left, top = x + column * cell, y + 24 + row * 18
        near = value >= HOT * worst
        colour = WARNING if near else LINE
        bar = max(0.5, (cell - 16) * value / worst)
        canvas.line([f"M{left:.1f} {top + 14:.1f} h{bar:.1f}"], arrow=False, stroke=colour, stroke_width=3)
        words = f"{name} {value:,.0f}"
        size = min(9.0, (cell - 16) / text_width(words, 1.0))
        canvas.text(words, left, top + 9, round(size - 0.05, 1))
