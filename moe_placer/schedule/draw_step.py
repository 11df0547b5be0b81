"""Draws a whole step: every layer along time, in bands under each other, and the busiest link with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from moe_placer.dag.canvas import text_width
from moe_placer.dag.palette import COLOURS, INK
from moe_placer.schedule.busiest_link import busiest_link
from moe_placer.schedule.simulate import Timeline
from moe_placer.schedule.time_canvas import MARGIN, PHASES, Axis, TimeCanvas, milliseconds, phase_of

__all__ = ["draw_step"]

_WIDTH, _NAMES, _TOP = 1760.0, 130.0, 134.0
_HEAD, _ROW, _PATH, _LINK, _FOOT = 15.0, 11.0, 14.0, 28.0, 28.0
_PER_BAND, _BANDS = 12, 5  # layers in a band, and the most bands
# By phase: dispatch and combine are on the network, the others on the GPUs that compute.
_ROWS = {"MHA": 0, "dense MLP": 5, "dispatch": 2, "experts": 4, "combine": 3}
_KINDS = frozenset({"attention", "mlp", "dispatch_send", "expert", "combine_send"})


@dataclass
class _Bar:
    """All operations of one phase of a layer in a micro-batch.

    ``changes`` are moments (µs) and how many GPUs more, or fewer, are at it from then on.
    """

    start: float = float("inf")
    end: float = 0.0
    changes: dict[float, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, start: float, end: float, gpus: int) -> None:
        self.start, self.end = min(self.start, start), max(self.end, end)
        self.changes[start] += gpus
        self.changes[end] -= gpus


def draw_step(timeline: Timeline, placed_by: str) -> str:
    """Return the SVG of a step; ``placed_by`` names the solver of the placement, for the title."""
    return _Picture(timeline, placed_by).draw()


class _Picture:
    def __init__(self, timeline: Timeline, placed_by: str) -> None:
        self.timeline, self.program = timeline, timeline.program
        instance = self.program.instance
        self.bars = self._collect()
        phases = {phase for _, phase, _ in self.bars}
        # A dense MLP takes the row of the experts: no layer has both.
        self.phases = [name for name in _ROWS if _ROWS[name] in phases and not (name == "dense MLP" and 4 in phases)]
        self.starts: dict[int, float] = {}
        for (layer, _, _), bar in self.bars.items():
            self.starts[layer] = min(self.starts.get(layer, bar.start), bar.start)
        self.link = busiest_link(timeline)
        batches = timeline.durations.batches
        self.rows = {(b, name): i for i, (b, name) in enumerate((b, n) for b in range(batches) for n in self.phases)}
        count = min(_BANDS, -(-instance.model.layers // _PER_BAND))
        long = timeline.makespan / count
        width = _WIDTH - 2 * MARGIN - _NAMES
        self.bands = [Axis(long * i, long * (i + 1), MARGIN + _NAMES, width) for i in range(count)]
        self.high = _HEAD + len(self.rows) * _ROW + _PATH + 4 + (_LINK + 4 if self.link is not None else 0)
        title = f"{instance.name}, placed by {placed_by}: a step of {milliseconds(timeline.makespan)}"
        title += f", {instance.model.layers} layers"
        height = _TOP + count * (self.high + _FOOT) + MARGIN - 10
        note = "Bars: from the first start of a layer's operations to their last end; full colour: share of GPUs at it."
        if self.link is None:
            note += " No inter-node link carries dispatch or combine."
        self.page = TimeCanvas(timeline, _WIDTH, height, title, note)

    def _collect(self) -> dict[tuple[int, int, int], _Bar]:
        """Bars by layer, phase and micro-batch."""
        bars: dict[tuple[int, int, int], _Bar] = defaultdict(_Bar)
        for task in self.timeline.tasks().tolist():
            p = self.timeline.operation(task)
            if self.program.kinds[p] in _KINDS and self.timeline.end[task] > self.timeline.start[task]:
                key = (int(self.program.layer[p]), phase_of(self.program.kinds[p]), self.timeline.batch(task))
                start, end = float(self.timeline.start[task]), float(self.timeline.end[task])
                bars[key].add(start, end, len(self.program.gpus[p]))
        return dict(bars)

    def draw(self) -> str:
        """Draw band after band."""
        used = {phase_of(self.program.kinds[self.timeline.operation(t)]) for t in self.page.path}
        self.page.legend(MARGIN + 74, used | {phase for _, phase, _ in self.bars}, linked=self.link is not None)
        for index, axis in enumerate(self.bands):
            self._draw_band(axis, _TOP + index * (self.high + _FOOT))
        return self.page.canvas.svg()

    def _draw_band(self, axis: Axis, y: float) -> None:
        canvas = self.page.canvas
        canvas.group(f"band-{self.bands.index(axis)}")
        self.page.draw_axis(axis, y + _HEAD - 2, y + self.high)
        self._draw_layers(axis, y)
        top = y + _HEAD
        for (batch, name), row in self.rows.items():
            letter = f" {'AB'[batch]}" if self.timeline.durations.batches > 1 else ""
            words = "experts, MLP" if name == "experts" and self._has_dense() else name
            canvas.text(words + letter, MARGIN, top + row * _ROW + 9, 10)
        for (layer, phase, batch), bar in self.bars.items():
            if axis.shows(bar.start, bar.end):
                name = "experts" if PHASES[phase] == "dense MLP" and "experts" in self.phases else PHASES[phase]
                self._draw_bar(axis, bar, top + self.rows[batch, name] * _ROW, phase, batch, layer)
        top += len(self.rows) * _ROW + 2
        canvas.text("critical path", MARGIN, top + 10, 10, bold=True)
        self.page.draw_path(axis, top, _PATH - 2, words=False)
        if self.link is not None:
            top += _PATH + 2
            self._draw_link(axis, self.link, top)

    def _has_dense(self) -> bool:
        return any(PHASES[phase] == "dense MLP" for _, phase, _ in self.bars)

    def _draw_layers(self, axis: Axis, y: float) -> None:
        """Write each layer's number where its first attention starts, and a line down."""
        free = axis.left
        for layer, start in sorted(self.starts.items(), key=lambda item: item[1]):
            if not axis.begin <= start < axis.end:
                continue
            x = axis.x(start)
            self.page.canvas.line(f"M{x:.1f} {y + 2:.1f}V{y + self.high:.1f}", arrow=False, stroke="#9CA3AF")
            words = (f"layer {layer}", f"{layer}")
            if x >= free and (text := self._fitting(words, x, axis.left + axis.width)):
                if free == axis.left:
                    self._name_what_goes_on(axis, x, y)
                self.page.canvas.text(text, x + 3, y + 10, 10, bold=True)
                free = x + 6 + text_width(text, 10)

    def _name_what_goes_on(self, axis: Axis, right: float, y: float) -> None:
        """Write, up to the first layer that starts in a band, which one began before it."""
        before = [(start, layer) for layer, start in self.starts.items() if start < axis.begin]
        if before and (text := self._fitting([f"(layer {max(before)[1]})"], axis.left, right)):
            self.page.canvas.text(text, axis.left + 3, y + 10, 10)

    def _fitting(self, words: Sequence[str], left: float, right: float) -> str:
        return next((text for text in words if left + 6 + text_width(text, 10) <= right), "")

    def _draw_bar(self, axis: Axis, bar: _Bar, y: float, phase: int, batch: int, layer: int) -> None:
        left, right = axis.x(bar.start), axis.x(bar.end)
        height, gpus = _ROW - 2.0, self.program.instance.gpus
        commands, busy = "", 0
        for moment in sorted(bar.changes):
            if bar.changes[moment]:
                busy += bar.changes[moment]
                x = axis.x(moment)
                commands += f"H{x:.1f}" if commands else f"M{x:.1f} {y + height:.1f}"
                commands += f"V{y + height * (1 - busy / gpus):.1f}"
        fill = self.page.canvas.fill_of(phase + len(COLOURS) * batch)
        letter = f", micro-batch {'AB'[batch]}" if self.timeline.durations.batches > 1 else ""
        tip = f"layer {layer}: {PHASES[phase]}{letter}\n"
        tip += f"{milliseconds(bar.end - bar.start)} from {milliseconds(bar.start)}"
        canvas, box = self.page.canvas, (left, y, right - left, height)
        canvas.frame(box, fill=COLOURS[phase], opacity=0.3, stroke=INK, width=0.4, radius=0, tip=tip)
        canvas.area(f"{commands}Z", fill, tip)

    def _draw_link(self, axis: Axis, link: int, y: float) -> None:
        canvas = self.page.canvas
        self.page.draw_link(axis, link, y, _LINK)
        name = self.timeline.network.links[link]
        size = min(10.0, (_NAMES - 40) / text_width(name, 1.0))
        canvas.text("busiest link", MARGIN, y + 10, 10, bold=True)
        canvas.text(name, MARGIN, y + 23, round(size - 0.05, 1))
        for words, base in (("100%", 8.0), ("0%", _LINK)):
            canvas.text(words, axis.left - 26, y + base, 8)
