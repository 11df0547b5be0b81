"""The page of figures by release, from its rows alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import median

from benchmarks.kept_runs import Row, page_of_runs

__all__ = ["build_page"]

_HEAD = """# Figures by release

Fixed instances, solved by the default solver on one core (`--workers 1 --seed 0`) until it is within its gap of 0.1%,
by two commits and by SGLang's own EPLB in one run, on one machine. Every placement is measured by the newer commit: the
verifier's busiest links and GPUs, sums over layers, and a simulated step. The gap is over the best bound of the run
that the verifier derived anew. CPU is that of the process and its children, the median of the repetitions; of EPLB it
is the planner alone, without the start of torch. Ratios are over the newer commit: above 1, it is better.

`python -m benchmarks.release --before COMMIT` appends a run to `results.jsonl`, and makes this page anew.
"""
_COLUMNS = ("instance", "by", "CPU, s", "gap", "busiest links", "busiest GPUs", "step, ms")
_RATIOS = ("CPU", "links", "GPUs", "step")


def build_page(rows: Sequence[Row]) -> str:
    """Return the page in Markdown, the latest run first."""
    return page_of_runs(_HEAD, rows, _run)


def _run(rows: list[Row]) -> Iterator[str]:
    yield "| " + " | ".join((*_COLUMNS, *(f"{name}, ratio" for name in _RATIOS))) + " |"
    yield "|---|---|" + "---:|" * (len(_COLUMNS) - 2 + len(_RATIOS))
    for _, of_instance in groupby(rows, key=lambda row: row["instance"]):
        yield from _instance(list(of_instance), rows[0]["now"])
    yield ""


def _instance(rows: list[Row], now: str) -> Iterator[str]:
    bound = max((row["bound"] for row in rows if "bound" in row), default=0.0)
    of: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        of.setdefault((row["by"], row["commit"]), []).append(row)
    ours = next((_figures(runs) for (_, commit), runs in of.items() if commit == now), None)
    for (by, commit), runs in of.items():
        name = f"{by}, {commit}" if commit else by
        found = _figures(runs)
        if found is None:
            why = next(row["error"] for row in runs if "error" in row).split("\n")[0]
            yield f"| {runs[0]['instance']} | {name} | {why} |" + " |" * (len(_COLUMNS) - 3 + len(_RATIOS))
            continue
        cpu, links, gpus, step = found
        gap = f"{links / bound - 1:.3%}" if bound else ""
        ratios = [""] * 4 if ours is None else [f"{there / here:.3f}" for there, here in zip(found, ours, strict=True)]
        cells = (runs[0]["instance"], name, f"{cpu:.2f}", gap, f"{links:,.0f}", f"{gpus:,.0f}", f"{step / 1000:.2f}")
        yield "| " + " | ".join((*cells, *ratios)) + " |"


def _figures(rows: list[Row]) -> tuple[float, float, float, float] | None:
    good = [row for row in rows if "error" not in row]
    if not good:
        return None
    cpu, links, gpus, step = (
        median(row[key] for row in good) for key in ("cpu_s", "busiest_links", "busiest_gpus", "step_us")
    )
    return cpu, links, gpus, step
