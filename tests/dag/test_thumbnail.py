"""Drawings painted small: what stands where, in which colour, as a PNG that anybody can read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dag_examples import example

from moe_placer.dag import VIEWS, write_dags
from moe_placer.dag.canvas import Canvas
from moe_placer.dag.thumbnail import to_thumbnail

BLUE, RED = "#3366CC", "#CC3333"


def decoded(png: bytes) -> Any:
    """Read a PNG with a palette, as its specification says; return red, green and blue by row and column."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + data),)
        chunks[kind] = data
        at += 12 + length
    width, height, bits, colours, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (bits, colours, *rest) == (8, 3, 0, 0, 0)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return np.frombuffer(chunks[b"PLTE"], dtype=np.uint8).reshape(-1, 3)[rows[:, 1:]]


def parts_of(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def test_shapes_and_lines_are_where_they_are_drawn() -> None:
    canvas = Canvas(400, 200, "made up")
    canvas.symbol("computation", (40, 40, 80, 40), [], fill=BLUE)
    canvas.symbol("communication", (240, 40, 80, 80), [], fill=RED)
    canvas.line("M40 160h320", stroke=BLUE, width=8, arrow=False)
    pixels = decoded(to_thumbnail(canvas, 200, 200))
    assert pixels.shape == (100, 200, 3)
    for row, column, colour in [(30, 40, BLUE), (40, 140, RED)]:
        assert pixels[row, column] == pytest.approx(parts_of(colour), abs=40), (row, column)
    line = pixels[80, 100].astype(int)  # half as wide as a pixel that is shown
    assert line == pytest.approx([(255 + part) // 2 for part in parts_of(BLUE)], abs=10)
    for row, column in [(10, 10), (22, 122), (70, 100), (80, 10)]:  # beside all, at the corner of the ellipse's box
        assert (pixels[row, column] > 235).all(), (row, column)


def test_what_has_more_colours_than_a_palette_keeps_to_the_nearest() -> None:
    canvas = Canvas(480, 300, "many colours")
    for index in range(600):
        colour = f"#{index * 7 % 256:02X}{index * 13 % 256:02X}{index * 29 % 256:02X}"
        canvas.frame((index % 30 * 16, index // 30 * 15, 16, 15), fill=colour, stroke="none", radius=0)
    pixels = decoded(to_thumbnail(canvas)).astype(int)
    for index in (0, 17, 599):
        wanted = [index * 7 % 256, index * 13 % 256, index * 29 % 256]
        assert abs(pixels[index // 30 * 15 + 7, index % 30 * 16 + 8] - wanted).max() < 50


@pytest.mark.parametrize("view", VIEWS)
def test_a_thumbnail_beside_a_large_drawing_is_small_and_the_same_again(
    view: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_placer.dag.drawing_files._SMALL_SVG_BYTES", 1000)
    paths = {path.suffix: path for path in write_dags(*example(), tmp_path, [view], thumbnails=True)}
    png = paths[".png"].read_bytes()
    assert decoded(png).reshape(-1, 3).std() > 5  # there is something on it
    assert len(png) < 20_000
    assert png == to_thumbnail(VIEWS[view].draw(VIEWS[view].build(*example())))
    assert "<title>L" not in paths[".svg"].read_text()


def test_small_drawings_have_tooltips_and_no_thumbnail(tmp_path: Path) -> None:
    paths = {path.suffix: path for path in write_dags(*example(), tmp_path, ["simplified_moe_dag"], thumbnails=True)}
    assert ".png" not in paths
    assert "<title>" in paths[".svg"].read_text()
