"""Blocks of a page (headings, texts, tables, pictures), written as Markdown and as HTML alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TypeAlias

from moe_placer.experiments.markdown_table import markdown_table
from moe_placer.files import policy_hash

__all__ = ["Block", "Gallery", "Heading", "Items", "Picture", "Table", "Text", "to_html", "to_markdown"]


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; `code` and **bold** as in Markdown."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table whose first columns are texts, and the others numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1


@dataclass(frozen=True)
class Picture:
    """A drawing, in a file of its own beside the Markdown, and inside the HTML page."""

    file: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Gallery:
    """Drawings in files of their own, side by side: each file, its thumbnail, and what it shows."""

    drawings: tuple[tuple[str, str, str], ...]


Block: TypeAlias = Heading | Text | Items | Table | Picture | Gallery

_LONG = 30  # characters
_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1rem;color:#1a1a1a;background:#fff;
overflow-wrap:break-word}
h1{font-size:1.7rem;line-height:1.2}h2{font-size:1.3rem;margin-top:2.2rem;border-bottom:1px solid #d1d5db}
table{border-collapse:collapse;font-size:.9rem}th,td{padding:.3rem .6rem;border-bottom:1px solid #e5e7eb;
text-align:left;vertical-align:top}th{white-space:nowrap}th.n{white-space:normal}td.long{min-width:12rem}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto;margin:1rem 0}figure{margin:1rem 0;background:#fff;color:#1a1a1a;overflow-x:auto}
figure svg{max-width:100%;height:auto;min-width:40rem}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr));gap:1rem}
.gallery figure{border:1px solid #d1d5db;padding:.5rem;overflow:hidden}.gallery figcaption{overflow-wrap:anywhere}
.gallery img{width:100%;height:14rem;object-fit:contain;display:block}figcaption{font-size:.9rem;color:#4b5563}
code{font-size:.85em;background:#f3f4f6;padding:.1em .3em;border-radius:3px;overflow-wrap:anywhere}
nav a{margin-right:1rem;display:inline-block}
td code{overflow-wrap:normal}
td b.holds{color:#117733}td b.fails{color:#a33e00}td b.partly{color:#8a6d00}
@media(prefers-color-scheme:dark){body{color:#e5e7eb;background:#111827}code{background:#1f2937}h2,th,td{border-color:#374151}
figcaption{color:#9ca3af}td b.holds{color:#5fd38d}td b.fails{color:#ff9f66}td b.partly{color:#e3c34a}}
@media print{html{font-size:9px}body{max-width:none;font-size:1.2rem}.wide{overflow:visible}th{white-space:normal}
h2{break-after:avoid}tr,figure{break-inside:avoid}nav{display:none}
figure svg{min-width:0}.gallery figure:not(#simplified_moe_dag){display:none}
.gallery{display:block}.gallery img{height:auto}}
"""


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return the blocks as Markdown."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Items):
        return "\n".join(f"- {item}" for item in block.items)
    if isinstance(block, Table):
        rows = [[cell.replace("|", r"\|") for cell in row] for row in block.rows]
        return markdown_table(list(block.head), rows, block.texts)
    if isinstance(block, Gallery):
        return "\n\n".join(f"{shows}\n\n[![{shows}]({small})]({file})" for file, small, shows in block.drawings)
    return f"![{block.caption}]({block.file})"


def to_html(blocks: Sequence[Block], title: str) -> str:
    """Return the blocks as one page that needs no network and runs no program; a gallery is in files beside it."""
    sections = [block.text for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = " ".join(f'<a href="#{_anchor(text)}">{escape(text)}</a>' for text in sections)
    body = "\n".join(map(_html, blocks)).replace("</h1>", f"</h1>\n<nav>{links}</nav>", 1)
    policy = f"default-src 'none'; style-src {policy_hash(_STYLE)} 'unsafe-inline'; img-src data: 'self' file:"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _inline(text: str) -> str:
    """Write `code`, **bold** and [links](to) as HTML; everything else is text."""
    text = escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*(holds|fails|partly)([^*]*)\*\*", r'<b class="\1">\1\2</b>', text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)
    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", r'<a href="\2">\1</a>', text)


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f'<h{block.level} id="{_anchor(block.text)}">{_inline(block.text)}</h{block.level}>'
    if isinstance(block, Text):
        return f"<p>{_inline(block.text)}</p>"
    if isinstance(block, Items):
        return f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in block.items)}</ul>"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Gallery):
        return f'<div class="gallery">{"".join(_thumbnail(*drawing) for drawing in block.drawings)}</div>'
    svg = block.svg[block.svg.index("<svg") :]
    return f"<figure>{svg}<figcaption>{_inline(block.caption)}</figcaption></figure>"


def _thumbnail(file: str, small: str, shows: str) -> str:
    text, link = escape(shows), escape(file)
    return (
        f'<figure id="{Path(file).stem}"><a href="{link}"><img src="{escape(small)}" alt="{text}" loading="lazy"></a>'
        f'<figcaption>{text}: <a href="{link}">full size</a></figcaption></figure>'
    )


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        # What is long gets room, where a narrow screen would write a word a line.
        long = [' class="long"' if tag == "td" and len(cell) > _LONG else "" for cell in cells]
        kinds = [long[index] if index < table.texts else ' class="n"' for index in range(len(cells))]
        return f"<tr>{''.join(f'<{tag}{k}>{_inline(c)}</{tag}>' for k, c in zip(kinds, cells, strict=True))}</tr>"

    head, body = row(table.head, "th"), "".join(row(cells, "td") for cells in table.rows)
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
