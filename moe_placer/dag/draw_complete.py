"""Draws all parallel strategies together: time goes right, rows are DP replicas, nodes and the network.

A layer takes four steps of two-batch overlap. While one micro-batch's tokens are on the links, the other attends or
runs its experts; the end of a layer and the beginning of the next share a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from moe_placer.dag.canvas import Canvas, text_width
from moe_placer.dag.draw_comprehensive import SHORT
from moe_placer.dag.labels import describe, dimensions, gpu_list, worst_link
from moe_placer.dag.layout import Layout, break_bands
from moe_placer.dag.operation import ALL_TO_ALL, Dag, Edge, Operation

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
# Pixels; the smallest text is 9 px at 100%.
WIDE, HIGH, GAP, ROW = 128.0, 52.0, 24.0, 66.0
HEAD, MARGIN, NAMES, BETWEEN = 80.0, 60.0, 420.0, 100.0
STEPS, ASPECT, LABEL = 4, 1.7, 20.0


def draw_complete(dag: Dag, *, lean: bool = False) -> Canvas:
    """Draw the whole deployment in two micro-batches."""
    return _Timeline(dag, lean=lean).draw()


class _Timeline(Layout):
    """Where every operation is: its stage (a layer, what comes before, or after), step, column, and row."""

    margin = MARGIN

    def __init__(self, dag: Dag, *, lean: bool = False) -> None:
        super().__init__(dag, lean=lean)
        self.title = f"{dag.name}: DP, TP and EP together, two micro-batches overlapped"
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
        room, self.origin = break_bands(self.width_of, self.band_height, ASPECT, 1800.0)
        self.size = min(100.0, max(22.0, room / 130))
        self.width = MARGIN + NAMES + room + MARGIN
        self.top = 3.4 * self.size + self.legend_height(self.room, self.size)
        top = self.top + 1.6 * self.size * len(self._words()) + self.size
        self.origin = {stage: (MARGIN + NAMES + x, top + y) for stage, (x, y) in self.origin.items()}
        self.height = max(y for _, y in self.origin.values()) + self.band_height

    def place(self, name: str) -> tuple[float, float]:
        """Top left of an operation."""
        op, (stage, step) = self.dag.operation(name), self.at[name]
        left, top = self.origin[stage]
        column = 0
        if op.kind not in {"dispatch", "combine"}:
            column = [k for k in self.columns[stage, step] if k not in {"dispatch", "combine"}].index(op.kind)
        x = left + self.step_left[stage, step] + GAP + column * (WIDE + GAP)
        return x, top + HEAD + self.rows[self._row_of(op)] * ROW + (ROW - HIGH) / 2

    def ground(self, canvas: Canvas) -> None:
        """Write title, legend and how to read it, and draw the bands with their rows."""
        self.head(canvas, 2.0 * self.size, 2.4 * self.size)
        self.legend(canvas, 3.4 * self.size, self.size)
        for place, words in enumerate(self._words()):
            self.say(canvas, words, self.top + 1.6 * self.size * (place + 1), self.size)
        canvas.group("bands")
        self._draw_bands(canvas)

    def _words(self) -> list[str]:
        orders = sum(edge.travel == "order" for edge in self.dag.edges())
        return [
            "A, B: micro-batches. Time goes right: a layer takes four steps; what is above each other in a step runs "
            "at the same time.",
            "A symbol states its GPUs and the shape of what it makes. A line that ends at a margin goes on in the next "
            "band.",
            "Order: on a node's GPUs attention A and B, then experts A and B; on the network dispatch A and B, then "
            f"combine A and B ({orders:,} edges in .json and .dot).",
        ]

    def entries(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return what lines mean; here they are all thin."""
        return [
            ("tensor", {}),
            *super().entries()[1:-1],
            ("all-to-all of the layer with the busiest link (outlined)", {"warn": True, "arrow": False}),
            ("a step begins", {"stroke": "#C3C8D0", "arrow": False}),
        ]

    def _draw_bands(self, canvas: Canvas) -> None:
        for top in sorted({y for _, y in self.origin.values()}):
            for name, index in self.rows.items():
                y = top + HEAD + index * ROW
                strong = not name.startswith("node")
                indent = 0 if not name.startswith("node") else 14
                canvas.text(self._title(name), MARGIN + indent, y + ROW / 2 + 3, LABEL, bold=strong)
                canvas.line(f"M{MARGIN + NAMES:g} {y:g}H{self.width - MARGIN:g}", arrow=False, stroke="#E5E7EB")
        for stage, (x, y) in self.origin.items():
            words = "before" if stage < 0 else "after" if stage == self.stages[-1] else f"layer {stage}"
            if link := worst_link(self.dag, stage):
                words += f", {link}"
            size = round(min(30.0, (self.width_of[stage] - 20) / text_width(words, 1.0)) - 0.05, 1)
            canvas.text(words, x + 8, y + HEAD - 24, size, bold=True)
            bottom = y + HEAD + len(self.rows) * ROW
            canvas.line(f"M{x:g} {y + HEAD - 16:g}V{bottom:g}", arrow=False)
            for step in range(1, STEPS):
                left = x + self.step_left[stage, step]
                canvas.line(f"M{left:g} {y + HEAD:g}V{bottom:g}", arrow=False, stroke="#C3C8D0")

    def _title(self, name: str) -> str:
        if not name.startswith("DP "):
            return name if name == "network" else f"{name}: experts"
        group, groups = int(name[3:]), self.dag.facts["dp"]
        nodes = [node for node in range(self.nodes) if node * groups // self.nodes == group]
        return f"{name}: nodes {nodes[0]}-{nodes[-1]}, TP {self.dag.facts['tp']}"

    def edge(self, canvas: Canvas, edge: Edge) -> None:
        """Draw an edge, to the next band over the margins; the order of a row needs none."""
        if edge.travel == "order":
            return
        (ax, ay), (bx, by) = self.place(edge.source), self.place(edge.target)
        ax, ay, by = ax + WIDE, ay + HIGH / 2, by + HIGH / 2
        same_band = self.origin[self.at[edge.source][0]][1] == self.origin[self.at[edge.target][0]][1]
        if not same_band:
            canvas.line(f"M{ax:g} {ay:g}H{self.width - MARGIN:g}", dashed=edge.dashed)
            canvas.line(f"M{MARGIN + NAMES:g} {by:g}H{bx:g}", dashed=edge.dashed)
        elif ay == by and bx - ax <= GAP:
            canvas.line(f"M{ax:g} {ay:g}H{bx:g}", dashed=edge.dashed)
        else:
            # In the gap right before its end, so that what meets there shares a trunk; not through symbols between.
            lift = ay if ay == by else None
            trunk = ax + GAP / 3 if edge.source.startswith(("attention", "gate", "aggregate")) else bx - GAP / 2
            way = f"M{ax:g} {ay:g}H{trunk:g}V{by:g}H{bx:g}"
            if lift is not None:
                low = ay + HIGH / 2 + 2.5
                way = f"M{ax - 4:g} {ay + HIGH / 2 - 1:g}V{low:g}H{bx + 4:g}V{by + HIGH / 2 - 1:g}"
            canvas.line(way, dashed=edge.dashed)

    def operation(self, canvas: Canvas, op: Operation) -> None:
        """Draw an operation with its micro-batch, its GPUs, and the shape of what it makes."""
        words = f"{len(op.experts)} experts" if op.kind == "expert" else SHORT.get(op.kind, op.kind)
        if op.batch is not None:
            words += f" {'AB'[op.batch]}"
        lines = [words, gpu_list(op.gpus, 14), dimensions(op)[1]]
        near = op.kind in ALL_TO_ALL and op.layer == self.hottest
        box, fill = (*self.place(op.id), WIDE, HIGH), self.fill(canvas, op)
        canvas.symbol(op.role, box, lines, fill=fill, tip=describe(op), size=11, warn=near, name=op.id)

    @cached_property
    def hottest(self) -> int | None:
        """The MoE layer with the costliest link; None where no link carries anything."""
        worst = {layer: max(cost.values(), default=0.0) for layer, cost in self.dag.facts["links"].items()}
        layer = max(worst, key=lambda layer: worst[layer], default=None)
        return layer if layer is not None and worst[layer] > 0 else None
