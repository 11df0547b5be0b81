"""Draws all layers with every operation: a column for every layer, a row for every node, in bands."""

from __future__ import annotations

from collections import Counter
from html import escape

from moe_placer.dag.canvas import Canvas, text_size, text_width
from moe_placer.dag.labels import cost_note, gpu_list, shape_text, worst_link
from moe_placer.dag.legend import draw_legend, legend_height
from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.dag.palette import HOT, LINE, WARNING

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
    "sample": "likeliest",
    "sample_reduce": "max",
    "gather": "gather",
    "output": "output",
}
# Columns of a stage: before the layers, a dense layer, a MoE layer, after the layers.
STAGES = (
    ("input", "split", "embedding", "embedding_reduce"),
    ("attention", "attention_reduce", "mlp", "mlp_reduce"),
    (
        *("attention", "attention_reduce", "gate", "gate_scatter", "dispatch_send"),
        *("dispatch_receive", "expert", "expert_reduce", "combine_send", "combine_receive", "aggregate"),
    ),
    ("norm", "head", "sample", "sample_reduce", "gather", "output"),
)
CROSSED = frozenset({"dispatch_receive", "combine_receive"})  # columns with room for crossing edges before them
WIDE, HIGH, GAP, CROSSING = 46, 13, 34, 60
ROW, STRIP, LINE_STEP = 15, 6, 5
HEAD, STAGE_GAP, MARGIN = 100, 40, 120
FONT, SMALL = 5.0, 4.0
ASPECT = 1.8

Point = tuple[float, float]


def draw_comprehensive(dag: Dag, *, lean: bool = False) -> str:
    """Return the SVG of the whole graph."""
    return _Wall(dag).draw(lean=lean)


