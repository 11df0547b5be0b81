"""Draws all parallel strategies together: time goes right, rows are DP replicas, nodes and the network.

A layer takes four steps of two-batch overlap. While one micro-batch's tokens are on the links, the other attends or
runs its experts; the end of a layer and the beginning of the next share a step.
"""

from __future__ import annotations

from typing import Any

from moe_placer.dag.canvas import Canvas, text_width
from moe_placer.dag.draw_comprehensive import SHORT
from moe_placer.dag.labels import cost_note, describe, worst_link
from moe_placer.dag.legend import draw_legend, legend_height
from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.dag.palette import HOT

__all__ = ["draw_complete"]

# Step within a stage, for either micro-batch, and whether it is the stage after its own layer's.
_STEPS: dict[str, tuple[tuple[int, int], bool]] = {
    **dict.fromkeys(("attention", "attention_reduce", "gate", "gate_scatter"), ((0, 1), False)),
    **dict.fromkeys(("mlp", "mlp_reduce", "expert", "expert_reduce"), ((2, 3), False)),
    "dispatch": ((1, 2), False),
    "combine": ((3, 0), False),  # the second one is in the next stage
    "aggregate": ((0, 1), True),
}
_BEFORE = {"input": 0, "split": 1, "embedding": 2, "embedding_reduce": 2}
_AFTER = {"norm": 0, "head": 0, "sample": 0, "sample_reduce": 0, "gather": 2, "output": 3}
_NETWORK = frozenset({"dispatch", "combine", "split", "gather"})
# Left to right within a step.
_COLUMNS = (
    *("aggregate", "attention", "attention_reduce", "gate", "gate_scatter"),
    *("mlp", "mlp_reduce", "expert", "expert_reduce", "input", "split", "embedding", "embedding_reduce"),
    *("norm", "head", "sample", "sample_reduce", "gather", "output", "dispatch", "combine"),
)
WIDE, HIGH, GAP, ROW = 40.0, 16.0, 12.0, 26.0
HEAD, MARGIN, NAMES, BETWEEN = 46.0, 40.0, 190.0, 50.0
STEPS, ASPECT, LABEL = 4, 1.7, 9.0


def draw_complete(dag: Dag, *, lean: bool = False) -> str:
    """Return the SVG of the whole deployment in two micro-batches."""
    return _Timeline(dag).draw(lean=lean)


