"""Pictures of a plan: which node holds which expert, and what fills the memory of every GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_placer.dag.canvas import Canvas
from moe_placer.dag.palette import INK, LINE
from moe_placer.experiments.plan.figures import Figures

__all__ = ["draw_layers", "draw_memory", "draw_overview"]

_LEFT, _TOP, _SMALL, _TEXT = 74.0, 88.0, 9.0, 11.0
# A ramp from white to dark blue, readable in grey too.
_RAMP = ("#FFFFFF", "#DCE9F6", "#B3D0EA", "#7FB2DB", "#4A8FC7", "#2A6BA8", "#134A80", "#08305C")
_PARTS = (
    ("weights", "#4477AA", "weights"),
    ("kv_cache", "#EE8866", "KV cache"),
    ("activations", "#BBCC33", "activations"),
)


def draw_overview(figures: Figures) -> str:
    """Draw experts by nodes: in how many layers a node holds an expert (any replica)."""
    nodes, layers = figures.instance["cluster"]["nodes"], figures.plan["nodes"]
    experts = len(layers[0])
    count = [[0] * experts for _ in range(nodes)]
    for layer in layers:
        for expert, at in enumerate(layer):
            for node in set(at):
                count[node][expert] += 1
    most = max(map(max, count)) or 1
    cell = max(6.0, min(15.0, 900 / experts))
    width, height = _LEFT + experts * cell + 30, _TOP + nodes * 15 + 66
    canvas = Canvas(max(width, 560.0), height, "Experts by node, over all layers")
    canvas.group("drawing")
    canvas.text("In how many layers does a node hold an expert?", 16, 28, 16, bold=True)
    canvas.text(f"{len(layers)} MoE layers; every layer is placed for its own traffic", 16, 50, _TEXT)
    _axis(canvas, experts, cell, "expert")
    for node in range(nodes):
        y = _TOP + node * 15
        canvas.text(f"node {node}", _LEFT - 8, y + 11, _SMALL + 1, anchor="end")
        for expert in range(experts):
            shade = _RAMP[round(count[node][expert] / most * (len(_RAMP) - 1))]
            tip = f"node {node}, expert {expert}: {count[node][expert]} of {len(layers)} layers"
            box = (_LEFT + expert * cell, y, cell, 15.0)
            canvas.frame(box, fill=shade, stroke="#E5E7EB", width=0.4, radius=0, tip=tip)
    y = _TOP + nodes * 15 + 22
    for index, shade in enumerate(_RAMP):
        canvas.frame((_LEFT + index * 26, y, 26, 12), fill=shade, stroke="#E5E7EB", width=0.4, radius=0)
    canvas.text("0 layers", _LEFT, y + 26, _SMALL)
    canvas.text(f"{most} layers", _LEFT + 26 * len(_RAMP), y + 26, _SMALL, anchor="end")
    return canvas.svg()


def _axis(canvas: Canvas, experts: int, cell: float, word: str) -> None:
    step = max(1, round(experts / 16))
    for expert in range(0, experts, step):
        canvas.text(str(expert), _LEFT + (expert + 0.5) * cell, _TOP - 6, _SMALL, anchor="middle")
    canvas.text(word, _LEFT - 8, _TOP - 6, _SMALL, anchor="end")


def draw_layers(figures: Figures) -> str:
    """Draw layers by experts, a panel for each replica: the colour of a cell is the node that holds it."""
    layers, index = figures.plan["nodes"], figures.plan["moe_layers"]
    experts, panels = len(layers[0]), min(4, max(len(at) for layer in layers for at in layer))
    cell, high = float(max(5, min(9, 640 // experts))), float(max(5, min(9, 600 // len(layers))))
    panel = experts * cell + 40
    canvas = Canvas(_LEFT + panels * panel + 10, _TOP + len(layers) * high + 74, "Every expert's node in every layer")
    canvas.group("drawing")
    canvas.text("Which node holds which expert, layer by layer", 16, 28, 16, bold=True)
    for replica in range(panels):
        left = _LEFT + replica * panel
        canvas.text(f"replica {replica}: expert 0 to {experts - 1} from left to right", left, _TOP - 8, _TEXT)
        cells: dict[int, list[str]] = {}  # by node: one outline for all of its cells
        for row, layer in enumerate(layers):
            y = _TOP + row * high
            if replica == 0 and row % 5 == 0:
                canvas.text(f"layer {index[row]}", left - 6, y + high, _SMALL, anchor="end")
            for expert, at in enumerate(layer):
                if replica < len(at):
                    cell_path = f"M{left + expert * cell:g} {y:g}h{cell:g}v{high:g}h-{cell:g}z"
                    cells.setdefault(at[replica], []).append(cell_path)
        for node, paths in sorted(cells.items()):
            canvas.area("".join(paths), canvas.fill_of(node), f"node {node}")
    y, nodes = _TOP + len(layers) * high + 18, figures.instance["cluster"]["nodes"]
    step = min(74.0, (canvas.width - _LEFT - 20) / min(nodes, 16))
    for node in range(min(nodes, 32)):
        box = (_LEFT + node % 16 * step, y + node // 16 * 22, step - 5, 17)
        canvas.symbol("computation", box, [f"node {node}"], fill=canvas.fill_of(node), size=9)
    return canvas.svg()


def draw_memory(figures: Figures) -> str:
    """Draw the memory of every GPU by part, in prefill and in decode."""
    shown = [
        figures.step(),
        figures.step(phase="decode", small=True),
        figures.step(phase="decode"),
    ]
    gpus = figures.plan["gpus"]
    wide = max(2.0, min(7.0, 900 / gpus))
    canvas = Canvas(_LEFT + gpus * wide + 60, 120 + 190 * len(shown), "Memory of every GPU")
    canvas.group("drawing")
    canvas.text("What fills the memory of every GPU?", 16, 28, 16, bold=True)
    for index, (_, colour, name) in enumerate(_PARTS):
        canvas.frame((_LEFT + index * 130, 44, 16, 12), fill=colour, stroke=INK, width=0.5, radius=0)
        canvas.text(name, _LEFT + 22 + index * 130, 54, _TEXT)
    for index, row in enumerate(shown):
        _panel(canvas, 100 + 190 * index, row, wide, _title(row))
    return canvas.svg()


def _title(row: Mapping[str, Any]) -> str:
    work = f"{row['phase']}, {row['tokens_per_gpu']:,g} tokens per GPU, context {row['context']:,g}"
    size = row["memory_gb"]["size"][0]
    fits = "fits" if row["fits"] else "DOES NOT FIT"
    return f"{work}: {row['high_water_gb']:,.1f} of {size:,.0f} GB on the fullest GPU, {fits}"


def _panel(canvas: Canvas, top: float, row: Mapping[str, Any], wide: float, title: str) -> None:
    """Draw stacked bars, one a GPU, under a line at the size of its memory.

    Parameters
    ----------
    canvas : Canvas
    top : float
        Of the panel; pixels.
    row : mapping
        A simulated step.
    wide : float
        Of a bar; pixels.
    title : str
    """
    memory: Mapping[str, Sequence[float]] = row["memory_gb"]
    room, size = 130.0, max(memory["size"])
    most = max(size, row["high_water_gb"]) * 1.05
    canvas.text(title, _LEFT, top - 8, 12, bold=True)
    for gpu in range(len(memory["size"])):
        y = top + room
        for name, colour, word in _PARTS:
            high = memory[name][gpu] / most * room
            y -= high
            tip = f"GPU {gpu}: {word} {memory[name][gpu]:,.2f} GB"
            canvas.frame((_LEFT + gpu * wide, y, wide - 0.6, high), fill=colour, stroke="none", radius=0, tip=tip)
    line = top + room - size / most * room
    right = _LEFT + len(memory["size"]) * wide
    canvas.line(f"M{_LEFT - 4:.1f} {line:.1f}H{right + 4:.1f}", arrow=False, stroke=INK, width=1.4)
    canvas.text(f"{size:g} GB", right + 8, line + 4, _SMALL + 1)
    canvas.line(f"M{_LEFT:.1f} {top + room:.1f}H{right:.1f}", arrow=False, stroke=LINE, width=0.8)
    canvas.text("0", _LEFT - 8, top + room + 3, _SMALL, anchor="end")
    last = len(memory["size"]) - 1
    canvas.text("GPU 0", _LEFT, top + room + 14, _SMALL)
    canvas.text(f"GPU {last}", right, top + room + 14, _SMALL, anchor="end")
