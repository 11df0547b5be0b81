"""Draws one MoE layer expert by expert: a row for every node, columns in the order of the step."""

from __future__ import annotations

from collections import Counter

from moe_placer.dag.canvas import Canvas, text_width
from moe_placer.dag.drawing_items import Box
from moe_placer.dag.labels import (
    TITLES,
    amount,
    describe,
    describe_edge,
    gpu_list,
    number,
    shape_text,
    worst_link,
)
from moe_placer.dag.layout import Layout
from moe_placer.dag.legend import draw_links, links_height
from moe_placer.dag.operation import Dag, Edge, Operation

__all__ = ["draw_detailed"]

MARGIN = 40.0
BOX, LEAD = 104.0, 96.0  # width of most symbols, and of the room between them for a shape
PORT, EXPERT_ROW = 12.0, 17.0  # heights: an edge's end with its text, an expert
EXPERT = 132.0
CROSSING = 300.0  # where edges between nodes cross each other; no text there
TALL = 50.0
SMALL, TEXT = 8.0, 10.0
# Kind to column; a column is a symbol and what is left of it.
_TP_GROUP_KINDS = ("input", "attention", "attention_reduce", "gate", "gate_scatter", "mlp", "mlp_reduce")
_TITLES = {
    "input": "Hidden states",
    "attention": "MHA, tensor parallel",
    "attention_reduce": "Sum over shards",
    "gate": "Gating, head GPU",
    "gate_scatter": "Choices to all",
    "mlp": "Shared experts",
    "mlp_reduce": "Sum over shards",
    "dispatch_send": "Dispatch: send",
    "dispatch_receive": "Dispatch: receive",
    "expert": "Experts",
    "expert_reduce": "Sum over shards",
    "combine_send": "Combine: send",
    "combine_receive": "Combine: receive",
    "aggregate": "Weigh and add",
    "output": "Hidden states",
}


def draw_detailed(dag: Dag, *, lean: bool = False) -> Canvas:
    """Draw a graph of one MoE layer with every operation."""
    return _Sheet(dag, lean=lean).draw()


