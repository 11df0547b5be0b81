"""Writes a drawing as SVG."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby
from typing import cast

from moe_placer.dag.drawing_items import FONT, Drawing, Item, Section, Stamp, Text, plain
from moe_placer.dag.palette import INK

__all__ = ["SvgWriter"]


class SvgWriter:
    """Writes a canvas as SVG: forms and stamps that recur once, and what looks alike in groups."""

    def __init__(self, canvas: Drawing) -> None:
        self.canvas = canvas
        self.stamps = Counter(item.items for item in canvas.items if isinstance(item, Stamp))
        self.names = {
            items: f"part{place}" for place, items in enumerate(stamp for stamp, n in self.stamps.items() if n > 1)
        }
        self.forms: dict[str, str] = {}
        self.arrows: dict[str, None] = {}

    def document(self) -> str:
        """Return the whole file."""
        canvas = self.canvas
        body = "".join(self.sections(canvas.items))
        stamps = [f'<g id="{name}">\n{self.write(items)}</g>\n' for items, name in self.names.items()]
        forms = [f'<path id="{name}" d="{path}"/>\n' for name, path in self.forms.items()]
        patterns = [
            f'<pattern id="{fill[5:-1]}" width="9" height="9" patternUnits="userSpaceOnUse">'
            f'<path d="M0 0H9V9H0Z" fill="{colour}"/>'
            f'<path d="{path}" stroke="{stripe}" stroke-width="2" opacity="0.6"/></pattern>\n'
            for fill, (colour, stripe, path) in canvas.hatches.items()
        ]
        heads = [
            f'<marker id="arrow-{colour[1:]}" markerWidth="7" markerHeight="7" viewBox="0 0 10 10" refX="9" refY="5" '
            f'orient="auto" markerUnits="userSpaceOnUse"><path d="M0 1L10 5L0 9Z" fill="{colour}"/></marker>\n'
            for colour in self.arrows
        ]
        wide, high = (f"{round(size, 1):.7g}" for size in (canvas.width, canvas.height))
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" '
            f'xmlns:xlink="http://www.w3.org/1999/xlink" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}" '
            f'font-family="{FONT}" fill="{INK}" role="img">\n<title>{_escaped(canvas.title)}</title>\n'
            f"<defs>\n{''.join([*heads, *patterns, *forms, *stamps])}</defs>\n"
            f'<rect id="paper" width="{wide}" height="{high}" fill="#FFFFFF"/>\n{body}</svg>\n'
        )

    def sections(self, items: Sequence[Item]) -> Iterator[str]:
        """Yield the drawing group by group."""
        starts = [place for place, item in enumerate(items) if isinstance(item, Section)]
        yield self.write(items[: starts[0]] if starts else items)
        for start, end in zip(starts, [*starts[1:], len(items)], strict=True):
            name = cast("Section", items[start]).name
            yield f'<g id="{name}">\n{self.write(items[start + 1 : end])}</g>\n'

    def write(self, items: Iterable[Item]) -> str:
        """Return items, those that look alike in a row within one element."""
        parts = []
        for key, run in groupby(items, key=self.attributes):
            parts.append(f"<g{key}>\n{''.join(map(self.element, run))}</g>\n")
        return "".join(parts)

    def attributes(self, item: Item) -> str:
        """Return what the items of a group have in common, as attributes."""
        if isinstance(item, Stamp | Section):
            return ""
        if isinstance(item, Text):
            kind = item.type
            text = f' font-size="{kind.size:g}"' + (f' text-anchor="{kind.anchor}"' if kind.anchor != "start" else "")
            halo = ' paint-order="stroke" stroke="#FFFFFF" stroke-width="2" stroke-opacity="0.7"'
            return text + (' font-weight="bold"' if kind.bold else "") + (halo if kind.halo else "")
        look = item.look
        text = f' fill="{look.fill}"' + (
            f' stroke="{look.stroke}" stroke-width="{look.width:g}"' if look.stroke != "none" else ""
        )
        text += (f' stroke-dasharray="{look.dash}"' if look.dash else "") + (
            f' opacity="{look.opacity:g}"' if look.opacity < 1 else ""
        )
        if not look.arrow:
            return text
        self.arrows[look.stroke] = None
        return text + f' marker-end="url(#arrow-{look.stroke[1:]})"'

    def element(self, item: Item) -> str:
        """Return one item."""
        if isinstance(item, Text):
            return f'<text x="{item.x:.7g}" y="{item.y:.7g}">{_escaped(item.text)}</text>\n'
        if isinstance(item, Stamp):
            if item.items in self.names:
                return f'<use xlink:href="#{self.names[item.items]}" x="{item.x:.7g}" y="{item.y:.7g}"/>\n'
            return f'<g transform="translate({item.x:.7g},{item.y:.7g})">\n{self.write(item.items)}</g>\n'
        if isinstance(item, Section):
            return ""
        tip = f"<title>{_escaped(item.tip)}</title>" if item.tip and self.canvas.tips else ""
        if item.form.name:
            self.forms[item.form.name] = item.form.path
            tag, shown = "use", f'xlink:href="#{item.form.name}" x="{item.x:.7g}" y="{item.y:.7g}"'
        elif item.form.radius is not None and item.form.box:
            _, _, wide, high = item.form.box
            rounded = f' rx="{item.form.radius:g}"' if item.form.radius else ""
            tag, shown = "rect", f'x="{item.x:.7g}" y="{item.y:.7g}" width="{wide:g}" height="{high:g}"{rounded}'
        else:
            moved = f' transform="translate({item.x:.7g},{item.y:.7g})"' if item.x or item.y else ""
            tag, shown = "path", f'd="{item.form.path}"{moved}'
        return f"<{tag} {shown}>{tip}</{tag}>\n" if tip else f"<{tag} {shown}/>\n"


def _escaped(text: str) -> str:
    return escape(plain(text), quote=False)