class _Wall:
    """Operations by stage and node, and where each is.

    A cell is one stage on one node; its wiring is a symbol shared by all cells that are wired alike.
    """

    def __init__(self, dag: Dag) -> None:
        self.dag = dag
        self.per_node, self.nodes = dag.facts["gpus_per_node"], dag.facts["nodes"]
        last = dag.facts["layers"][-1]
        self.kinds: set[str] = {op.kind for op in dag.operations()}
        self.stage: dict[str, int] = {}  # of an operation: -1, its layer, or the layer after the last
        self.home: dict[str, int] = {}
        self.cells: dict[tuple[int, int], list[Operation]] = {}
        self.slot: dict[str, int] = {}
        count: Counter[tuple[int, int, str]] = Counter()
        # Experts of a GPU below each other, everything else in the order of the step.
        for op in sorted(dag.operations(), key=_by_place):
            stage = op.layer if op.layer is not None else -1 if op.kind in STAGES[0] else last + 1
            name = op.id.rpartition(".")[2]
            home = int(name[1:]) if name[0] == "n" and name[1:].isdigit() else op.gpus[0] // self.per_node
            self.stage[op.id], self.home[op.id] = stage, home
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
            if kind in self.kinds:
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
        stages = sorted(set(self.stage.values()))
        self.columns = {stage: self._columns(stage) for stage in stages}
        widths = [self.columns[stage][""] + STAGE_GAP for stage in stages]
        self.band_height = sum(self.rows) + HEAD + 60 + 5 * self.nodes
        bands = max(1, round((sum(widths) / (ASPECT * self.band_height)) ** 0.5))
        room = max(*widths, sum(widths) / bands + max(widths) / 2)
        self.legend = min(48.0, room / 110)
        self.top = 260.0 + legend_height(self.nodes, room, self.legend)
        self.origin: dict[int, Point] = {}
        self.last: dict[int, float] = {}  # right end of the band that a stage is in, by band top
        x, y = float(MARGIN), self.top
        for stage, width in zip(stages, widths, strict=True):
            if x > MARGIN and x + width > MARGIN + room:
                x, y = float(MARGIN), y + self.band_height
            self.origin[stage] = (x, y)
            x += width
        self.width = 2 * MARGIN + room
        self.height = y + self.band_height + 40
        self.row_top = [HEAD + sum(self.rows[:node]) for node in range(self.nodes)]

    def spot(self, name: str) -> Point:
        """Top left of an operation within its cell."""
        op = self.dag.operation(name)
        stage, home = self.stage[name], self.home[name]
        stacked = self.count[stage, home, op.kind]
        tall = self.tallest[home]
        return self.columns[stage][op.kind], 4 + (tall - stacked) * ROW / 2 + self.slot[name] * ROW

    def place(self, name: str) -> Point:
        """Top left of an operation on the page."""
        x, y = self.spot(name)
        left, top = self.origin[self.stage[name]]
        return left + x, top + self.row_top[self.home[name]] + y

    def draw(self, *, lean: bool = False) -> str:
        """Draw legend, stage by stage its cells, and what connects them under them; ``lean`` without shapes."""
        title = f"{self.dag.name}: all layers, every expert on its GPU" + ("; shapes are on the page" if lean else "")
        canvas = Canvas(self.width, self.height, title, tips=not lean)
        room = self.width - 2 * MARGIN
        canvas.text(title, MARGIN, 170, round(min(120.0, room / text_width(title, 1.0)), 1), font_weight="bold")
        draw_legend(canvas, MARGIN, 230, room, self.nodes, cost_note(self.dag), size=self.legend)
        canvas.group(id="frames")
        for stage, (x, y) in self.origin.items():
            self._draw_stage(canvas, stage, x, y)
        inside: dict[tuple[int, int], list[Edge]] = {}
        between: list[Edge] = []
        for edge in self.dag.edges():
            a = (self.stage[edge.source], self.home[edge.source])
            if a == (self.stage[edge.target], self.home[edge.target]) and edge.travel != "network":
                inside.setdefault(a, []).append(edge)
            else:
                between.append(edge)
        self._draw_between(canvas, between)
        wirings: dict[str, str] = {}
        canvas.group(id="cells", font_size=FONT, text_anchor="middle", stroke=LINE, stroke_width=0.5)
        for cell, ops in self.cells.items():
            self._draw_cell(canvas, cell, ops, inside.get(cell, []), wirings, lean=lean)
        return canvas.svg()

    def _draw_stage(self, canvas: Canvas, stage: int, x: float, y: float) -> None:
        facts = self.dag.facts
        width = self.columns[stage][""] - GAP
        words = f"layer {stage}" if stage in facts["layers"] else "before" if stage < 0 else "after"
        if worst := worst_link(self.dag, stage):
            words += f", {worst}"
        size = round(min(44.0, width / text_width(words, 1.0)) - 0.05, 1)
        canvas.text(words, x, y + 60, size, font_weight="bold")
        box = (x - 8, y + HEAD - 6, width + 16, sum(self.rows) + 8)
        canvas.frame(box, fill="#F7F7F7", stroke="#D1D5DB")

    def _draw_between(self, canvas: Canvas, edges: list[Edge]) -> None:
        """Draw what runs between cells: one path for all edges from a cell that look alike, shared by stages."""
        paths: dict[tuple[int, bool, bool], dict[tuple[int, str], list[str]]] = {}
        for edge in edges:
            stage = self.stage[edge.source]
            bundle = (self.home[edge.source], self.dag.operation(edge.target).kind)
            bundles = paths.setdefault((stage, edge.dashed, edge.hot >= HOT), {})
            bundles.setdefault(bundle, []).append(self._path(edge))
        known: dict[str, str] = {}
        canvas.group(id="between", fill="none", stroke=LINE, stroke_width=0.4)
        for (stage, dashed, warn), bundles in sorted(paths.items()):
            x, y = self.origin[stage]
            look = f' stroke="{WARNING}" stroke-width="1"' if warn else ""
            look += ' stroke-dasharray="3 2"' if dashed else ""
            uses = []
            for way in map("".join, bundles.values()):
                if way not in known:
                    known[way] = f"b{len(known)}"
                    canvas.define(f'<g id="{known[way]}"><path d="{way}"/></g>')
                uses.append(f'<use xlink:href="#{known[way]}"/>')
            place = f'transform="translate({x:g},{y:g})"'
            canvas.markup(f'<g id="from{stage}-{int(dashed)}{int(warn)}" {place}{look}>{"".join(uses)}</g>')

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
        row = self.home[edge.target]
        right, left = self.width - MARGIN + 10 + 5 * row, MARGIN - 16 - 5 * (self.nodes - row)
        gap = self.origin[self.stage[edge.target]][1] - 10 - 5 * (self.nodes - row)
        right, left, gap = min(right, self.width - 4) - x, max(left, 4.0) - x, gap - y
        return f"M{ax:g} {ay:g}H{right:g}V{gap:g}H{left:g}V{by:g}H{bx:g}"

    def _draw_cell(
        self,
        canvas: Canvas,
        cell: tuple[int, int],
        ops: list[Operation],
        edges: list[Edge],
        wirings: dict[str, str],
        *,
        lean: bool,
    ) -> None:
        left, top = self.origin[cell[0]]
        wiring, labels = self._wire(cell, ops, edges, lean=lean)
        if wiring and wiring not in wirings:
            wirings[wiring] = f"w{len(wirings)}"
            canvas.define(f'<g id="{wirings[wiring]}">{wiring}</g>')
        used = f'<use xlink:href="#{wirings[wiring]}"/>' if wiring else ""
        if lean:
            runs = _by_gpu(ops)
            symbols, named = self._symbols(canvas, runs), [text for run in runs for text in self._names(run)]
        else:
            symbols = [self._symbol(canvas, op) for op in ops]
            named = [self._name(op, *self.spot(op.id)) for op in ops]
        sizes: dict[float, list[str]] = {}
        for size, text in named:
            sizes.setdefault(size, []).append(text)
        texts = [f'<g font-size="{size:g}">{"".join(some)}</g>' for size, some in sizes.items()]
        place = f'transform="translate({left:g},{top + self.row_top[cell[1]]:g})"'
        fill, ink = canvas.fill_of(cell[1]), ' fill="#1A1A1A" stroke="none"'
        parts = [f"<g {place}>{used}", f'<g fill="{fill}">', *symbols, "</g>", f"<g{ink}>", *texts, *labels, "</g></g>"]
        canvas.markup("".join(parts))

    def _symbol(self, canvas: Canvas, op: Operation) -> str:
        x, y = self.spot(op.id)
        tip = escape(f"{op.id} {gpu_list(op.gpus, 80)}", quote=False)
        reference = canvas.shape_id(op.role, WIDE, HIGH)
        return f'<use xlink:href="#{reference}" x="{x:g}" y="{y:g}"><title>{tip}</title></use>'

    def _symbols(self, canvas: Canvas, runs: list[list[Operation]]) -> list[str]:
        """Draw one symbol around each run of operations below each other, without tooltips."""
        drawn = []
        for ops in runs:
            x, y = self.spot(ops[0].id)
            reference = canvas.shape_id(ops[0].role, WIDE, HIGH + (len(ops) - 1) * ROW)
            drawn.append(f'<use xlink:href="#{reference}" x="{x:g}" y="{y:g}"/>')
        return drawn

    def _names(self, run: list[Operation]) -> list[tuple[float, str]]:
        """Write a run into its symbol: several experts as replica and GPU, then their numbers, four in a line."""
        x, y = self.spot(run[0].id)
        if len(run) == 1:
            return [self._name(run[0], x, y)]
        numbers = [f"e{op.experts[0][0]}" for op in run]
        head = f"r{run[0].experts[0][1]} G{gpu_list(run[0].gpus, 15)[4:]}"
        words = [head, *(" ".join(numbers[at : at + 4]) for at in range(0, len(numbers), 4))]
        size = round(text_size("computation", WIDE, HIGH, [max(words, key=len)], FONT) - 0.05, 1)
        step = (HIGH + (len(run) - 1) * ROW) / len(words)
        return [
            (size, f'<text x="{x + WIDE / 2:g}" y="{y + (row + 0.5) * step + 1.7:.4g}">{text}</text>')
            for row, text in enumerate(words)
        ]

    def _name(self, op: Operation, x: float, y: float) -> tuple[float, str]:
        """Return the size and the text of what stands in a symbol."""
        words = op.id.partition(".expert.")[2] if op.kind == "expert" else SHORT[op.kind]
        text = f"{words.replace('.', ' ')} G{gpu_list(op.gpus, 15)[4:]}"
        size = round(text_size(op.role, WIDE, HIGH, [text], FONT) - 0.05, 1)
        return size, f'<text x="{x + WIDE / 2:g}" y="{y + HIGH / 2 + 1.7:g}">{text}</text>'

    def _wire(
        self, cell: tuple[int, int], ops: list[Operation], edges: list[Edge], *, lean: bool
    ) -> tuple[str, list[str]]:
        """Return the wiring of a cell with labels that are the same elsewhere, and labels that are its own."""
        lines: dict[bool, list[str]] = {False: [], True: []}
        shared: list[str] = []
        own: list[str] = []
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
            if crossed or lean:
                continue  # its port has the sum of all edges that arrive there
            while (middle, y) in taken:
                y += LINE_STEP
            taken.add((middle, y))
            varies = "expert" in kinds or "expert_reduce" in kinds
            (own if varies else shared).append(self._label(shape_text(edge.shape), middle, y - 1.2))
        for op in ops:
            if op.kind in CROSSED and not lean:
                x, y = self.spot(op.id)
                arriving = self.dag.incoming(op.id)
                words = f"{len(arriving)}: {shape_text((sum(e.shape[0] for e in arriving), *arriving[0].shape[1:]))}"
                own.append(self._label(words, x - GAP / 2, y + HIGH / 2 - 1.2))
        dashes = {False: "", True: ' stroke-dasharray="3 2"'}
        # Sorted, so that cells are wired alike whichever experts they hold.
        drawn = [f'<path fill="none"{dashes[dashed]} d="{"".join(sorted(d))}"/>' for dashed, d in lines.items() if d]
        texts = f'<g fill="#1A1A1A" stroke="none">{"".join(shared)}</g>' if shared else ""
        return "".join(drawn) + texts, own

    def _label(self, text: str, x: float, y: float) -> str:
        size = round(min(SMALL, (GAP - 2) / text_width(text, 1.0)) - 0.05, 1)
        return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}">{text}</text>'


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
