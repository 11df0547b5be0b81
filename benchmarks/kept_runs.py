"""Rows of benchmarks: printed, or kept run by run with when and where they were measured, and a page made from all."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.checkouts import Checkout
from moe_placer.files import write_atomically

__all__ = ["Row", "describe_run", "keep_rows", "page_of_runs", "print_row"]

Row = dict[str, Any]


def describe_run(now: Checkout, before: Checkout | None) -> Row:
    """Return what all rows of a run that begins now have alike: when, of which commits, and on what machine."""
    from moe_placer.experiments.environment import describe_environment  # here: memory of children counts from ours

    environment = describe_environment()
    return {
        "run": datetime.now(UTC).isoformat(timespec="seconds"),
        "now": now.commit,
        "before": before.commit if before else None,
        "python": platform.python_version(),
        "machine": f"{environment['cpu']}, {environment['cores']} cores",
        "load": os.getloadavg()[0],
    }


def keep_rows(file: Path, rows: Iterable[Row], build_page: Callable[[Sequence[Row]], str]) -> Path:
    """Append rows to a file, and make the page of all that it has anew; return the page's path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = file.read_text() if file.exists() else ""
    text = kept + "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(file, text)
    page = file.parent / "README.md"
    write_atomically(page, build_page([json.loads(line) for line in text.splitlines()]))
    return page


def page_of_runs(head: str, rows: Sequence[Row], run: Callable[[list[Row]], Iterator[str]]) -> str:
    """Return a page in Markdown: its head, and what is said of each run below its commits and machine, the last first.

    Parameters
    ----------
    head : str
    rows : sequence of mapping
        As `keep_rows` has kept them.
    run : callable
        Yields the lines of a run from its rows.
    """
    lines = [head]
    for own in reversed([list(one) for _, one in groupby(rows, key=lambda row: row["run"])]):
        first = own[0]
        against = f" against {first['before']}" if first.get("before") else ""
        lines.append(f"## {first['run']}: {first['now']}{against}\n")
        lines.append(f"{first['machine']}, Python {first['python']}, load average {first['load']:.1f} at the start.\n")
        lines += run(own)
    return "\n".join(lines)


def print_row(**row: Any) -> None:
    """Print a row as a line of JSON, at once."""
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()
