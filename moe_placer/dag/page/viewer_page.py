"""Puts a page together: the drawing, its details, and the programs that show them, in one file."""

from __future__ import annotations

import base64
import gzip
import json
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from string import Template

from moe_placer.dag.canvas import Canvas
from moe_placer.dag.operation import Dag
from moe_placer.dag.page.details import details_of
from moe_placer.files import policy_hash

__all__ = ["to_page"]

# In this order they make one program: each uses only what stands before it.
_PROGRAMS = ("scene.js", "words.js", "search.js", "viewer.js", "panel.js", "main.js")


def to_page(dag: Dag, view: str, drawing: Canvas) -> str:
    """Return the HTML page of a drawing: self-contained, and the same bytes for the same input.

    Drawing and details are compressed and written in base64, and shown by the browser as text only: nothing that an
    instance states can become markup, and the page's content security policy runs no other program and loads nothing.
    """
    folder = files("moe_placer.dag.page")
    script, style = "\n".join(_read(folder, name) for name in _PROGRAMS), _read(folder, "page.css")
    places = {op.id: place for place, op in enumerate(dag.operations())}
    details = json.dumps(details_of(dag, view), separators=(",", ":"))
    return Template(_read(folder, "page.html")).substitute(
        title=escape(f"{dag.name}: {view}"),
        policy=f"default-src 'none'; script-src {policy_hash(script)}; style-src {policy_hash(style)}; img-src data:",
        style=style,
        script=script,
        drawing=_packed(json.dumps(drawing.scene(places), separators=(",", ":"))),
        details=_packed(details),
    )


def _read(folder: Traversable, name: str) -> str:
    return folder.joinpath(name).read_text(encoding="utf-8")


def _packed(text: str) -> str:
    # Without a time, so that the same text gives the same bytes.
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
