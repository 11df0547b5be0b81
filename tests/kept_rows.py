"""What rows of benchmarks have alike, and the cells of pages made from them."""

from __future__ import annotations

from typing import Any

HEAD: dict[str, Any] = {
    "run": "2026-11-28T10:00:00+00:00",
    "now": "new",
    "before": "old",
    "python": "3.11.7",
    "machine": "m",
    "load": 0.1,
}


def cells(line: str) -> list[str]:
    """Return the texts of a table's line."""
    return [cell.strip() for cell in line.strip("|").split("|")]
