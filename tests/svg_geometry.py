"""Where texts and symbols of an SVG really are, measured from the file alone."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ADVANCE = 0.6021  # of DejaVu Sans Mono, the widest of the fonts asked for, in em
ASCENT, DESCENT = 0.76, 0.24  # of its brackets and lower parts of letters
SLACK = 0.15  # pixels lost to rounding coordinates
CELL = 60.0


@dataclass(frozen=True)
class Area:
    """A rectangle, and what is in it: a text, or the shape of a symbol."""

    left: float
    top: float
    right: float
    bottom: float
    what: str

    def meets(self, other: Area) -> bool:
        return (
            self.left < other.right - SLACK
            and other.left < self.right - SLACK
            and self.top < other.bottom - SLACK
            and other.top < self.bottom - SLACK
        )

    def holds_point(self, x: float, y: float) -> bool:
        """Whether the symbol's shape covers a point."""
        if not (self.left - SLACK <= x <= self.right + SLACK and self.top - SLACK <= y <= self.bottom + SLACK):
            return False
        width, height = self.right - self.left, self.bottom - self.top
        if self.what.startswith("communication"):
            across, down = (x - self.left) / width * 2 - 1, (y - self.top) / height * 2 - 1
            return across * across + down * down <= 1 + SLACK / 4
        if self.what.startswith("routing"):
            lean = 7.0
            down = (y - self.top) / height
            return self.left + lean * (1 - down) - SLACK <= x <= self.right - lean * down + SLACK
        return True

    def corners(self) -> list[tuple[float, float]]:
        return [(x, y) for x in (self.left, self.right) for y in (self.top, self.bottom)]


def inherited(root: ET.Element) -> ET.Element:
    """Give every element the attributes that it has from the groups around it, but their ids and places."""
    for child in root:
        if root.tag.endswith("}g"):
            for name in root.attrib.keys() - {"id", "transform"}:
                child.attrib.setdefault(name, root.attrib[name])
        inherited(child)
    return root


@dataclass(frozen=True)
class Picture:
    page: Area
    texts: list[Area]
    symbols: list[Area]


def measure(path: Path) -> Picture:
    """Read texts and symbols with their absolute positions."""
    root = ET.parse(path).getroot()
    x, y, width, height = map(float, root.attrib["viewBox"].split())
    texts: list[Area] = []
    symbols: list[Area] = []
    sizes = {}
    for element in root.iter():
        match = re.fullmatch(r"(?:computation|communication|routing)-([\d.]+)-([\d.]+)", element.get("id", ""))
        if match:
            sizes["#" + element.attrib["id"]] = tuple(map(float, match.groups()))
    shared = {"#" + element.attrib["id"]: element for element in root.iter() if "id" in element.attrib}
    _walk(root, 0.0, 0.0, {}, texts, symbols, sizes, shared)
    return Picture(Area(x, y, x + width, y + height, "page"), texts, symbols)


def _walk(element, dx, dy, style, texts, symbols, sizes, shared) -> None:  # type: ignore[no-untyped-def]
    tag = element.tag.rpartition("}")[2]
    if tag == "defs":
        return
    if "transform" in element.attrib:
        move = re.fullmatch(r"translate\(([-\d.]+)[ ,]([-\d.]+)\)", element.attrib["transform"])
        assert move, f"a transform that the test cannot follow: {element.attrib['transform']}"
        dx, dy = dx + float(move[1]), dy + float(move[2])
    style = {**style, **{key: element.attrib[key] for key in ("font-size", "text-anchor") if key in element.attrib}}
    if tag == "text":
        size = float(style["font-size"])
        at, base = dx + float(element.get("x", 0)), dy + float(element.get("y", 0))
        width = len(element.text or "") * ADVANCE * size
        left = at - width / 2 if style.get("text-anchor") == "middle" else at
        texts.append(Area(left, base - ASCENT * size, left + width, base + DESCENT * size, element.text or ""))
    elif tag == "use":
        name = element.get("{http://www.w3.org/1999/xlink}href") or element.get("href")
        if name in sizes:
            left, top = dx + float(element.get("x", 0)), dy + float(element.get("y", 0))
            symbols.append(Area(left, top, left + sizes[name][0], top + sizes[name][1], name[1:]))
        else:
            at = dx + float(element.get("x", 0)), dy + float(element.get("y", 0))
            _walk(shared[name], *at, style, texts, symbols, sizes, shared)
    for child in element:
        _walk(child, dx, dy, style, texts, symbols, sizes, shared)


def overlapping_texts(picture: Picture) -> Iterator[tuple[Area, Area]]:
    """Pairs of texts that cover each other."""
    cells: dict[tuple[int, int], list[Area]] = defaultdict(list)
    for text in picture.texts:
        for cell in _cells(text):
            cells[cell].append(text)
    seen: set[tuple[int, int]] = set()
    for members in cells.values():
        for index, a in enumerate(members):
            for b in members[index + 1 :]:
                if a.meets(b) and (id(a), id(b)) not in seen:
                    seen.add((id(a), id(b)))
                    yield a, b


def escaping_texts(picture: Picture) -> Iterator[tuple[Area, Area]]:
    """Texts that are partly inside a symbol and partly not, or partly off the page."""
    cells: dict[tuple[int, int], list[Area]] = defaultdict(list)
    for symbol in picture.symbols:
        for cell in _cells(symbol):
            cells[cell].append(symbol)
    for text in picture.texts:
        if not all(picture.page.holds_point(*corner) for corner in text.corners()):
            yield text, picture.page
        near = {id(symbol): symbol for cell in _cells(text) for symbol in cells.get(cell, [])}
        for symbol in near.values():
            if not symbol.meets(text):
                continue
            inside = [symbol.holds_point(*corner) for corner in text.corners()]
            centre = symbol.holds_point((text.left + text.right) / 2, (text.top + text.bottom) / 2)
            if (any(inside) or centre) and not all(inside):
                yield text, symbol


def _cells(area: Area) -> Iterator[tuple[int, int]]:
    for column in range(int(area.left // CELL), int(area.right // CELL) + 1):
        for row in range(int(area.top // CELL), int(area.bottom // CELL) + 1):
            yield column, row
