"""What pictures of a timeline share: colours of phases, time axes, bars, the critical path, and links over time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.dag.canvas import Canvas, text_width
from moe_placer.dag.labels import TITLES, amount, gpu_list
from moe_placer.dag.palette import COLOURS, HOT, INK, LINE, WARNING
from moe_placer.schedule.simulate import Timeline
from moe_placer.schedule.step_text import question

__all__ = ["PHASES", "Axis", "TimeCanvas", "batch_letter", "milliseconds", "phase_of"]

Floats = npt.NDArray[np.float64]

# What an operation is for; the index is that of its colour.
PHASES = ("MHA", "gating", "dispatch", "combine", "experts", "dense MLP", "aggregation", "before and after the layers")
_PHASE_OF = {
    **dict.fromkeys(("attention", "attention_reduce"), 0),
    **dict.fromkeys(("gate", "gate_scatter"), 1),
    "dispatch_send": 2,
    "combine_send": 3,
    **dict.fromkeys(("expert", "expert_reduce"), 4),
    **dict.fromkeys(("mlp", "mlp_reduce"), 5),
    "aggregate": 6,
}
_GRID, _PALE = "#E5E7EB", "#F3F4F6"
MARGIN = 24.0


def phase_of(kind: str) -> int:
    """Return the index in `PHASES` of a kind of operation."""
    return _PHASE_OF.get(kind, len(PHASES) - 1)


def batch_letter(timeline: Timeline, task: int) -> str:
    """Return the letter of a task's micro-batch; empty where there is only one, and for what is done once."""
    return "" if timeline.durations.batches == 1 or timeline.is_once(task) else "AB"[timeline.batch(task)]


def milliseconds(us: float) -> str:
    """Write a time: in µs below 1 ms, else in ms with at least three digits."""
    if us < 1e3:
        return f"{us:.3g} µs"
    return f"{us / 1e3:,.2f} ms" if us < 1e5 else f"{us / 1e3:,.1f} ms"


@dataclass(frozen=True)
class Axis:
    """A piece of time, µs, on a piece of the page, pixels."""

    begin: float
    end: float
    left: float
    width: float

    def x(self, us: float) -> float:
        """Position of a moment; what is outside is put on the border."""
        share = (us - self.begin) / (self.end - self.begin)
        return self.left + self.width * min(1.0, max(0.0, share))

    def shows(self, begin: float, end: float) -> bool:
        """Whether something that takes time is seen."""
        return begin < self.end and end > self.begin

    def ticks(self) -> Iterator[float]:
        """Yield round moments, about 90 pixels apart."""
        rough = (self.end - self.begin) * 90 / self.width
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
        for n in range(math.ceil(self.begin / step - 1e-9), math.floor(self.end / step + 1e-9) + 1):
            yield n * step


