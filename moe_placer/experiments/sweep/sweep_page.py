"""The page of a sweep: who is faster where, what fits, and every point; made from its rows and environment alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_placer.experiments.environment import environment_in_words
from moe_placer.experiments.markdown_table import markdown_table
from moe_placer.experiments.report.markdown import plain
from moe_placer.experiments.sweep.findings import AXES, answers, by, said, shares_in_percent, varied
from moe_placer.experiments.sweep.sweep_chart import caption, draw
from moe_placer.instance.sizes import GB

__all__ = ["build_page"]

Row = Mapping[str, Any]


def build_page(rows: Sequence[Row], environment: Mapping[str, Any], title: str, command: str = "") -> dict[str, str]:
    """Return file names and contents: README.md, and a picture for each sweep; the same input gives the same bytes.

    Parameters
    ----------
    rows : sequence of mapping
        Of `moe_placer.experiments.sweep.sweep.simulate_point`; ``sweep`` names the sweep that each belongs to.
    command : str
        What made it, to be run again.
    environment : mapping
        Machine and versions.
    title : str
        Heading of the page.
    """
    parts, files = [f"# {plain(title)}", _machine(environment), _plans(rows)], {}
    for number, ((name,), group) in enumerate(by(rows, "sweep").items(), 1):
        picture = f"sweep-{number}.svg"
        files[picture] = draw(group)
        said_of_it = "\n".join(f"- {plain(line[:1].upper() + line[1:])}" for line in answers(group))
        parts += [f"## {plain(name)}", said_of_it, f"![{plain(name)}: {caption(group)}]({picture})", _points(group)]
    parts.append(_HOW_TO_READ)
    if command:
        parts.append(f"## Run it again\n\n    {command}")
    return {"README.md": "\n\n".join(parts) + "\n", **files}


def _machine(environment: Mapping[str, Any]) -> str:
    return (
        f"{environment['points']} steps simulated in {environment['seconds']:,.0f} s with {environment['workers']} "
        f"workers; {environment_in_words(environment)}, {environment['date']}. Simulated times do not depend on the "
        "machine."
    )


def _plans(rows: Sequence[Row]) -> str:
    cells = []
    for (name,), group in by(rows, "plan").items():
        row = group[0]
        memory = f"{row['weights_bytes'] / GB:,.1f} of {row['memory_bytes'] / GB:,.1f}"
        cells.append(
            [plain(name), plain(row["instance"]), plain(row["placed_by"]), f"{row['gpus']:,}",
             f"{row['expert_parallelism']:,}", f"{row['slots_per_gpu']:,}", memory, f"{row['total_z']:,.0f}",
             _dispatch(row)]
        )  # fmt: skip
    head = ("plan", "instance", "solver", "GPUs", "EP degree", "slots per GPU", "weights, GB of a GPU's memory",
            "sum of busiest links, cost", "dispatch, ms")  # fmt: skip
    return f"## Plans\n\n{markdown_table(head, cells, 3)}"


def _dispatch(row: Row) -> str:
    us = row.get("dispatch_us")  # rows of older versions have none
    return "-" if us is None else f"{us / 1e3:,.2f}"


def _points(rows: Sequence[Row]) -> str:
    """Return a table of all points: a row for each workload, the plans side by side."""
    fields = varied(rows) or ["tokens_per_gpu"]
    names = [name for (name,) in by(rows, "plan")]
    cells = []
    for key, group in by(rows, *fields).items():
        mine = {row["plan"]: row for row in group}
        cell = [value if isinstance(value, str) else "-" if value is None else f"{value:,g}" for value in key]
        cell += [_step(mine[name]) if name in mine else "-" for name in names]
        cell += [f"{mine[name]['tokens_per_s_per_gpu']:,.0f}" if name in mine else "-" for name in names]
        cell += [shares_in_percent(mine[name]["shares"]) if name in mine else "-" for name in names]
        cell += [_memory(mine[name]) if name in mine else "-" for name in names]
        cells.append(cell)
    legend = ", ".join(f"{_letter(index)}: {plain(name)}" for index, name in enumerate(names))
    same = ", ".join(said(field, rows[0][field]) for field in ("phase", *AXES) if field not in fields)
    heads = [
        f"{what} {_letter(i)}"
        for what in ("step, ms,", "tokens/s per GPU,", "time, %,", "memory, GB,")
        for i, _ in enumerate(names)
    ]
    table = markdown_table(
        [field.replace("_", " ").replace("gpu", "GPU") for field in fields] + heads, cells, len(fields)
    )
    batches = rows[0]["micro_batches"]
    return f"All points of {legend}; {same}{', ' if same else ''}micro-batches: {batches}.\n\n{table}"


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"A{index}"


def _step(row: Row) -> str:
    return f"{row['latency_us'] / 1e3:,.2f}"


def _memory(row: Row) -> str:
    return f"{row['high_water_bytes'] / GB:,.1f}" + ("" if row["fits"] else " (does not fit)")


_HOW_TO_READ = """\
## How to read this

Cost is tokens at node-link speed (a token on a link of half a node's bandwidth costs 2), or plain tokens where an
instance has `metric: tokens`; dispatch is the time of the slowest link of each layer, one way, layers added up; both
are of the instance's own tokens and fabric. The step of a batch is simulated whether or not memory holds it: "does
not fit" says where it is no more than a step that could be. Times in % are of a mean GPU: computation, communication
that no computation hides, synchronization (waiting for others), overhead; the plan's estimate holds where each is
within 5 percentage points. In prefill tokens are of sequences that start; in decode each token continues a sequence
of its own, whose keys and values lie in memory. A crossing between two swept batches is interpolated, on logarithmic
axes. Steps are those of `moe-placer schedule` (docs/schedule.md): hardware as the instance describes it, links shared
max-min fairly."""
