"""Parts of pages that are made when the site is built: the navigation, and the references of names and commands."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

from docutils import nodes
from library_page import library_page
from sphinx import addnodes
from sphinx.application import Sphinx
from tutorials import with_outputs

import moe_placer

INDEX = "docs/README"


def setup(app: Sphinx) -> dict[str, bool]:
    """Join Sphinx: what is made is appended to pages as they are read."""
    parts: dict[str, Callable[[], str]] = {
        INDEX: lambda: navigation(Path(app.srcdir)),
        "docs/api": public_names,
        "docs/commands": commands,
        "docs/library": lambda: library_page(Path(app.srcdir)),
    }

    def append(_app: Sphinx, page: str, source: list[str]) -> None:
        if page in parts:
            source[0] += "\n" + parts[page]()
        if page.startswith("docs/tutorial-"):
            source[0] = with_outputs(source[0], Path(app.srcdir).resolve())

    app.connect("source-read", append)
    app.connect("doctree-read", leave_words)
    return {"parallel_read_safe": True}


def leave_words(_app: Sphinx, page: nodes.document) -> None:
    """Leave words in types of arrays, such as [layers, experts], as text: they name no attribute of those names."""
    for found in list(page.findall(addnodes.pending_xref)):
        target = found["reftarget"]
        if (found.get("refdomain"), found.get("reftype")) == ("py", "class") and target.islower() and "." not in target:
            found.replace_self(found.children)


def navigation(root: Path) -> str:
    """Return the index's tables as trees of pages, so that its order is the order of the sidebar; then all reports."""
    text = (root / f"{INDEX}.md").read_text()
    trees = []
    for caption, table in re.findall(r"^\*\*(.+)\*\*\n\n((?:\|.*\n)+)", text, re.MULTILINE):
        trees.append(_tree(caption, [f"/docs/{page}" for page in re.findall(r"\]\((.+?)\.md\)", table)]))
    reports = sorted((root / "reports").glob("*/README.md"), reverse=True)
    trees.append(_tree("Measurements", [f"/{path.relative_to(root).with_suffix('')}" for path in reports]))
    trees.append(_tree("Project", ["/README", "/CHANGELOG", "/CONTRIBUTING"]))
    return "\n".join(trees)


def _tree(caption: str, pages: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def public_names() -> str:
    """Return the reference of everything that `import moe_placer` offers: functions, classes, errors."""
    groups: dict[str, list[str]] = {"Functions": [], "Classes": [], "Errors": []}
    for name in moe_placer.__all__:
        value = getattr(moe_placer, name)
        if inspect.isclass(value) and issubclass(value, Exception):
            groups["Errors"].append(f".. autoexception:: moe_placer.{name}\n   :show-inheritance:\n")
        elif inspect.isclass(value):
            groups["Classes"].append(f".. autoclass:: moe_placer.{name}\n   :members:\n")
        elif callable(value):
            groups["Functions"].append(f".. autofunction:: moe_placer.{name}\n")
    return "\n".join(f"## {title}\n\n{_rst(blocks)}" for title, blocks in groups.items())


def commands() -> str:
    """Return the reference of all commands with their options, from the commands themselves."""
    return _rst([".. click:: moe_placer.cli.commands:cli\n   :prog: moe-placer\n   :nested: full\n"])


def _rst(blocks: list[str]) -> str:
    return "\n".join(["```{eval-rst}", *blocks, "```", ""])