class TimeCanvas:
    """A canvas on which time goes right.

    Parameters
    ----------
    timeline : Timeline
    width, height : float
    title : str
    note : str
        What to know to read the picture; a line under the title and the question.
    """

    def __init__(self, timeline: Timeline, width: float, height: float, title: str, note: str) -> None:
        self.timeline = timeline
        self.canvas = Canvas(width, height, title)
        self.path = timeline.critical_path()
        self.room = width - 2 * MARGIN
        self._fitted(title, MARGIN + 16, 22, bold=True)
        self._fitted(question(timeline)[:1].upper() + question(timeline)[1:], MARGIN + 40, 14)
        self._fitted(note, MARGIN + 60, 12)

    def _fitted(self, text: str, y: float, size: float, *, bold: bool = False) -> None:
        self.canvas.text(text, MARGIN, y, round(min(size, self.room / text_width(text, 1.0)) - 0.05, 1), bold=bold)

    def legend(self, y: float, shown: Iterable[int], *, linked: bool, outlined: bool = False) -> None:
        """Draw what colours, hatches and lines mean, in one row.

        Parameters
        ----------
        y : float
            Vertical position, SVG units.
        shown : iterable of int
            Phases in the picture.
        linked, outlined : bool
            Whether a link's use is drawn, and whether what is on the critical path is outlined.
        """
        entries = [(PHASES[index], self.canvas.fill_of(index), INK, 0.8) for index in sorted(set(shown))]
        if self.timeline.durations.batches > 1:
            plain, hatched = COLOURS[-1], self.canvas.fill_of(2 * len(COLOURS) - 1)
            entries += [("micro-batch A: plain", plain, INK, 0.8), ("B: hatched", hatched, INK, 0.8)]
        entries += [("on the critical path", "#FFFFFF", INK, 2.5)] if outlined else []
        entries += [(f"link in use {HOT:.0%} or more", WARNING, "none", 0.0)] if linked else []
        letters = sum(len(words) for words, *_ in entries)
        size = min(12.0, (self.room - 44 * len(entries)) / (letters * text_width("x", 1.0)))
        x = MARGIN
        for words, fill, stroke, wide in entries:
            self.canvas.frame((x, y, 22, 13), fill=fill, stroke=stroke, width=wide, radius=0)
            self.canvas.text(words, x + 27, y + 10.5, round(size - 0.05, 1))
            x += 44 + text_width(words, size)

    def fill(self, task: int) -> str:
        """Return the fill of a task: its phase's colour, hatched in the second micro-batch."""
        batch = 0 if self.timeline.is_once(task) else self.timeline.batch(task)
        return self.canvas.fill_of(phase_of(self._kind(task)) + len(COLOURS) * batch)

    def _kind(self, task: int) -> str:
        return self.timeline.program.kinds[self.timeline.operation(task)]

    def bar(self, axis: Axis, task: int, y: float, height: float, *, strong: bool = False, faint: bool = False) -> None:
        """Draw a task as a bar, with what is known of it as a tooltip.

        Parameters
        ----------
        axis : Axis
            Time (µs) to horizontal position.
        task : int
            Which task of the step.
        y : float
            Vertical position, SVG units.
        height : float
            SVG units.
        strong : bool
            Whether to frame it.
        faint : bool
            Whether to draw it pale.
        """
        start, end = float(self.timeline.start[task]), float(self.timeline.end[task])
        left, right = axis.x(start), axis.x(end)
        box = (left, y, max(right - left, 0.3), height)
        wide, opacity = 2.0 if strong else 0.4, 0.45 if faint else 1.0
        self.canvas.frame(
            box, fill=self.fill(task), stroke=INK, width=wide, radius=0, opacity=opacity, tip=self._tip(task)
        )

    def _tip(self, task: int) -> str:
        timeline, program = self.timeline, self.timeline.program
        p = timeline.operation(task)
        letter = batch_letter(timeline, task)
        took = milliseconds(timeline.end[task] - timeline.start[task])
        lines = [program.names[p], f"{TITLES[program.kinds[p]]} on {gpu_list(program.gpus[p], 60)}"]
        lines += [f"micro-batch {letter}"] if letter else []
        lines += [f"{took} from {milliseconds(timeline.start[task])}"]
        if timeline.durations.flops[p]:
            lines.append(f"{amount(timeline.durations.flops[p], 'FLOP')} on each GPU")
        return "\n".join(lines)

    def label(self, words: Sequence[str], left: float, right: float, base: float, size: float) -> float:
        """Write the first of some wordings that fits between two positions; return where it ends, ``left`` if none.

        Parameters
        ----------
        words : sequence of str
            The wordings, the longest first.
        left : float
            Left end, SVG units.
        right : float
            Right end, SVG units.
        base : float
            Baseline, SVG units.
        size : float
            Size of the letters, SVG units.
        """
        for text in words:
            wide = text_width(text, size)
            if wide + 4 <= right - left:
                self.canvas.text(text, left + 3, base, size, halo=True)  # so that hatches do not cross letters
                return left + 2 + wide
        return left

    def draw_path(self, axis: Axis, y: float, height: float, *, words: bool) -> None:
        """Draw the critical path as a row of its own.

        Parameters
        ----------
        axis : Axis
            Time (µs) to horizontal position.
        y : float
            Vertical position, SVG units.
        height : float
            SVG units.
        words : bool
            Whether to name the tasks.
        """
        for task in self.path:
            start, end = float(self.timeline.start[task]), float(self.timeline.end[task])
            if end <= start or not axis.shows(start, end):
                continue
            self.bar(axis, task, y, height)
            if words:
                where = gpu_list(self.timeline.program.gpus[self.timeline.operation(task)], 12)
                phase = PHASES[phase_of(self._kind(task))]
                name = f"{phase} {batch_letter(self.timeline, task)}".strip()
                options = (f"{name}, {where}", name, phase)
                self.label(options, axis.x(start), axis.x(end), y + height - 4, 9)

    def draw_axis(self, axis: Axis, top: float, bottom: float) -> None:
        """Draw a grid from ``top`` to ``bottom``, and times under it."""
        unit, per = ("ms", 1e3) if axis.end >= 1e3 else ("µs", 1.0)
        commands = ""
        for moment in axis.ticks():
            x = axis.x(moment)
            commands += f"M{x:.1f} {top:.1f}V{bottom:.1f}"
            text = f"{moment / per:,.6g} {unit}"
            if x + text_width(text, 9) / 2 <= self.canvas.width:
                self.canvas.text(text, x, bottom + 11, 9, anchor="middle")
        self.canvas.line(commands or f"M{axis.left} {bottom}", arrow=False, stroke=_GRID)

    def draw_link(self, axis: Axis, link: int, y: float, height: float, *, mean: bool = False) -> None:
        """Draw how much of a link is in use, and, if asked, the mean of all links as a line.

        Parameters
        ----------
        axis : Axis
            Time (µs) to horizontal position.
        link : int
            Index of the link.
        y : float
            Vertical position, SVG units.
        height : float
            SVG units.
        mean : bool
            Whether to draw the mean of all links, too.
        """
        network = self.timeline.network
        if network.history is None:
            raise ValueError("what the links carried over time was not recorded")
        edges = np.linspace(axis.begin, axis.end, int(axis.width / 2) + 1)
        shares = network.history.utilization(network.capacity, edges)
        box = (axis.left, y, axis.width, height)
        self.canvas.frame(box, fill=_PALE, stroke=_GRID, radius=0)
        used = np.minimum(shares[link], 1.0)
        for hot, colour in ((False, LINE), (True, WARNING)):
            parts = np.where((used >= HOT) == hot, used, 0.0)
            self.canvas.area(_area(axis, edges, parts, y, height), colour)
        if mean:
            middles, heights = (edges[1:] + edges[:-1]) / 2, y + height * (1 - shares.mean(axis=0))
            line = "M" + "L".join(f"{axis.x(at):.1f} {h:.1f}" for at, h in zip(middles, heights, strict=True))
            for colour, wide in (("#FFFFFF", 2.4), (INK, 1.0)):
                self.canvas.line(line, arrow=False, stroke=colour, width=wide)


def _area(axis: Axis, edges: Floats, shares: Floats, y: float, height: float) -> str:
    """Return the outline of columns that stand on the bottom of a box."""
    bottom, commands, level = y + height, "", 0.0
    for begin, share in zip([*edges[:-1], edges[-1]], [*shares, 0.0], strict=True):
        if share == level:
            continue
        if not level:
            commands += f"M{axis.x(begin):.1f} {bottom:.1f}"
        else:
            commands += f"H{axis.x(begin):.1f}"
        commands += f"V{bottom - height * share:.1f}" + ("" if share else "Z")
        level = share
    return commands
