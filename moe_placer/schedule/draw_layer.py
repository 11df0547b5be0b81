"""Draws one layer: what every stream of some nodes does from its first operation to its last."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
import numpy.typing as npt

from moe_placer.dag.canvas import text_width
from moe_placer.errors import UsageError
from moe_placer.schedule.busiest_link import busiest_link, layer_link_times
from moe_placer.schedule.program import STREAMS
from moe_placer.schedule.simulate import Timeline
from moe_placer.schedule.time_canvas import MARGIN, PHASES, Axis, TimeCanvas, batch_letter, milliseconds, phase_of

__all__ = ["draw_layer"]

Floats = npt.NDArray[np.float64]

_WIDTH, _NAMES, _TOP = 1760.0, 176.0, 140.0
_PATH, _LANE, _GAP, _BAND = 16.0, 14.0, 10.0, 84.0
_COMPUTE = 48.0  # height of a node's compute lane
_NODES = 8  # shown at most
_LABELS = {"nvlink": "NVLink", "network": "network"}


def draw_layer(timeline: Timeline, placed_by: str, layer: int | None = None) -> str:
    """Return the SVG of a layer.

    Parameters
    ----------
    placed_by : str
        The solver of the placement, for the title.
    layer : int, optional
        Index in the model; by default the MoE layer that needs the busiest link longest, or that takes longest where
        no inter-node link carries anything.

    Raises
    ------
    UsageError
        There is no such layer.
    """
    layers = timeline.program.instance.model.layers
    if layer is not None and not 0 <= layer < layers:
        raise UsageError(f"there is no layer {layer}: {timeline.program.instance.name} has 0 to {layers - 1}")
    if layer is None:
        layer = _hottest_layer(timeline)
    return _Picture(timeline, placed_by, layer).draw()


def _hottest_layer(timeline: Timeline) -> int:
    moe = list(timeline.program.instance.moe_layers)
    needed = layer_link_times(timeline)[moe].max(axis=1, initial=0.0)
    if not needed.any():
        needed = np.array([np.ptp(_own_times(timeline, layer)) for layer in moe])
    return moe[int(needed.argmax())]


def _own_times(timeline: Timeline, layer: int) -> Floats:
    """Return starts and ends of a layer's operations, µs."""
    own = np.tile(timeline.program.layer == layer, timeline.durations.batches)
    return np.concatenate([timeline.start[own], timeline.end[own]])