class _Sheet(Layout):
    margin = MARGIN

    def __init__(self, dag: Dag, *, lean: bool = False) -> None:
        super().__init__(dag, lean=lean)
        self.layer = dag.facts["layers"][0]
        self.title = f"{dag.name}: MoE layer {self.layer}, expert by expert"
        self.by_node: dict[str, list[list[Operation]]] = {}
        for op in dag.operations():
            rows = self.by_node.setdefault(op.kind, [[] for _ in range(self.nodes)])
            rows[self.home(op)].append(op)
        for rows in self.by_node.values():
            for row in rows:
                row.sort(key=lambda op: op.gpus)
        self.column = self._find_columns()
        self.width = self.column["output"] + BOX + MARGIN
        self.slots, self.passing = self._assign_slots()
        self.place: dict[str, Box] = {}
        self.top: list[float] = []
        self.bottom = self._place_rows()
        self.links = self.bottom + self.legend_height(self.room, 14.0) + 30
        self.height = self.links + links_height(dag.facts["links"][self.layer], self.room) + 30

    def _find_columns(self) -> dict[str, float]:
        columns, x = {}, MARGIN + 76
        for kind in _TP_GROUP_KINDS:
            if kind in self.by_node:
                columns[kind] = x
                x += BOX + LEAD
        columns["dispatch_send"] = x
        x += BOX + CROSSING + LEAD + 20
        columns["dispatch_receive"] = x
        x += BOX + LEAD
        columns["expert"] = x
        x += EXPERT + LEAD
        if "expert_reduce" in self.by_node:
            columns["expert_reduce"] = x
            x += EXPERT + LEAD
        columns["combine_send"] = x
        x += BOX + CROSSING + LEAD + 20
        for kind in ("combine_receive", "aggregate", "output"):
            columns[kind] = x
            x += BOX + LEAD
        return columns

    def _is_next(self, edge: Edge) -> bool:
        """Whether an edge goes to the next column."""
        a, b = (self.column[self.dag.operation(name).kind] for name in (edge.source, edge.target))
        return b - a - BOX < LEAD + 1

    def _assign_slots(self) -> tuple[dict[tuple[str, str, str], int], dict[str, int]]:
        """Give edges that would run on one line a line each.

        Returns the line of every edge of a group, counted among those to the next column from the same symbol, those
        past other columns, or those into one aggregation; and how many edges of each group pass other columns.
        """
        slots: dict[tuple[str, str, str], int] = {}
        used: Counter[tuple[str, str]] = Counter()
        for edge in self.dag.edges():
            target = self.dag.operation(edge.target).kind
            if target in {"dispatch_receive", "combine_receive", "expert", "expert_reduce", "combine_send"}:
                continue
            key = ("next", edge.source)
            if edge.tensor.startswith("combined."):
                key = ("into", edge.target)
            elif target not in {"aggregate", "output"} and not self._is_next(edge):
                key = ("past", edge.source.rpartition(".")[2])
            slots[edge.source, edge.target, edge.tensor] = used[key]
            used[key] += 1
        return slots, {group: count for (kind, group), count in used.items() if kind == "past"}

    def _tp_group_height(self, op: Operation) -> float:
        """Height of a group's symbols and of the lines that fan out of them or pass below them."""
        fan = max(len(op.gpus) // self.per_node, 1) * 2
        room = max(17.0 * self.passing.get(op.id.rpartition(".")[2], 0) + 8, 12.0 * (fan - 1) + 8)
        return float(TALL + 2 * room)  # a symbol is in the middle of it

    def _place_rows(self) -> float:
        ports = [0] * self.nodes
        for kind in ("dispatch_receive", "combine_receive"):
            for node, ops in enumerate(self.by_node[kind]):
                for op in ops:
                    ports[node] = max(ports[node], len(self.dag.incoming(op.id)))
        y = 150.0
        for node in range(self.nodes):
            experts, tp_groups = len(self.by_node["expert"][node]), self.by_node["attention"][node]
            content = max(ports[node] * PORT, experts * EXPERT_ROW, TALL)
            content = max(content, len(tp_groups) * max(map(self._tp_group_height, tp_groups), default=0.0))
            self.top.append(y)
            self._place_node(node, y + 10, content)
            y += 10 + content + 8 + 14 * 2 * len(tp_groups) + 10
        return y

    def _place_node(self, node: int, y: float, content: float) -> None:
        middle = y + content / 2
        for kind in (*_TP_GROUP_KINDS, "aggregate", "output"):
            ops = self.by_node.get(kind, [[]] * self.nodes)[node]
            for index, op in enumerate(ops):
                part = content / len(ops)
                centre = y + (index + 0.5) * part
                self.place[op.id] = (self.column[kind], centre - TALL / 2, BOX, TALL)
        for kind in ("expert", "expert_reduce"):
            ops = self.by_node.get(kind, [[]] * self.nodes)[node]
            for index, op in enumerate(ops):
                centre = middle + (index - (len(ops) - 1) / 2) * EXPERT_ROW
                self.place[op.id] = (self.column[kind], centre - EXPERT_ROW / 2 + 1.5, EXPERT, EXPERT_ROW - 3)
        for kind in ("dispatch_send", "dispatch_receive", "combine_send", "combine_receive"):
            for op in self.by_node[kind][node]:
                self.place[op.id] = (self.column[kind], middle - TALL / 2, BOX, TALL)

    def ground(self, canvas: Canvas) -> None:
        """Write title and summary, and frame the nodes."""
        self.head(canvas, 28.0, 52)
        self.say(canvas, self._summary(), 84, 15.0)
        canvas.group("rows")
        self._draw_rows(canvas)

    def foot(self, canvas: Canvas) -> None:
        """Draw the legend, and the loads of links."""
        self.legend(canvas, self.bottom + 10, 14.0)
        draw_links(canvas, MARGIN, self.links, self.room, self.dag, self.layer)

    def _summary(self) -> str:
        sent = [edge for edge in self.dag.edges() if edge.tensor.startswith("sent.")]
        tokens = sum(edge.shape[0] for edge in sent)
        far = sum(edge.shape[0] for edge in sent if edge.travel == "network")
        replicas = sum(len(row) for row in self.by_node["expert"])
        types = {edge.tensor.partition(".")[0]: edge.dtype for edge in self.dag.edges()}
        unit = "" if (once := self.dag.facts["dispatch"]) == "per-expert" else f" {once}"
        words = f"{replicas} expert replicas; {number(tokens)} token copies dispatched{unit} as {types['sent']}"
        share = f", {far / tokens:.1%} to another node" if tokens else ""
        share += f", results as {types['back']}"
        if worst := worst_link(self.dag, self.layer):
            share += f"; busiest link {worst}"
        return words + share

    def _draw_rows(self, canvas: Canvas) -> None:
        ends = [*self.top[1:], self.bottom]
        for node, (top, end) in enumerate(zip(self.top, ends, strict=True)):
            box = (MARGIN - 8, top, self.width - 2 * MARGIN + 16, end - top - 6)
            canvas.frame(box, fill="#F7F7F7", stroke="#D1D5DB")
            label = (MARGIN, top + 4, 62.0, end - top - 14)
            canvas.symbol("computation", label, [f"node {node}"], fill=canvas.fill_of(node), size=12.0)
        for kind, x in self.column.items():
            width = EXPERT if kind.startswith("expert") else BOX
            size = min(12.0, (width + 40) / text_width(_TITLES[kind], 1.0))
            canvas.text(_TITLES[kind], x + width / 2, 132, round(size - 0.05, 1), anchor="middle", bold=True)

    def operation(self, canvas: Canvas, op: Operation) -> None:
        if op.kind in {"expert", "expert_reduce"}:
            name = op.id.partition(".")[2].partition(".")[2]
            lines = [f"{name.replace('.', ' ')} {gpu_list(op.gpus, 16)}"]
        elif op.kind in {"dispatch_send", "combine_receive"}:
            edges = self.dag.outgoing(op.id) if op.kind == "dispatch_send" else self.dag.incoming(op.id)
            lines = [TITLES[op.kind], gpu_list(op.gpus, 16), f"{number(sum(e.shape[0] for e in edges))} tok"]
        else:
            lines = [TITLES[op.kind], gpu_list(op.gpus, 16), amount(op.flops, "FLOP") if op.flops else ""]
        fill = canvas.fill_of(self.home(op))
        canvas.symbol(op.role, self.place[op.id], lines, fill=fill, tip=describe(op), size=TEXT, name=op.id)

    def edge(self, canvas: Canvas, edge: Edge) -> None:
        kinds = (self.dag.operation(edge.source).kind, self.dag.operation(edge.target).kind)
        if kinds in {("dispatch_send", "dispatch_receive"), ("combine_send", "combine_receive")}:
            self._draw_crossing(canvas, edge)
        elif {"expert", "expert_reduce"} & set(kinds):
            self._draw_fan(canvas, edge)
        else:
            self._draw_tp_group_edge(canvas, edge)

    def _draw_crossing(self, canvas: Canvas, edge: Edge) -> None:
        """From node to node: a curve without text, then a straight end with its shape above it."""
        a, b = self.place[edge.source], self.place[edge.target]
        ends = [
            other for other in self.dag.incoming(edge.target) if other.tensor.split(".")[0] == edge.tensor.split(".")[0]
        ]
        index = ends.index(edge)
        y = b[1] + TALL / 2 + (index - (len(ends) - 1) / 2) * PORT
        lead = b[0] - LEAD - 14
        start, y0 = a[0] + BOX, a[1] + TALL / 2
        look = self.look(edge)
        bend = CROSSING * 0.45
        curve = f"C{start + bend:.1f} {y0:.1f} {lead - bend:.1f} {y:.1f} {lead:.1f} {y:.1f}"
        path = f"M{start:.1f} {y0:.1f}{curve}H{b[0] - 6:.1f}"
        canvas.line(path, tip=describe_edge(self.dag, edge), arrow=False, opacity=0.85, **look)
        into = f"M{b[0] - 6:.1f} {y:.1f}L{b[0] + 4:.1f} {b[1] + TALL / 2:.1f}"
        canvas.line(into, arrow=False, **{**look, "width": 0.8})
        source = edge.tensor.split(".")[1]
        label = f"{source} {shape_text(edge.shape)}"
        size = min(SMALL, (LEAD + 4) / text_width(label, 1.0))
        canvas.text(label, lead + 2, y - 1.5 - look["width"] / 2, round(size - 0.05, 1))

    def _draw_fan(self, canvas: Canvas, edge: Edge) -> None:
        """Between a node's send or receive and its experts: one straight line a row, its shape above it."""
        a, b = self.place[edge.source], self.place[edge.target]
        label, tip = shape_text(edge.shape), describe_edge(self.dag, edge)
        fans_out = self.dag.operation(edge.source).kind == "dispatch_receive"
        row = b if fans_out else a
        y, start, end = row[1] + row[3] / 2, a[0] + a[2], b[0]
        if fans_out:
            path = f"M{start - 3:.1f} {a[1] + a[3] / 2:.1f} L{start + 8:.1f} {y:.1f} H{end:.1f}"
        elif b[3] > EXPERT_ROW:
            path = f"M{start:.1f} {y:.1f} H{end - 8:.1f} L{end + 3:.1f} {b[1] + b[3] / 2:.1f}"
        else:
            path = f"M{start:.1f} {y:.1f} H{end:.1f}"
        canvas.line(path, tip=tip, arrow=fans_out or b[3] <= EXPERT_ROW, **self.look(edge))
        size = min(SMALL, (LEAD - 20) / text_width(label, 1.0))
        canvas.text(label, (start + end) / 2, self.above(edge, y), round(size - 0.05, 1), anchor="middle")

    def _draw_tp_group_edge(self, canvas: Canvas, edge: Edge) -> None:
        if not self._is_next(edge):
            self._draw_channel(canvas, edge)
            return
        a, b = self.place[edge.source], self.place[edge.target]
        y0, y1 = a[1] + TALL / 2, b[1] + TALL / 2
        start, end = a[0] + a[2], b[0]
        slot = self.slots[edge.source, edge.target, edge.tensor]
        y = (y1 if edge.tensor.startswith("combined.") else y0) + 12 * slot
        path = f"M{start:.1f} {y0:.1f} L{start + 6:.1f} {y:.1f} H{end - 8:.1f} L{end:.1f} {y1:.1f}"
        if y == y0 == y1:
            path = f"M{start:.1f} {y0:.1f} H{end:.1f}"
        canvas.line(path, tip=describe_edge(self.dag, edge), **self.look(edge))
        label = shape_text(edge.shape)
        size = min(SMALL + 1, (LEAD - 20) / text_width(label, 1.0))
        canvas.text(label, (start + end) / 2, self.above(edge, y), round(size - 0.05, 1), anchor="middle")

    def _draw_channel(self, canvas: Canvas, edge: Edge) -> None:
        """Past other columns: within a group under its symbols, to the aggregation along the bottom of the row."""
        a, b = self.place[edge.source], self.place[edge.target]
        choices = edge.tensor.startswith("choices")
        if self.dag.operation(edge.target).kind == "aggregate":
            node = self.home(self.dag.operation(edge.target))
            own = [op.id for op in self.by_node["aggregate"][node]]
            bottom = [*self.top[1:], self.bottom][node] - 6
            y = bottom - 14 * (2 * (len(own) - own.index(edge.target)) - choices) + 8
            leave, arrive = a[0] + BOX / 2, b[0] + 26.0 + 30 * choices
            end = f"H{arrive:.1f} V{b[1] + TALL:.1f}"
        else:
            y = a[1] + TALL + 17 * (1 + self.slots[edge.source, edge.target, edge.tensor])
            leave = a[0] + BOX * 0.62
            end = f"H{b[0] - 8:.1f} L{b[0] + 3:.1f} {b[1] + TALL * 0.62:.1f}"
        path = f"M{leave:.1f} {a[1] + TALL - 1:.1f} V{y:.1f} {end}"
        canvas.line(path, tip=describe_edge(self.dag, edge), **self.look(edge))
        canvas.text(shape_text(edge.shape), a[0] + BOX + 18, self.above(edge, y), SMALL + 1)
