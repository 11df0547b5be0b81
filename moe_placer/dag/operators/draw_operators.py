"""Draws the operators of one layer: a row for every node, columns in the order of the step, a shape on every edge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from moe_placer.dag.canvas import Canvas, text_width
from moe_placer.dag.drawing_items import Box
from moe_placer.dag.labels import TITLES, amount, describe, describe_edge, gpu_list, number, shape_text, worst_link
from moe_placer.dag.layout import Layout
from moe_placer.dag.legend import draw_links, links_height
from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.dag.palette import HOT

__all__ = ["draw_operators"]

# Pixels. A column is a symbol and the room behind it, where the shapes of what it makes stand.
BOX, ROOM, TALL = 122.0, 118.0, 58.0
EXPERT, EXPERT_ROOM, EXPERT_ROW = 118.0, 96.0, 27.0
CROSSING, PORT, LANE = 330.0, 12.5, 13.0
SMALL, TEXT = 9.0, 10.0
RESIDUAL = "#0072B2"  # blue of the Okabe-Ito scheme
_GROUP = (
    *("input", "input_layernorm", "linear_qkv", "linear_qkv_down_proj", "latent_gather", "linear_q_up_proj"),
    *("rotary", "linear_kv_up_proj", "absorb_keys", "attention_scores", "attention_softmax", "attention_context"),
    *(
        "absorb_values",
        "linear_proj",
        "attention_reduce",
        "self_attn_bda",
        "pre_mlp_layernorm",
        "router_gating",
        "router_topk",
    ),
    *("gate_scatter", "linear_fc1", "activation_func", "linear_fc2", "mlp_reduce"),
)
_NODE = ("dispatch_send", "dispatch_receive")
_OF_EXPERTS = ("linear_fc1", "activation_func", "linear_fc2", "expert_reduce")
_BACK = ("combine_send", "combine_receive")
_LAST = ("unpermute", "mlp_bda", "output")
_FAR = {("dispatch_send", "dispatch_receive"), ("combine_send", "combine_receive")}


def draw_operators(dag: Dag) -> Canvas:
    """Draw a graph of one layer's operators, every expert on its GPU."""
    return _Sheet(dag).draw()


def _column(op: Operation) -> str:
    """Return the column of an operator: those of experts have their own."""
    return f"expert.{op.kind}" if _is_experts(op) else op.kind


def _is_experts(op: Operation) -> bool:
    return bool(op.experts) or op.kind == "expert_reduce"


def _name(edge: Edge) -> str:
    """Return what a tensor is, in a word or two."""
    family = edge.tensor.partition(".")[0]
    if family == "attended" and edge.target.endswith("mlp_bda"):
        return "residual"
    words = {"in": "hidden", "block": "block", "residual": "residual", "parts": "partial sums"}
    return words.get(family.rpartition("_")[2], family)


