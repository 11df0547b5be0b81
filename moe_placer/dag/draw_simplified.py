"""Draws the key ideas on one page: three bands of columns, a lane for every DP replica."""

from __future__ import annotations

from collections import Counter

from moe_placer.dag.canvas import SKEW, Canvas, text_width
from moe_placer.dag.drawing_items import Box
from moe_placer.dag.labels import TITLES, amount, describe, describe_edge, gpu_list, shape_text, worst_link
from moe_placer.dag.layout import Layout
from moe_placer.dag.operation import Dag, Edge, Operation
from moe_placer.dag.palette import WORST

__all__ = ["draw_simplified"]

BOX, GAP = 138.0, 96.0
LANE, CHANNEL, STRIP = 62.0, 17.0, 7.0
MARGIN = 40.0
TEXT = 10.0


def draw_simplified(dag: Dag, *, lean: bool = False) -> Canvas:
    """Draw a graph whose operations are merged by kind, layer and DP lane."""
    return _Page(dag, lean=lean).draw()


class _Page(Layout):
    margin = MARGIN

    def __init__(self, dag: Dag, *, lean: bool = False) -> None:
        super().__init__(dag, lean=lean)
        self.title = f"{dag.name}: the deployment on one page"
        self.lanes = sorted({op.group for op in dag.operations() if op.group is not None}) or [0]
        self.bands = self._divide()
        self.channels = [self._find_channels(band) for band in self.bands]
        columns = max(len(band) for band in self.bands)
        self.width = max(1500.0, 2 * MARGIN + columns * BOX + (columns - 1) * GAP + 40)
        self.place: dict[str, Box] = {}
        self.tops: list[float] = []
        self.lines: Counter[tuple[float, float]] = Counter()
        top = 128.0
        for band, channels in zip(self.bands, self.channels, strict=True):
            self.tops.append(top)
            self._place_band(band, top, len(channels))
            top += self._band_height(len(channels)) + 38 + 13 * len(self.lanes)
        self.bottom = top - 10
        self.height = self.bottom + 50 + self.legend_height(self.room, 11.0)

    def _divide(self) -> list[list[list[Operation]]]:
        """Columns of operations of one kind, in three bands: before, in and after the MoE layer."""
        bands: list[list[list[Operation]]] = [[], [], []]
        seen: dict[tuple[str, int | None], list[Operation]] = {}
        moe = set(self.dag.facts["links"])
        band = 0
        for op in self.dag.operations():
            band = 1 if op.layer in moe else max(band, 2) if band and op.layer is None else band
            key = (op.kind, op.layer)
            if key not in seen:
                seen[key] = []
                bands[band].append(seen[key])
            seen[key].append(op)
        return [band for band in bands if band]

    def _find_channels(self, band: list[list[Operation]]) -> list[tuple[int, int, str]]:
        """Edges that skip a column: from column, to column, family. Each gets a line of its own above the lane."""
        column = {op.id: index for index, ops in enumerate(band) for op in ops}
        found = []
        for edge in self.dag.edges():
            a, b = column.get(edge.source), column.get(edge.target)
            if a is not None and b is not None and b - a > 1:
                key = (a, b, edge.tensor.partition("@")[0])
                if key not in found:
                    found.append(key)
        return sorted(found, key=lambda key: (key[1] - key[0], key))

    def _lane_top(self, lane: int, channels: int) -> float:
        """Top of a lane under its band's top; the last lane has its channels below, all others above."""
        above = lane + 1 if lane + 1 < len(self.lanes) or not lane else lane
        return lane * (LANE + 24) + above * channels * CHANNEL

    def _band_height(self, channels: int) -> float:
        last = len(self.lanes) - 1
        return self._lane_top(last, channels) + LANE + 24 + (channels * CHANNEL if last else 0)

    def _place_band(self, band: list[list[Operation]], top: float, channels: int) -> None:
        first, last = (top + self._lane_top(lane, channels) for lane in (0, len(self.lanes) - 1))
        for index, ops in enumerate(band):
            x = MARGIN + index * (BOX + GAP)
            for op in ops:
                if op.group is None or len(ops) == 1:
                    self.place[op.id] = (x, first, BOX, last + LANE - first)
                else:
                    lane = self.lanes.index(op.group)
                    self.place[op.id] = (x, top + self._lane_top(lane, channels), BOX, LANE)

    def ground(self, canvas: Canvas) -> None:
        """Write title and facts, and frame the layers."""
        self.head(canvas, 24.0, 46)
        for index, line in enumerate(self._facts()):
            self.say(canvas, line, 72 + 19 * index, 13.0)
        self._draw_frames(canvas)

    def foot(self, canvas: Canvas) -> None:
        """Draw the legend."""
        self.legend(canvas, self.bottom + 24, 11.0)

    def _facts(self) -> list[str]:
        facts = self.dag.facts
        experts = [pair for op in self.dag.operations("expert") for pair in op.experts]
        held = {gpu for op in self.dag.operations("expert") for gpu in op.gpus}
        gpus = facts["nodes"] * facts["gpus_per_node"]
        first = f"{len(experts)} expert replicas of a layer on {len(held)} of {gpus} GPUs, {facts['nodes']} nodes"
        lines = [f"{first}; {facts['dp']} DP replicas; shapes and bytes per step"]
        layer = next(iter(facts["links"]))
        if worst := worst_link(self.dag, layer):
            lines.append(f"shown: layer {layer}, the MoE layer with the costliest link, {worst}")
        return lines

    def _draw_frames(self, canvas: Canvas) -> None:
        moe = set(self.dag.facts["links"])
        for band, top, channels in zip(self.bands, self.tops, self.channels, strict=True):
            by_layer: dict[int, list[int]] = {}
            for index, ops in enumerate(band):
                if ops[0].layer is not None:
                    by_layer.setdefault(ops[0].layer, []).append(index)
            for layer, columns in by_layer.items():
                x = MARGIN + columns[0] * (BOX + GAP) - 7
                width = (len(columns) - 1) * (BOX + GAP) + BOX + 14
                repeats = band[columns[0]][0].repeats
                canvas.frame((x, top - 22, width, self._band_height(len(channels)) + 18), fill="#F7F7F7")
                kind = "MoE layer" if layer in moe else "dense layer"
                canvas.text(f"{kind} {layer}, one of {repeats}", x + 8, top - 8, 11, bold=True)

    def operation(self, canvas: Canvas, op: Operation) -> None:
        work = amount(op.flops, "FLOP") if op.flops else ""
        title = TITLES[op.kind]
        if op.kind == "expert":
            experts, replicas = len({expert for expert, _ in op.experts}), len(op.experts)
            title = f"{experts} experts" + (f", {replicas} replicas" if replicas > experts else "")
        if op.moved:
            far = op.moved.get("network", 0.0)
            work = f"{amount(far, 'B')} over links" if far else f"{amount(sum(op.moved.values()), 'B')} moved"
        lines = [title, gpu_list(op.gpus, 18), work]
        home = sorted({gpu // self.per_node for gpu in op.gpus})
        box, fill = self.place[op.id], self.fill(canvas, op)
        canvas.symbol(op.role, box, lines, fill=fill, tip=describe(op), size=TEXT + 2, warn=op.hot >= WORST, name=op.id)
        step = min(12.0, BOX / len(home))
        left = box[0] + (BOX - step * len(home)) / 2
        for index, node in enumerate(home):
            at = (left + index * step, box[1] + box[3] + 4, step, STRIP)
            canvas.symbol("computation", at, [], fill=canvas.fill_of(node), tip=f"node {node}")

    def _side(self, name: str, y: float, *, right: bool) -> float:
        """Where a horizontal line at y meets the left or right side of a symbol."""
        left, top, width, height = self.place[name]
        role = self.dag.operation(name).role
        inset = 0.0
        if role == "communication":
            away = min(1.0, abs(y - top - height / 2) / (height / 2))
            inset = width / 2 * (1 - (1 - away * away) ** 0.5)
        elif role == "routing":
            down = (y - top) / height
            inset = SKEW * (down if right else 1 - down)
        return left + width - inset if right else left + inset

    def _rim(self, name: str, x: float, *, below: bool) -> float:
        """Where a vertical line at x meets the top or bottom of a symbol."""
        left, top, width, height = self.place[name]
        inset = 0.0
        if self.dag.operation(name).role == "communication":
            away = min(1.0, abs(x - left - width / 2) / (width / 2))
            inset = height / 2 * (1 - (1 - away * away) ** 0.5)
        return top + height - inset if below else top + inset

    def edge(self, canvas: Canvas, edge: Edge) -> None:
        a, b = self.place[edge.source], self.place[edge.target]
        label, tip = shape_text(edge.shape), describe_edge(self.dag, edge)
        if self._band_of(edge.source) != self._band_of(edge.target):
            self._draw_wrap(canvas, edge, label, tip)
            return
        # Between a tall symbol and a lane, an edge runs at the lane's height.
        lane = a if a[3] <= b[3] else b
        middle = lane[1] + lane[3] / 2 + 16 * self._edges_beside(edge)
        columns = [round((box[0] - MARGIN) / (BOX + GAP)) for box in (a, b)]
        if columns[1] - columns[0] == 1:
            start, end = self._side(edge.source, middle, right=True), self._side(edge.target, middle, right=False)
            canvas.line(f"M{start:.1f} {middle:.1f}H{end:.1f}", tip=tip, **self.look(edge))
            size = min(TEXT, (GAP - 14) / text_width(label, 1.0))
            canvas.text(label, a[0] + BOX + GAP / 2, middle - 5, round(size - 0.05, 1), anchor="middle")
            return
        self._draw_skip(canvas, edge, (columns[0], columns[1]), lane[1], label, tip)

    def _edges_beside(self, edge: Edge) -> int:
        """How many edges into or out of the same symbol already run where this one would."""
        columns = [self.place[name][0] for name in (edge.source, edge.target)]
        key = (columns[0], min((self.place[name] for name in (edge.source, edge.target)), key=lambda box: box[3])[1])
        used = self.lines[key]
        self.lines[key] += columns[1] - columns[0] < BOX + GAP + 1
        return used

    def _draw_skip(
        self, canvas: Canvas, edge: Edge, columns: tuple[int, int], lane_top: float, label: str, tip: str
    ) -> None:
        """Draw an edge past other columns: in its own channel above the lane, or below the last of several lanes."""
        a, b = self.place[edge.source], self.place[edge.target]
        channels = self.channels[self._band_of(edge.source)]
        channel = channels.index((*columns, edge.tensor.partition("@")[0]))
        groups = {self.dag.operation(name).group for name in (edge.source, edge.target)} - {None}
        below = len(self.lanes) > 1 and self.lanes[-1] in groups
        y = lane_top - (channel + 1) * CHANNEL + 4
        if below:
            y = lane_top + LANE + 2 * STRIP + (channel + 1) * CHANNEL
        part = (channel + 1) / (len(channels) + 1)
        leave, arrive = a[0] + BOX * (0.55 + 0.38 * part), b[0] + BOX * (0.12 + 0.38 * part)
        start, end = self._rim(edge.source, leave, below=below), self._rim(edge.target, arrive, below=below)
        path = f"M{leave:.1f} {start:.1f} V{y:.1f} H{arrive:.1f} V{end:.1f}"
        if b[3] > LANE and b[1] < y < b[1] + b[3]:  # a middle lane's channel runs straight into a tall symbol
            path = f"M{leave:.1f} {start:.1f} V{y:.1f} H{self._side(edge.target, y, right=False):.1f}"
        canvas.line(path, tip=tip, **self.look(edge))
        canvas.text(label, a[0] + BOX + 24, y - 3, TEXT)

    def _band_of(self, name: str) -> int:
        return next(i for i, band in enumerate(self.bands) if any(op.id == name for ops in band for op in ops))

    def _draw_wrap(self, canvas: Canvas, edge: Edge, label: str, tip: str) -> None:
        """Draw an edge from the end of a band to the start of the next one."""
        a, b = self.place[edge.source], self.place[edge.target]
        lane = self.lanes.index(self.dag.operation(edge.target).group or self.lanes[0])
        turn, shift = a[0] + BOX + 14 + 6 * lane, b[0] - 13 - 6 * (len(self.lanes) - 1 - lane)
        y = self.tops[self._band_of(edge.target)] - 30 - 13 * (len(self.lanes) - 1 - lane)
        middle, into = (a if a[3] <= b[3] else b), b[1] + b[3] / 2
        height = middle[1] + middle[3] / 2
        start, end = self._side(edge.source, height, right=True), self._side(edge.target, into, right=False)
        path = f"M{start:.1f} {height:.1f} H{turn:.1f} V{y:.1f} H{shift:.1f} V{into:.1f} H{end:.1f}"
        canvas.line(path, tip=tip, **self.look(edge))
        canvas.text(label, MARGIN + 250 + 130 * self.lines[0.0, y], y - 2, TEXT - 1)
        self.lines[0.0, y] += 1
