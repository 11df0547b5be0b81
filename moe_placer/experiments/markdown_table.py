"""A table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["markdown_table"]


def markdown_table(head: Sequence[str], cells: Sequence[Sequence[str]], texts: int = 0) -> str:
    """Return a table whose first columns are ``texts``, and all others numbers."""
    rule = "|---" * texts + "|---:" * (len(head) - texts) + "|"
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in cells)])
