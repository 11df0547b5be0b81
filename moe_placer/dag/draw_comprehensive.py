"""Draws all layers with every operation: a column for every layer, a row for every node, in bands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from moe_placer.dag.canvas import Canvas, text_width
from moe_placer.dag.drawing_items import Item
from moe_placer.dag.labels import gpu_list, shape_text, worst_link
from moe_placer.dag.layout import Layout, Point, break_bands
from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.dag.palette import WORST

__all__ = ["SHORT", "draw_comprehensive"]

SHORT = {
    "attention": "MHA",
    "attention_reduce": "sum",
    "gate": "gate",
    "gate_scatter": "scatter",
    "dispatch_send": "send",
    "dispatch_receive": "recv",
    "expert": "",
    "expert_reduce": "sum",
    "combine_send": "send",
    "combine_receive": "recv",
    "aggregate": "add",
    "mlp": "MLP",
    "mlp_reduce": "sum",
    "embedding": "embed",
    "embedding_reduce": "sum",
    "input": "input",
    "split": "split",
    "norm": "norm",
    "head": "head",
    "sample": "sample",
    "sample_reduce": "max",
    "gather": "gather",
    "output": "output",
}
# Columns of a stage: before the layers, a dense layer, a MoE layer, after the layers.
STAGES = (
    ("input", "split", "embedding", "embedding_reduce"),
    ("attention", "attention_reduce", "mlp", "mlp_reduce"),
    (
        *("attention", "attention_reduce", "gate", "gate_scatter", "mlp", "mlp_reduce", "dispatch_send"),
        *("dispatch_receive", "expert", "expert_reduce", "combine_send", "combine_receive", "aggregate"),
    ),
    ("norm", "head", "sample", "sample_reduce", "gather", "output"),
)
_SHARED = frozenset({"mlp", "mlp_reduce"})  # in a MoE layer: of shared experts, where there are some
CROSSED = frozenset({"dispatch_receive", "combine_receive"})  # columns with room for crossing edges before them
# Pixels; the smallest text is 9 px at 100%.
WIDE, HIGH, GAP, CROSSING = 120, 30, 118, 140
ROW, STRIP, LINE_STEP = 35, 14, 12
HEAD, STAGE_GAP, MARGIN = 220, 90, 270
FONT, SMALL = 11.0, 9.4
ASPECT = 1.8


def draw_comprehensive(dag: Dag, *, lean: bool = False, whole: bool = True) -> Canvas:
    """Draw the whole graph; unless it is ``whole``, its title says which layers it has."""
    return _Wall(dag, lean=lean, whole=whole).draw()


class _Wall(Layout):
    """Operations by stage and node, and where each is.

    A cell is one stage on one node; its wiring is drawn alike in all cells that are wired alike.
    """

    margin = float(MARGIN)

    def __init__(self, dag: Dag, *, lean: bool = False, whole: bool = True) -> None:
        super().__init__(dag, lean=lean)
        first, last = dag.facts["layers"][0], dag.facts["layers"][-1]
        which = "all layers" if whole else f"layers {first} to {last}, and what is before and after all layers"
        self.title = f"{dag.name}: {which}, every expert on its GPU" + ("; shapes are on the page" if lean else "")
        self.kinds: set[str] = {op.kind for op in dag.operations()}
        self.shares = any(op.layer in dag.facts["links"] for op in dag.operations("mlp"))
        self.stage: dict[str, int] = {}  # of an operation: -1, its layer, or the layer after the last
        self.homes: dict[str, int] = {}
        self.cells: dict[tuple[int, int], list[Operation]] = {}
        self.slot: dict[str, int] = {}
        count: Counter[tuple[int, int, str]] = Counter()
        # Experts of a GPU below each other, everything else in the order of the step.
        for op in sorted(dag.operations(), key=_by_place):
            stage = op.layer if op.layer is not None else -1 if op.kind in STAGES[0] else last + 1
            home = self.home(op)
            self.stage[op.id], self.homes[op.id] = stage, home
            self.cells.setdefault((stage, home), []).append(op)
            self.slot[op.id] = count[stage, home, op.kind]
            count[stage, home, op.kind] += 1
        self.count = count
        self._arrange()

    def _columns(self, stage: int) -> dict[str, float]:
        """Left edge of every column in a stage, and under ``""`` the stage's width."""
        facts = self.dag.facts
        index = 2 if stage in facts["links"] else 1
        index = 0 if stage < 0 else 3 if stage > facts["layers"][-1] else index
        x, columns = 0.0, dict[str, float]()
        for kind in STAGES[index]:
            if kind in self.kinds and (index != 2 or kind not in _SHARED or self.shares):
                x += CROSSING if kind in CROSSED else 0
                columns[kind] = x
                x += WIDE + GAP
        return {**columns, "": x}

    def _arrange(self) -> None:
        """Choose how many stages a band has, and place every cell."""
        self.rows: list[float] = []
        self.tallest: list[int] = []  # most symbols above each other, by node: all stages are centred alike
        for node in range(self.nodes):
            most = max((n for (_, home, _), n in self.count.items() if home == node), default=1)
            tp_groups = max(
                (n for (_, home, kind), n in self.count.items() if home == node and kind == "attention"), default=1
            )
            self.tallest.append(most)
            self.rows.append(max(most, 3) * ROW + STRIP * (2 + 3 * tp_groups))
        self.columns = {stage: self._columns(stage) for stage in sorted(set(self.stage.values()))}
        widths = {stage: columns[""] + STAGE_GAP for stage, columns in self.columns.items()}
        self.band_height = sum(self.rows) + HEAD + 120 + 10 * self.nodes
        room, self.origin = break_bands(widths, self.band_height, ASPECT)
        self.size = min(108.0, room / 110)
        top = 585.0 + self.legend_height(room, self.size)
        self.origin = {stage: (MARGIN + x, top + y) for stage, (x, y) in self.origin.items()}
        self.width = 2 * MARGIN + room
        self.height = max(y for _, y in self.origin.values()) + self.band_height + 80
        self.row_top = [float(HEAD) + sum(self.rows[:node]) for node in range(self.nodes)]

    def spot(self, name: str) -> Point:
        """Top left of an operation within its cell."""
        op = self.dag.operation(name)
        stage, home = self.stage[name], self.homes[name]
        stacked = self.count[stage, home, op.kind]
        tall = self.tallest[home]
        return self.columns[stage][op.kind], 4 + (tall - stacked) * ROW / 2 + self.slot[name] * ROW

    def place(self, name: str) -> Point:
        """Top left of an operation on the page."""
        x, y = self.spot(name)
        left, top = self.origin[self.stage[name]]
        return left + x, top + self.row_top[self.homes[name]] + y

    def ground(self, canvas: Canvas) -> None:
        """Write title and legend, and frame the stages."""
        self.head(canvas, 270.0, 380)
        self.legend(canvas, 520, self.size)
        for stage, (x, y) in self.origin.items():
            self._draw_stage(canvas, stage, x, y)

    def entries(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return what lines mean; here they are all thin."""
        return [("tensor", {}), *super().entries()[1:]]

    def edges(self, canvas: Canvas) -> None:
        """Draw what runs between cells; `draw_cell` has the others."""
        self.inside: dict[tuple[int, int], list[Edge]] = {}
        between: list[Edge] = []
        for edge in self.dag.edges():
            a = (self.stage[edge.source], self.homes[edge.source])
            if a == (self.stage[edge.target], self.homes[edge.target]) and edge.travel != "network":
                self.inside.setdefault(a, []).append(edge)
            else:
                between.append(edge)
        self._draw_between(canvas, between)
        canvas.group("cells")
        for cell, ops in self.cells.items():
            self._draw_cell(canvas, cell, ops)

    def _draw_stage(self, canvas: Canvas, stage: int, x: float, y: float) -> None:
        facts = self.dag.facts
        width = self.columns[stage][""] - GAP
        words = f"layer {stage}" if stage in facts["layers"] else "before" if stage < 0 else "after"
        if worst := worst_link(self.dag, stage):
            words += f", {worst}"
        size = round(min(99.0, width / text_width(words, 1.0)) - 0.05, 1)
        canvas.text(words, x, y + 140, size, bold=True)
        box = (x - 16, y + HEAD - 12, width + 32, sum(self.rows) + 16)
        canvas.frame(box, fill="#F7F7F7", stroke="#D1D5DB")

    def _draw_between(self, canvas: Canvas, edges: list[Edge]) -> None:
        """Draw what runs between cells: one path for all edges from a cell that look alike, shared by stages."""
        paths: dict[tuple[int, bool, bool, int, str], list[str]] = {}
        for edge in edges:
            look = (self.stage[edge.source], edge.dashed, edge.hot >= WORST)
            bundle = (self.homes[edge.source], self.dag.operation(edge.target).kind)
            paths.setdefault((*look, *bundle), []).append(self._path(edge))
        for (stage, dashed, warn, *_), ways in sorted(paths.items()):
            part = Canvas(0, 0, "")
            part.line("".join(ways), dashed=dashed, warn=warn, arrow=False, width=2.2 if warn else 0.9)
            canvas.stamp(part.items, *self.origin[stage])

    def _path(self, edge: Edge) -> str:
        """Write the way of an edge between cells, from the corner of the stage where it starts."""
        x, y = self.origin[self.stage[edge.source]]
        (ax, ay), (bx, by) = ((a - x, b - y) for a, b in map(self.place, (edge.source, edge.target)))
        ax, ay, by = ax + WIDE, ay + HIGH / 2, by + HIGH / 2
        if self.dag.operation(edge.target).kind in CROSSED:
            lead = bx - GAP - ax  # the last part is straight, for the label above it
            return f"M{ax:g} {ay:g}c{lead / 2:g} 0 {lead / 2:g} {by - ay:g} {lead:g} {by - ay:g}h{GAP}"
        if bx > ax:
            middle = bx - 6
            return f"M{ax:g} {ay:g}H{middle:g}" + (f"V{by:g}" if ay != by else "") + f"H{bx:g}"
        # To the next band: out to the right, along the gap between the bands, in from the left.
        row = self.homes[edge.target]
        right, left = self.width - MARGIN + 24 + 11 * row, MARGIN - 36.0 - 11 * (self.nodes - row)
        gap = self.origin[self.stage[edge.target]][1] - 24 - 10 * (self.nodes - row)
        right, left, gap = min(right, self.width - 4) - x, max(left, 4.0) - x, gap - y
        return f"M{ax:g} {ay:g}H{right:g}V{gap:g}H{left:g}V{by:g}H{bx:g}"

    def _draw_cell(self, canvas: Canvas, cell: tuple[int, int], ops: list[Operation]) -> None:
        left, top = self.origin[cell[0]][0], self.origin[cell[0]][1] + self.row_top[cell[1]]
        wiring, own = self._wire(cell, ops, self.inside.get(cell, []))
        if wiring:
            canvas.stamp(wiring, left, top)
        fill, drawn = canvas.fill_of(cell[1]), []
        for run in _by_gpu(ops) if self.lean else [[op] for op in ops]:
            x, y = self.spot(run[0].id)
            box = (left + x, top + y, float(WIDE), float(HIGH + (len(run) - 1) * ROW))
            tip = f"{run[0].id} {gpu_list(run[0].gpus, 80)}"
            canvas.symbol(run[0].role, box, [], fill=fill, tip=tip, name=run[0].id)
            drawn.append((run, box))
        for run, box in drawn:
            canvas.lines(_names(run), box, role=run[0].role, size=FONT)
        if own:
            canvas.stamp(own, left, top)

    def _wire(self, cell: tuple[int, int], ops: list[Operation], edges: list[Edge]) -> tuple[list[Item], list[Item]]:
        """Return the wiring of a cell with labels that are the same elsewhere, and labels that are its own."""
        lines: dict[bool, list[str]] = {False: [], True: []}
        shared, own = Canvas(0, 0, ""), Canvas(0, 0, "")
        taken: set[Point] = set()
        past = 0
        for edge in edges:
            (ax, ay), (bx, by) = self.spot(edge.source), self.spot(edge.target)
            ax, ay, by = ax + WIDE, ay + HIGH / 2, by + HIGH / 2
            kinds = [self.dag.operation(name).kind for name in (edge.source, edge.target)]
            crossed = kinds[1] in CROSSED
            if bx - ax <= GAP + 1 or crossed:
                many = self.count[(*cell, kinds[0])] >= self.count[(*cell, kinds[1])]
                y = ay if many else by
                bend = f"L{bx - 4:g} {ay:g}" if many and ay != by else f"L{ax + 4:g} {by:g}" if ay != by else ""
                lines[edge.dashed].append(f"M{ax:g} {ay:g}{bend}L{bx:g} {by:g}")
                middle = bx - GAP / 2
            else:
                y = self.rows[cell[1]] - 2 - STRIP * past
                past += 1
                start, end = ax - WIDE * 0.4, bx + WIDE * 0.2 + 4 * (past % 4)
                lines[edge.dashed].append(f"M{start:g} {ay + HIGH * 0.4:g}V{y:g}H{end:g}V{by + HIGH * 0.45:g}")
                middle = ax + GAP / 2
            if crossed or self.lean:
                continue  # its port has the sum of all edges that arrive there
            while (middle, y) in taken:
                y += LINE_STEP
            taken.add((middle, y))
            varies = "expert" in kinds or "expert_reduce" in kinds
            _label(own if varies else shared, shape_text(edge.shape), middle, y - 2.5)
        for op in ops:
            if op.kind in CROSSED and not self.lean:
                x, y = self.spot(op.id)
                arriving = self.dag.incoming(op.id)
                words = f"{len(arriving)}: {shape_text((sum(e.shape[0] for e in arriving), *arriving[0].shape[1:]))}"
                _label(own, words, x - GAP / 2, y + HIGH / 2 - 2.5)
        wiring = Canvas(0, 0, "")
        for dashed, paths in lines.items():
            if paths:  # sorted, so that cells are wired alike whichever experts they hold
                wiring.line("".join(sorted(paths)), dashed=dashed, arrow=False)
        return [*wiring.items, *shared.items], own.items


def _label(canvas: Canvas, text: str, x: float, y: float) -> None:
    size = round(min(SMALL, (GAP - 4) / text_width(text, 1.0)) - 0.05, 1)
    canvas.text(text, x, y, size, anchor="middle")


def _names(run: list[Operation]) -> list[str]:
    """Write a run into its symbol: several experts as replica and GPU, then their numbers, four in a line."""
    op = run[0]
    gpus = f"G{gpu_list(op.gpus, 14)[4:]}"
    if len(run) == 1:
        words = op.id.partition(".expert.")[2].replace(".", " ") if op.kind == "expert" else SHORT[op.kind]
        return [f"{words} {gpus}"]
    numbers = [f"e{one.experts[0][0]}" for one in run]
    return [f"r{op.experts[0][1]} {gpus}", *(" ".join(numbers[at : at + 4]) for at in range(0, len(numbers), 4))]


def _by_place(op: Operation) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Order experts by their GPUs and replica; everything else stays in the order of the step, before them."""
    if not op.kind.startswith("expert"):
        return (), ()
    return op.gpus, tuple((replica, expert) for expert, replica in op.experts)


def _by_gpu(ops: list[Operation]) -> list[list[Operation]]:
    """Put experts of the same GPUs and replica together, which are below each other; all else stays alone."""
    runs: list[list[Operation]] = []
    for op in ops:
        last = runs[-1][0] if runs else op
        alike = runs and op.kind == last.kind == "expert" and op.gpus == last.gpus
        if alike and op.experts[0][1] == last.experts[0][1]:
            runs[-1].append(op)
        else:
            runs.append([op])
    return runs