class _Picture:
    def __init__(self, timeline: Timeline, placed_by: str, layer: int) -> None:
        self.timeline, self.layer = timeline, layer
        self.program = timeline.program
        self.per_node = self.program.instance.cluster.gpus_per_node
        self.tasks = [t for t in timeline.tasks().tolist() if timeline.end[t] > timeline.start[t]]
        own = [t for t in self.tasks if self._layer(t) == layer]
        times = _own_times(timeline, layer)
        begin, end = float(times.min()), float(times.max())
        self.axis = Axis(begin, end, MARGIN + _NAMES, _WIDTH - 2 * MARGIN - _NAMES)
        self.tasks = [t for t in self.tasks if self.axis.shows(timeline.start[t], timeline.end[t])]
        self.path = set(timeline.critical_path())
        self.nodes = self._busiest(own)
        self.link = busiest_link(timeline, layer)
        step = self._node_height() + _GAP
        self.rows = {node: _TOP + _PATH + 2 * _GAP + step * row for row, node in enumerate(self.nodes)}
        self.bottom = _TOP + _PATH + 2 * _GAP + step * len(self.nodes)
        height = self.bottom + (22 + _BAND + 22 if self.link is not None else 22) + MARGIN
        instance = self.program.instance
        title = f"{instance.name}, placed by {placed_by}: layer {layer}, {milliseconds(end - begin)}"
        title += f" of a step of {milliseconds(timeline.makespan)}"
        self.page = TimeCanvas(timeline, _WIDTH, height, title, self._note())

    def _layer(self, task: int) -> int:
        return int(self.program.layer[self.timeline.operation(task)])

    def _node_height(self) -> float:
        return _COMPUTE + 2 * _LANE

    def _busiest(self, own: list[int]) -> list[int]:
        """Nodes to show: those on the critical path in this layer, then those that compute longest, by their ids."""
        busy = np.zeros(self.program.instance.cluster.nodes)
        for task in own:
            for stream in self.program.streams(self.timeline.operation(task)):
                if stream % len(STREAMS) == 0:
                    busy[stream // len(STREAMS) // self.per_node] += self.timeline.end[task] - self.timeline.start[task]
        for task in own:
            if task in self.path:
                gpus = self.program.gpus[self.timeline.operation(task)]
                busy[[gpu // self.per_node for gpu in gpus]] += self.timeline.makespan * self.per_node
        return sorted(np.argsort(-busy, kind="stable")[:_NODES].tolist())

    def _note(self) -> str:
        total = self.program.instance.cluster.nodes
        shown = f"{len(self.nodes)} of {total} nodes: on the critical path, then busiest. " if total > _NODES else ""
        rows = f"Compute has a row for each of a node's {self.per_node} GPUs. " if self.per_node > 1 else ""
        links = "" if self.link is not None else " No inter-node link carries anything for this layer."
        return f"{shown}{rows}Pale: operations of other layers.{links} Point at a bar for details."

    def draw(self) -> str:
        """Draw the critical path, the nodes' lanes, and the busiest link under them."""
        page, canvas = self.page, self.page.canvas
        shown = {phase_of(self.program.kinds[self.timeline.operation(t)]) for t in self.tasks}
        page.legend(MARGIN + 74, shown, linked=self.link is not None, outlined=True)
        canvas.group("grid")
        foot = self.bottom + (6 + _BAND + 16 if self.link is not None else 0)
        page.draw_axis(self.axis, _TOP - 4, foot)
        canvas.group("path")
        canvas.text("critical path", MARGIN, _TOP + 12, 12, bold=True)
        page.draw_path(self.axis, _TOP, _PATH, words=True)
        canvas.group("nodes")
        for node, y in self.rows.items():
            self._name_rows(node, y)
        # What is on the critical path last, so that its outline is seen.
        for task in sorted(self.tasks, key=lambda t: t in self.path):
            self._draw_task(task)
        for task in self.tasks:
            self._name_task(task)
        if self.link is not None:
            self._draw_link(self.link)
        return canvas.svg()

    def _name_rows(self, node: int, y: float) -> None:
        canvas = self.page.canvas
        canvas.text(f"node {node}", MARGIN, y + 11, 12, bold=True)
        lanes = {"compute": f"{self.per_node} x compute" if self.per_node > 1 else "compute", **_LABELS}
        for stream, words in lanes.items():
            top, height = self._lane(y, STREAMS.index(stream))
            canvas.text(words, MARGIN + 78, top + height / 2 + 3.5, 10)
            canvas.frame((self.axis.left, top, self.axis.width, height), stroke="#D1D5DB", width=0.6, radius=0)

    def _lane(self, y: float, stream: int) -> tuple[float, float]:
        """Top and height of a node's lane."""
        return (y, _COMPUTE) if stream == 0 else (y + _COMPUTE + _LANE * (stream - 1), _LANE)

    def _places(self, task: int) -> Iterator[tuple[float, float]]:
        """Tops and heights of a task's bars: one for the GPUs of a node that are next to each other."""
        for _, run in groupby(
            enumerate(self.program.streams(self.timeline.operation(task))),
            key=lambda item: (item[1] // len(STREAMS) - item[0], item[1] // len(STREAMS) // self.per_node),
        ):
            streams = [stream for _, stream in run]
            node, first = divmod(streams[0] // len(STREAMS), self.per_node)
            if node in self.rows:
                top, height = self._lane(self.rows[node], streams[0] % len(STREAMS))
                row = height / self.per_node
                yield top + first * row, len(streams) * row

    def _draw_task(self, task: int) -> None:
        faint = self._layer(task) != self.layer
        for top, height in self._places(task):
            self.page.bar(self.axis, task, top, height, strong=task in self.path, faint=faint)

    def _name_task(self, task: int) -> None:
        phase = PHASES[phase_of(self.program.kinds[self.timeline.operation(task)])]
        name = f"{phase} {batch_letter(self.timeline, task)}".strip()
        other = "" if self._layer(task) == self.layer else f", layer {self._layer(task)}"
        if self._layer(task) < 0:
            other = ""
        left, right = self.axis.x(self.timeline.start[task]), self.axis.x(self.timeline.end[task])
        for top, height in self._places(task):
            if height >= 12:
                self.page.label([name + other, name], left, right, top + height / 2 + 3.5, 10)

    def _draw_link(self, link: int) -> None:
        canvas, y = self.page.canvas, self.bottom + 6
        canvas.group("link")
        self.page.draw_link(self.axis, link, y, _BAND, mean=True)
        name = self.timeline.network.links[link]
        size = min(12.0, (_NAMES - 36) / text_width(name, 1.0))
        canvas.text("busiest link", MARGIN, y + 14, 12, bold=True)
        canvas.text(name, MARGIN, y + 30, round(size - 0.05, 1))
        canvas.text("share in use", MARGIN, y + 46, 10)
        canvas.text("line: mean of all", MARGIN, y + 62, 10)
        for share in (0, 0.5, 1):
            canvas.text(f"{share:.0%}", self.axis.left - 30, y + _BAND * (1 - share) + 3, 9)
