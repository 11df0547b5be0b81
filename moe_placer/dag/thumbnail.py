"""Paints a drawing small, as a PNG: shapes and lines without texts, for pages that show where the full size is."""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from moe_placer.dag.canvas import Canvas
from moe_placer.dag.drawing_items import Item, Look, Shape, Stamp

__all__ = ["to_thumbnail"]

_FINE = 2  # pixels painted for one that is shown, in each direction
_FAINTEST = 0.06  # least opacity of a line, however thin
_COLOURS = 256
_OPERANDS = {"m": 2, "l": 2, "h": 1, "v": 1, "c": 6, "a": 7, "z": 0}
_COMMAND = re.compile(r"([a-zA-Z])([^a-zA-Z]*)")
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)")

Point: TypeAlias = tuple[float, float]
Pixels: TypeAlias = npt.NDArray[np.float32]


def to_thumbnail(canvas: Canvas, width: int = 480, height: int = 300) -> bytes:
    """Return a PNG of a drawing that fits into so many pixels: the same bytes for the same drawing and zlib."""
    scale = min(width / canvas.width, height / canvas.height)
    size = max(1, round(canvas.height * scale)), max(1, round(canvas.width * scale))
    painter = _Painter(canvas, scale * _FINE, (size[0] * _FINE, size[1] * _FINE))
    painter.paint(canvas.items, 0.0, 0.0)
    shown = painter.pixels.reshape(size[0], _FINE, size[1], _FINE, 3).mean(axis=(1, 3))
    return _png(*_reduced(shown))


class _Painter:
    """A sheet of white pixels, and what is painted on it in drawing order."""

    def __init__(self, canvas: Canvas, scale: float, size: tuple[int, int]) -> None:
        self.canvas, self.scale = canvas, scale
        self.pixels: Pixels = np.full((*size, 3), 255, dtype=np.float32)
        self._colours: dict[str, Pixels] = {}
        self._paths: dict[str, list[list[Point]]] = {}

    def paint(self, items: Iterable[Item], dx: float, dy: float) -> None:
        """Paint items moved by (dx, dy); texts are too small to be read, and left out."""
        for item in items:
            if isinstance(item, Stamp):
                self.paint(item.items, dx + item.x, dy + item.y)
            elif isinstance(item, Shape):
                self._shape(item, dx + item.x, dy + item.y)

    def _shape(self, shape: Shape, x: float, y: float) -> None:
        form, look = shape.form, shape.look
        if form.box is not None and look.fill != "none":
            left, top, right, bottom = form.box
            self._symbol((x + left, y + top, x + right, y + bottom), look, round_="A" in form.path)
        elif look.stroke != "none":
            if form.path not in self._paths:
                self._paths[form.path] = list(_corners(form.path))
            for corners in self._paths[form.path]:
                self._line([(x + px, y + py) for px, py in corners], look)

    def _symbol(self, box: tuple[float, float, float, float], look: Look, round_: bool) -> None:
        """Fill a rectangle, or the ellipse in it, at least one pixel wide and high, inside its outline if any."""
        left, top = int(box[0] * self.scale), int(box[1] * self.scale)
        right, bottom = max(left + 1, round(box[2] * self.scale)), max(top + 1, round(box[3] * self.scale))
        part = self.pixels[max(top, 0) : bottom, max(left, 0) : right]
        if look.stroke != "none" and min(part.shape[:2]) > _FINE:
            _fill(part, self._colour(look.stroke), look.opacity * self._visible(look.width), round_)
            part = part[1:-1, 1:-1]
        _fill(part, self._colour(look.fill), look.opacity, round_)

    def _visible(self, width: float) -> float:
        """Return the opacity of a pixel through which a line of some width goes."""
        return min(1.0, max(_FAINTEST, width * self.scale))

    def _line(self, corners: list[Point], look: Look) -> None:
        """Draw a line a pixel wide, the fainter the thinner it is."""
        opacity, colour = look.opacity * self._visible(look.width), self._colour(look.stroke)
        last_x, last_y = self.pixels.shape[1] - 1, self.pixels.shape[0] - 1
        places = [(min(max(x * self.scale, 0), last_x), min(max(y * self.scale, 0), last_y)) for x, y in corners]
        for (ax, ay), (bx, by) in itertools.pairwise(places):
            if int(ax) == int(bx) or int(ay) == int(by):
                (left, right), (top, bottom) = sorted((int(ax), int(bx))), sorted((int(ay), int(by)))
                _fill(self.pixels[top : bottom + 1, left : right + 1], colour, opacity)
                continue
            steps = int(max(abs(bx - ax), abs(by - ay))) + 1
            rows, columns = np.linspace(ay, by, steps).astype(int), np.linspace(ax, bx, steps).astype(int)
            self.pixels[rows, columns] += opacity * (colour - self.pixels[rows, columns])

    def _colour(self, name: str) -> Pixels:
        if name not in self._colours:
            plain = self.canvas.hatches[name][0] if name in self.canvas.hatches else name
            self._colours[name] = np.array([int(plain[at : at + 2], 16) for at in (1, 3, 5)], dtype=np.float32)
        return self._colours[name]


def _fill(part: Pixels, colour: Pixels, opacity: float, round_: bool = False) -> None:
    """Blend a colour over pixels: over all, or over the largest ellipse among them."""
    if not round_ or min(part.shape[:2]) <= _FINE:
        part += opacity * (colour - part)
        return
    high, wide = (np.linspace(-1, 1, 2 * n + 1)[1::2] for n in part.shape[:2])
    inside = (high[:, None] ** 2 + wide[None, :] ** 2 <= 1)[..., None]
    part += opacity * inside * (colour - part)


def _corners(path: str) -> Iterator[list[Point]]:
    """Yield the corners of every line of SVG path data; curves and arcs are straight from end to end."""
    x = y = 0.0
    line: list[Point] = []
    for letter, text in _COMMAND.findall(path):
        key, numbers = letter.lower(), [float(number) for number in _NUMBER.findall(text)]
        count = _OPERANDS[key]
        if key == "z" and line:
            line.append(line[0])
            x, y = line[0]
        for at in range(0, len(numbers), count or 1):
            base_x, base_y = (x, y) if letter == key else (0.0, 0.0)
            last = numbers[at : at + count]
            if key == "h":
                x = base_x + last[0]
            elif key == "v":
                y = base_y + last[0]
            else:
                x, y = base_x + last[-2], base_y + last[-1]
            if key == "m" and at == 0:
                if len(line) > 1:
                    yield line
                line = []
            line.append((x, y))
    if len(line) > 1:
        yield line


def _reduced(shown: Pixels) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return pixels as places in a palette, and the palette: the most frequent of 4,096 colours."""
    coarse = (np.round(shown / 17)).astype(np.int64)  # four bits a channel
    keys, places, counts = np.unique(coarse @ np.array([256, 16, 1]), return_inverse=True, return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[:_COLOURS])
    colours = np.stack([keys >> 8, keys >> 4 & 15, keys & 15], axis=1)
    away: Any = ((colours[:, None, :] - colours[kept][None, :, :]) ** 2).sum(axis=2)
    palette = (colours[kept] * 17).astype(np.uint8)
    return away.argmin(axis=1)[places].reshape(shown.shape[:2]).astype(np.uint8), palette


def _png(pixels: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> bytes:
    """Write pixels with a palette as PNG (W3C, 2003): a byte a pixel, rows without a filter."""
    height, width = pixels.shape
    rows = np.zeros((height, width + 1), dtype=np.uint8)
    rows[:, 1:] = pixels
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette.tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    written = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)