class _Timeline:
    """Where every operation is: its stage (a layer, what comes before, or after), step, column, and row."""

    def __init__(self, dag: Dag) -> None:
        self.dag, self.per_node, self.nodes = dag, dag.facts["gpus_per_node"], dag.facts["nodes"]
        layers = dag.facts["layers"]
        self.stages = [-1, *layers, layers[-1] + 1]
        self.next = dict(zip(self.stages, self.stages[1:], strict=False))
        self.at = {op.id: self._time(op) for op in dag.operations()}
        self.rows = self._name_rows()
        self.columns: dict[tuple[int, int], list[str]] = {}
        for op in dag.operations():
            held = self.columns.setdefault(self.at[op.id], [])
            if op.kind not in held:
                held.append(op.kind)
        for held in self.columns.values():
            held.sort(key=_COLUMNS.index)
        self._arrange()

    def _time(self, op: Operation) -> tuple[int, int]:
        """Stage and step."""
        if op.kind in _STEPS and op.layer is not None:
            steps, later = _STEPS[op.kind]
            later = later or (op.kind == "combine" and op.batch == 1)
            return self.next[op.layer] if later else op.layer, steps[op.batch or 0]
        if op.kind in _BEFORE:
            return self.stages[0], _BEFORE[op.kind] + (op.batch or 0)
        return self.stages[-1], _AFTER[op.kind] + (op.batch or 0)

    def _row_of(self, op: Operation) -> str:
        if op.kind in _NETWORK:
            return "network"
        if op.kind in {"expert", "expert_reduce"}:
            return f"node {op.gpus[0] // self.per_node}"
        return f"DP {op.group or 0}"

    def _name_rows(self) -> dict[str, int]:
        """Network first; then each DP replica, with the nodes of its tokens under it."""
        used = {self._row_of(op) for op in self.dag.operations()}
        groups = self.dag.facts["dp"]
        names = ["network"]
        for group in range(groups):
            names.append(f"DP {group}")
            names += [f"node {node}" for node in range(self.nodes) if node * groups // self.nodes == group]
        return {name: index for index, name in enumerate(name for name in names if name in used)}

    def _arrange(self) -> None:
        """Break the stages into bands of about the page's shape."""
        self.step_left: dict[tuple[int, int], float] = {}
        self.width_of: dict[int, float] = {}
        for stage in self.stages:
            x = 0.0
            for step in range(STEPS):
                self.step_left[stage, step] = x
                # The network shares a step with what computes, in a row of its own.
                own = [kind for kind in self.columns.get((stage, step), []) if kind not in {"dispatch", "combine"}]
                x += max(1, len(own)) * (WIDE + GAP) + GAP
            self.width_of[stage] = x
        self.band_height = HEAD + len(self.rows) * ROW + BETWEEN
        total = sum(self.width_of.values())
        bands = max(1, round((total / (ASPECT * self.band_height)) ** 0.5))
        self.room = max(total / bands + max(self.width_of.values()) / 2, 900.0)
        self.size = min(40.0, max(11.0, self.room / 130))
        self.top = 3.4 * self.size + legend_height(self.nodes, self.room, self.size) + 2.2 * self.size
        self.origin: dict[int, tuple[float, float]] = {}
        x, y = MARGIN + NAMES, self.top
        for stage in self.stages:
            if x > MARGIN + NAMES and x + self.width_of[stage] > MARGIN + NAMES + self.room:
                x, y = MARGIN + NAMES, y + self.band_height
            self.origin[stage] = (x, y)
            x += self.width_of[stage]
        self.width, self.height = MARGIN + NAMES + self.room + MARGIN, y + self.band_height

    def place(self, name: str) -> tuple[float, float]:
        """Top left of an operation."""
        op, (stage, step) = self.dag.operation(name), self.at[name]
        left, top = self.origin[stage]
        column = 0
        if op.kind not in {"dispatch", "combine"}:
            column = [k for k in self.columns[stage, step] if k not in {"dispatch", "combine"}].index(op.kind)
        x = left + self.step_left[stage, step] + GAP + column * (WIDE + GAP)
        return x, top + HEAD + self.rows[self._row_of(op)] * ROW + (ROW - HIGH) / 2

    def draw(self, *, lean: bool = False) -> str:
        """Draw title and legend, the bands with their rows, what flows, and the operations on top."""
        title = f"{self.dag.name}: DP, TP and EP together, two micro-batches overlapped"
        canvas = Canvas(self.width, self.height, title, tips=not lean)
        size = min(2.0 * self.size, (self.width - 2 * MARGIN) / text_width(title, 1.0))
        canvas.text(title, MARGIN, 2.4 * self.size, round(size - 0.05, 1), font_weight="bold")
        draw_legend(canvas, MARGIN, 3.4 * self.size, self.room, self.nodes, cost_note(self.dag), size=self.size)
        words = "A, B: micro-batches. Time goes right; what is above each other in a step runs at the same time."
        size = min(self.size, self.room / text_width(words, 1.0))
        canvas.text(words, MARGIN, self.top - 0.6 * self.size, round(size - 0.05, 1))
        self._draw_bands(canvas)
        canvas.group(id="edges")
        for edge in self.dag.edges():
            if edge.travel != "order":
                self._draw_edge(canvas, edge)
        canvas.group(id="operations")
        worst = self._worst()
        for op in self.dag.operations():
            self._draw_operation(canvas, op, worst)
        return canvas.svg()

    def _worst(self) -> dict[int, float]:
        """Cost of each MoE layer's busiest link."""
        return {layer: max(cost.values(), default=0.0) for layer, cost in self.dag.facts["links"].items()}

    def _draw_bands(self, canvas: Canvas) -> None:
        canvas.group(id="bands")
        for top in sorted({y for _, y in self.origin.values()}):
            for name, index in self.rows.items():
                y = top + HEAD + index * ROW
                strong: dict[str, Any] = {"font_weight": "bold"} if not name.startswith("node") else {}
                indent = 0 if not name.startswith("node") else 14
                canvas.text(self._title(name), MARGIN + indent, y + ROW / 2 + 3, LABEL, **strong)
                canvas.line([f"M{MARGIN + NAMES:g} {y:g}H{self.width - MARGIN:g}"], arrow=False, stroke="#E5E7EB")
        for stage, (x, y) in self.origin.items():
            words = "before" if stage < 0 else "after" if stage == self.stages[-1] else f"layer {stage}"
            if link := worst_link(self.dag, stage):
                words += f", {link}"
            size = round(min(14.0, (self.width_of[stage] - 10) / text_width(words, 1.0)) - 0.05, 1)
            canvas.text(words, x + 4, y + HEAD - 14, size, font_weight="bold")
            bottom = y + HEAD + len(self.rows) * ROW
            canvas.line([f"M{x:g} {y + HEAD - 8:g}V{bottom:g}"], arrow=False)
            for step in range(1, STEPS):
                left = x + self.step_left[stage, step]
                canvas.line([f"M{left:g} {y + HEAD:g}V{bottom:g}"], arrow=False, stroke="#E5E7EB")

    def _title(self, name: str) -> str:
        if not name.startswith("DP "):
            return name if name == "network" else f"{name}: experts"
        group, groups = int(name[3:]), self.dag.facts["dp"]
        nodes = [node for node in range(self.nodes) if node * groups // self.nodes == group]
        return f"{name}: nodes {nodes[0]}-{nodes[-1]}, TP {self.dag.facts['tp']}"

    def _draw_edge(self, canvas: Canvas, edge: Edge) -> None:
        (ax, ay), (bx, by) = self.place(edge.source), self.place(edge.target)
        ax, ay, by = ax + WIDE, ay + HIGH / 2, by + HIGH / 2
        same_band = self.origin[self.at[edge.source][0]][1] == self.origin[self.at[edge.target][0]][1]
        style: dict[str, Any] = {"stroke_width": 0.7}
        if not same_band:
            canvas.line([f"M{ax:g} {ay:g}H{self.width - MARGIN:g}"], dashed=edge.dashed, **style)
            canvas.line([f"M{MARGIN + NAMES:g} {by:g}H{bx:g}"], dashed=edge.dashed, **style)
        elif ay == by and bx - ax <= GAP:
            canvas.line([f"M{ax:g} {ay:g}H{bx:g}"], dashed=edge.dashed, **style)
        else:
            # In the gap right before its end, so that what meets there shares a trunk; not through symbols between.
            lift = ay if ay == by else None
            trunk = ax + GAP / 3 if edge.source.startswith(("attention", "gate", "aggregate")) else bx - GAP / 2
            way = f"M{ax:g} {ay:g}H{trunk:g}V{by:g}H{bx:g}"
            if lift is not None:
                low = ay + HIGH / 2 + 2.5
                way = f"M{ax - 4:g} {ay + HIGH / 2 - 1:g}V{low:g}H{bx + 4:g}V{by + HIGH / 2 - 1:g}"
            canvas.line([way], dashed=edge.dashed, **style)

    def _draw_operation(self, canvas: Canvas, op: Operation, worst: dict[int, float]) -> None:
        x, y = self.place(op.id)
        half = "" if op.batch is None else f" {'AB'[op.batch]}"
        words = f"{SHORT.get(op.kind, op.kind)}{half}"
        if op.kind == "expert":
            words = f"{len(op.experts)} exp{half}"
        nodes = {gpu // self.per_node for gpu in op.gpus}
        near = op.kind in {"dispatch", "combine"} and worst[op.layer or 0] >= HOT * max(worst.values()) > 0
        fill = canvas.fill_of(nodes.pop() if len(nodes) == 1 else None)
        canvas.symbol(op.role, (x, y, WIDE, HIGH), [words], fill=fill, tip=describe(op), size=8, warn=near, name=op.id)
