"""Shows how far a solve is, on standard error: a live line for people, a line now and then for logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_placer.solve.solve import Progress

__all__ = ["show_progress"]

_LOG_EVERY_S = 10.0


@contextmanager
def show_progress(name: str, time_limit: float, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Give a callback that shows progress, or None where nobody wants it."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _live(name) as callback:
            yield callback
    else:
        sys.stderr.write(f"{name}: solving, at most {time_limit:g} s\n")
        yield _logger()


def _text(progress: Progress) -> str:
    gap = f"{progress.worst_gap:.2%}" if progress.worst_gap < 1 else "not known yet"
    what = "worst links" if progress.minimise == "layers" else "hottest link over all layers"
    return (
        f"{progress.done}/{progress.layers} layers, {what} (cost) {progress.objective:,.0f}, "
        f"bound {progress.objective_bound:,.0f}, largest re-checkable gap {gap}, {progress.seconds_left:.0f} s left"
    )


def _logger() -> Callable[[Progress], None]:
    last = [0.0]

    def log(progress: Progress) -> None:
        if time.monotonic() - last[0] >= _LOG_EVERY_S:
            last[0] = time.monotonic()
            sys.stderr.write(f"  {_text(progress)}\n")

    return log


@contextmanager
def _live(name: str) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console  # only where somebody watches
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    name_of = TextColumn("{task.fields[instance]}", markup=False)  # a name may have brackets and braces
    columns = (SpinnerColumn(), name_of, BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None, instance=name)
        yield lambda progress: bar.update(
            task, description=_text(progress), total=progress.layers, completed=progress.done
        )