class _Sheet(Layout):
    margin = 40.0

    def __init__(self, dag: Dag) -> None:
        super().__init__(dag)
        self.layer = dag.facts["layers"][0]
        self.title = f"{dag.name}: layer {self.layer}, every operator"
        self.columns = {_column(op) for op in dag.operations()}
        self.x = self._find_columns()
        self.width = max(self.x.values()) + BOX + self.margin
        self.rows: dict[int, dict[str, list[Operation]]] = defaultdict(lambda: defaultdict(list))
        for op in dag.operations():
            self.rows[self.home(op)][_column(op)].append(op)
        self.lanes = self._assign_lanes()
        self.place: dict[str, Box] = {}
        self.top: dict[int, float] = {}
        self.under: dict[int, float] = {}  # where lines under a node's row begin
        self.bottom = self._place_rows()
        self.links = self.bottom + self.legend_height(self.room, 14.0) + 30
        cost = dag.facts["links"].get(self.layer)
        self.height = self.links + (links_height(cost, self.room) if cost else 0.0) + 30

    def _find_columns(self) -> dict[str, float]:
        x, columns = self.margin + 80, dict[str, float]()
        experts = tuple(f"expert.{kind}" for kind in _OF_EXPERTS)
        for kind in (*_GROUP, *_NODE, *experts, *_BACK, *_LAST):
            if kind in self.columns:
                columns[kind] = x
                wide = kind.startswith("expert.")
                x += EXPERT + EXPERT_ROOM if wide else BOX + ROOM
                x += CROSSING if kind in {"dispatch_send", "combine_send"} else 0
        return columns

    def _is_next(self, edge: Edge) -> bool:
        order = sorted(self.x, key=self.x.__getitem__)
        a, b = (order.index(_column(self.dag.operation(name))) for name in (edge.source, edge.target))
        return b == a + 1

    def _assign_lanes(self) -> dict[tuple[str, str, str], tuple[str, int]]:
        """Give every edge a line of its own: among those to the next column, or below the symbols of its group."""
        lanes: dict[tuple[str, str, str], tuple[str, int]] = {}
        used: dict[str, int] = defaultdict(int)
        for edge in self.dag.edges():
            source, target = self.dag.operation(edge.source), self.dag.operation(edge.target)
            if (source.kind, target.kind) in _FAR or _is_experts(source) or _is_experts(target):
                continue
            way = "next" if self._is_next(edge) else "under" if self._is_long(edge) else "below"
            key = f"next {edge.source} {edge.target}" if way == "next" else f"{way} {self._group(source, target)}"
            lanes[edge.source, edge.target, edge.tensor] = (way, used[key])
            used[key] += 1
        self.used = used
        return lanes

    def _is_long(self, edge: Edge) -> bool:
        """Whether an edge passes the experts, and so runs under the whole row of its node."""
        if "dispatch_receive" not in self.x:
            return False
        a, b = (self.x[_column(self.dag.operation(name))] for name in (edge.source, edge.target))
        return a < self.x["dispatch_receive"] < b

    def _group(self, source: Operation, target: Operation) -> str:
        """Name the row of symbols that an edge passes under."""
        op = source if source.id.startswith("input.") or "layer" not in source.id else target
        return f"{self.home(op)} {min(op.gpus) if len(op.gpus) < self.per_node else 0}"

    def _place_rows(self) -> float:
        y = 150.0
        for node in range(self.nodes):
            row = self.rows[node]
            groups = max(1, *(len(ops) for kind, ops in row.items() if kind in _GROUP or kind in _LAST), 1)
            below = max((n for key, n in self.used.items() if key.startswith(f"below {node} ")), default=0)
            under = sum(n for key, n in self.used.items() if key.startswith(f"under {node} "))
            ports = max(
                (len(self.dag.incoming(op.id)) for kind in ("dispatch_receive", "combine_receive") for op in row[kind]),
                default=0,
            )
            experts = max((len(ops) for kind, ops in row.items() if kind.startswith("expert.")), default=0)
            band = TALL + 26 + below * LANE
            high = max(groups * band, experts * EXPERT_ROW + 12, ports * PORT + 12)
            self.top[node] = y
            self._place_node(row, y + 8, high)
            self.under[node] = y + high + 18
            y += high + 26 + under * LANE
        return y

    def _place_node(self, row: dict[str, list[Operation]], y: float, high: float) -> None:
        for kind, ops in row.items():
            for index, op in enumerate(sorted(ops, key=lambda op: op.gpus)):
                part = high / len(ops)
                if _is_experts(op):
                    top = y + high / 2 + (index - len(ops) / 2) * EXPERT_ROW
                    self.place[op.id] = (self.x[kind], top + 2, EXPERT, EXPERT_ROW - 4)
                elif kind in {*_NODE, *_BACK}:
                    self.place[op.id] = (self.x[kind], y + high / 2 - TALL / 2, BOX, TALL)
                else:
                    self.place[op.id] = (self.x[kind], y + index * part + 14, BOX, TALL)

    def ground(self, canvas: Canvas) -> None:
        self.head(canvas, 28.0, 52)
        self.say(canvas, self._summary(), 84, 15.0)
        canvas.group("rows")
        ends = [*list(self.top.values())[1:], self.bottom]
        for (node, top), end in zip(self.top.items(), ends, strict=True):
            canvas.frame(
                (self.margin - 8, top, self.width - 2 * self.margin + 16, end - top - 8),
                fill="#F7F7F7",
                stroke="#D1D5DB",
            )
            label = (self.margin, top + 6, 62.0, end - top - 20)
            canvas.symbol("computation", label, [f"node {node}"], fill=canvas.fill_of(node), size=12.0)
        for kind, x in self.x.items():
            title, wide = TITLES[kind.removeprefix("expert.")], EXPERT if kind.startswith("expert.") else BOX
            size = min(12.0, (wide + 60) / text_width(title, 1.0))
            canvas.text(title, x + wide / 2, 132, round(size - 0.05, 1), anchor="middle", bold=True)

    def _summary(self) -> str:
        facts, ops = self.dag.facts, list(self.dag.operations())
        flops = sum(op.flops for op in ops)
        vector = sum(op.detail.get("vector_flops", 0.0) for op in ops)
        worst = worst_link(self.dag, self.layer)
        beside = f"{amount(flops, 'FLOP')} of matrices, {vector / (flops + vector):.2%} beside them"
        sent = f"; sent {facts['dispatch']}, received {facts['receive']}" if worst else ""
        return (
            f"{len(ops)} operators; {facts['phase']}, context {facts['context']:,g} tokens; {beside}{sent}"
            f"{f'; busiest link {worst}' if worst else ''}. Shapes are of one GPU: “/ 8” is one of eight parts"
        )

    def operation(self, canvas: Canvas, op: Operation) -> None:
        weight = f"W {shape_text(op.detail['weight'])}" if "weight" in op.detail else ""
        flops = op.flops or op.detail.get("vector_flops", 0.0)
        cost = amount(flops, "FLOP") if flops else ""
        if _is_experts(op):
            expert, replica = op.id.partition(".")[2].split(".")[1:3]
            lines = [f"{expert} {replica} {gpu_list(op.gpus, 12)}", weight or cost or TITLES[op.kind]]
        else:
            sent = [edge.shape[0] for edge in self.dag.outgoing(op.id) if edge.tensor.startswith(("sent.", "back."))]
            lines = [TITLES[op.kind], gpu_list(op.gpus, 16), weight, f"{number(sum(sent))} tokens" if sent else cost]
        fill = canvas.fill_of(self.home(op))
        canvas.symbol(op.role, self.place[op.id], lines, fill=fill, tip=describe(op), size=TEXT, name=op.id)

    def edge(self, canvas: Canvas, edge: Edge) -> None:
        source, target = self.dag.operation(edge.source), self.dag.operation(edge.target)
        if (source.kind, target.kind) in _FAR:
            self._cross(canvas, edge)
        elif _is_experts(source) or _is_experts(target):
            self._fan(canvas, edge)
        elif self.lanes[edge.source, edge.target, edge.tensor][0] == "next":
            self._straight(canvas, edge)
        else:
            self._below(canvas, edge)

    def _words(self, edge: Edge) -> str:
        parts = f" / {edge.parts}" if edge.parts > 1 else ""
        return f"{_name(edge)} {shape_text(edge.shape)}{parts}"

    def _cross(self, canvas: Canvas, edge: Edge) -> None:
        """From node to node: a curve, and its tokens where it arrives."""
        a, b = self.place[edge.source], self.place[edge.target]
        ends = [
            other for other in self.dag.incoming(edge.target) if other.routes or other.tensor[:4] in {"sent", "back"}
        ]
        y = b[1] + TALL / 2 + (ends.index(edge) - (len(ends) - 1) / 2) * PORT
        start, y0, lead = a[0] + BOX, a[1] + TALL / 2, b[0] - ROOM
        bend, look = (lead - start) * 0.45, self.look(edge)
        curve = f"C{start + bend:.1f} {y0:.1f} {lead - bend:.1f} {y:.1f} {lead:.1f} {y:.1f}"
        path = f"M{start:.1f} {y0:.1f}{curve}H{b[0] - 14:.1f}L{b[0]:.1f} {b[1] + TALL / 2:.1f}"
        canvas.line(path, tip=describe_edge(self.dag, edge), arrow=False, opacity=0.85, **look)
        words = f"n{edge.tensor.split('.')[1][1:]}: {shape_text(edge.shape)}"
        canvas.text(words, lead + 4, self.above(edge, y), SMALL, bold=edge.hot >= HOT)

    def _fan(self, canvas: Canvas, edge: Edge) -> None:
        """Between a node's receiver or sender and its experts, and from operator to operator of one expert."""
        a, b = self.place[edge.source], self.place[edge.target]
        y0, y1 = a[1] + a[3] / 2, b[1] + b[3] / 2
        start, end = a[0] + a[2], b[0]
        row = y1 if _is_experts(self.dag.operation(edge.target)) else y0
        turn = start + 14 if row == y1 else end - 14
        path = f"M{start:.1f} {y0:.1f}L{turn:.1f} {row:.1f}" if row == y1 else f"M{start:.1f} {y0:.1f}H{turn:.1f}"
        path += f"H{end:.1f}" if row == y1 else f"L{end:.1f} {y1:.1f}"
        canvas.line(path, tip=describe_edge(self.dag, edge), arrow=False, **self.look(edge, 2.0))
        left = turn if row == y1 and a[3] > EXPERT_ROW else start
        words = shape_text(edge.shape) + (f" / {edge.parts}" if edge.parts > 1 else "")
        room = (end if row == y1 else turn) - left - 4
        size = round(min(SMALL, room / text_width(words, 1.0)) - 0.05, 1)
        canvas.text(words, left + 3, row - 2.4, size)

    def _straight(self, canvas: Canvas, edge: Edge) -> None:
        a, b = self.place[edge.source], self.place[edge.target]
        many = self.used[f"next {edge.source} {edge.target}"]
        index = self.lanes[edge.source, edge.target, edge.tensor][1]
        off = (index - (many - 1) / 2) * 18
        y0, y1 = a[1] + TALL / 2 + off, b[1] + TALL / 2 + off
        start, end = a[0] + BOX, b[0]
        path = f"M{start:.1f} {y0:.1f}H{end - 8:.1f}" + ("" if y0 == y1 else f"L{end:.1f} {y1:.1f}")
        path += f"H{end:.1f}" if y0 == y1 else ""
        canvas.line(path, tip=describe_edge(self.dag, edge), **self.look(edge, 3.0))
        self._label(canvas, edge, start, end, y0)

    def _label(self, canvas: Canvas, edge: Edge, start: float, end: float, y: float) -> None:
        """Write a tensor's name and shape above its line, and how it is divided.

        Parameters
        ----------
        canvas : Canvas
        edge : Edge
        start, end, y : float
            Of the line; pixels.
        """
        words = self._words(edge)
        size = round(min(SMALL, (end - start - 10) / text_width(words, 1.0)) - 0.05, 1)
        if size >= 7:
            canvas.text(words, start + 4, self.above(edge, y), size)
            return
        name, _, shape = words.partition(" ")
        size = round(min(SMALL, (end - start - 10) / text_width(shape, 1.0)) - 0.05, 1)
        canvas.text(name, start + 4, self.above(edge, y) - 10, size)
        canvas.text(shape, start + 4, self.above(edge, y), size)

    def _below(self, canvas: Canvas, edge: Edge) -> None:
        """Past other columns: down, along a line of its own, and up again; residuals have their own colour."""
        a, b = self.place[edge.source], self.place[edge.target]
        way, lane = self.lanes[edge.source, edge.target, edge.tensor]
        op = self.dag.operation(edge.source)
        if way == "under":
            earlier = [key for key in self.used if key.startswith(f"under {self.home(op)} ")]
            own = earlier.index(f"under {self._group(op, self.dag.operation(edge.target))}")
            y = self.under[self.home(op)] + (lane + sum(self.used[key] for key in earlier[:own])) * LANE
        else:
            y = max(a[1], b[1]) + TALL + 16 + lane * LANE
        out, into = a[0] + BOX - 10 - 4 * (lane % 6), b[0] + 10 + 4 * (lane % 6)
        path = f"M{out:.1f} {a[1] + TALL:.1f}V{y:.1f}H{into:.1f}V{b[1] + TALL:.1f}"
        residual = _name(edge) == "residual"
        look = self.look(edge, 2.0) | ({"stroke": RESIDUAL} if residual else {})
        canvas.line(path, tip=describe_edge(self.dag, edge), **look)
        canvas.text(self._words(edge), out + 6, y - 2.4, SMALL, halo=True)

    def entries(self) -> list[tuple[str, Mapping[str, Any]]]:
        return [*super().entries(), ("residual", {"stroke": RESIDUAL, "width": 1.5})]

    def foot(self, canvas: Canvas) -> None:
        self.legend(canvas, self.bottom + 10, 14.0)
        if self.dag.facts["links"].get(self.layer):
            draw_links(canvas, self.margin, self.links, self.room, self.dag, self.layer)
