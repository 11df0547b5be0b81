"""Writes a drafted instance as YAML with its comments."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import yaml

from moe_placer.engines.init.draft import Draft

__all__ = ["instance_text"]

_WIDTH = 120
_COMMENT_COLUMN = 42
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\ud7ff]+")


def instance_text(draft: Draft) -> str:
    """Return the instance file's content: fields in order, each with what it is from, and a list of assumptions."""
    lines = ["# Written by `moe-placer init`. What is not from a file or an option is assumed, and said to be."]
    for text in draft.head:
        lines += _wrapped(text, "# ")
    if draft.assumed:
        lines.append("# Not in the files, so check:")
        for text in draft.assumed:
            lines += _wrapped(text, "# - ")
    for section, value in draft.data.items():
        comment = draft.comments.get((section,), "")
        if not isinstance(value, dict):
            lines += _line(f"{section}: {_inline(value)}", comment)
            continue
        lines += _line(f"{section}:", comment)
        for key, inner in value.items():
            lines += _line(f"  {key}: {_inline(inner)}", draft.comments.get((section, key), ""))
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    """Write a value on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _line(text: str, comment: str) -> list[str]:
    """Put a comment beside a short line, and above a long one."""
    if not comment:
        return [text]
    beside = f"{text:<{_COMMENT_COLUMN}} # {_clean(comment)}"
    if len(beside) <= _WIDTH:
        return [beside]
    indent = text[: len(text) - len(text.lstrip())]
    return [*_wrapped(comment, f"{indent}# "), text]


def _wrapped(text: str, start: str) -> list[str]:
    rest = start[: len(start) - len(start.lstrip())] + "#" + " " * (len(start.lstrip()) - 1)
    return textwrap.wrap(
        _clean(text),
        _WIDTH,
        initial_indent=start,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _clean(text: str) -> str:
    """Keep what came from files from ending a comment."""
    return _UNPRINTABLE.sub(" ", text)
