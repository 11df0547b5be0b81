"""The page of what commands cost, from its rows alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from benchmarks.kept_runs import Row, page_of_runs
from moe_placer.experiments.markdown_table import markdown_table

__all__ = ["build_page"]

_HEAD = """# What commands cost

CPU seconds of a whole command, with the start of the program, on one core, in a process of its own: this checkout's,
and an earlier commit's after it in the same run. Memory is the peak of its largest process. Both commits check and
simulate the placement that the newer one has found. A dash: not measured, since it took minutes then, or did not end.

`python -m benchmarks.commands --before COMMIT` appends a run to `rows.jsonl`, and makes this page anew.
"""
_COLUMNS = ("instance", "command", "before, CPU s", "now, CPU s", "before / now", "memory now, MB", "before", "now")


def build_page(rows: Sequence[Row]) -> str:
    """Return the page in Markdown, the latest run first."""
    return page_of_runs(_HEAD, rows, _run)


def _run(rows: list[Row]) -> Iterator[str]:
    first, lines = rows[0], []
    for (instance, command), own in groupby(rows, key=lambda row: (row["instance"], row["command"])):
        by_commit = {row["commit"]: row for row in own}
        now, before = by_commit.get(first["now"]), by_commit.get(first["before"])
        ratio = f"{before['cpu_s'] / now['cpu_s']:.1f}" if now and before and not now["exit"] | before["exit"] else "-"
        memory = f"{now['peak_bytes'] / 1e6:,.0f}" if now else "-"
        lines.append(
            [instance, f"`{command}`", _seconds(before), _seconds(now), ratio, memory, _said(before), _said(now)]
        )
    yield markdown_table(_COLUMNS, lines)
    yield ""


def _seconds(row: Row | None) -> str:
    return "-" if row is None else f"{row['cpu_s']:,.2f}"


def _said(row: Row | None) -> str:
    """Say what came out: gaps of a solve, the length of a step, or how it failed."""
    if row is None:
        return "-"
    if row["exit"]:
        return f"exit {row['exit']}"
    if "step_us" in row:
        return f"step {row['step_us'] / 1e3:,.2f} ms"
    if "ok" in row:
        return "valid" if row["ok"] else "refused"
    if row["median_gap"] is None:
        return f"cost {row['z']:,.0f}"
    return f"cost {row['z']:,.0f}, gap {row['median_gap']:.3%} median, {row['largest_gap']:.3%} largest"
