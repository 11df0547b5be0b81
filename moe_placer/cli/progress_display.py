"""Shows how far a solve is, on standard error: a live line for people, a line now and then for logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from moe_placer.cli import log

if TYPE_CHECKING:
    from moe_placer.solve.solve import Progress

__all__ = ["show_progress"]

_LOG_EVERY_S = 10.0


@contextmanager
def show_progress(name: str, time_limit: float, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Give a callback that shows progress, or None where nobody wants it."""
    if quiet:
        yield None
    elif log.is_live():
        with _live(name) as callback:
            yield callback
    else:
        log.info(f"{name}: solving, at most {time_limit:g} s", instance=name, time_limit_s=time_limit)
        yield _logger()


def _text(progress: Progress) -> str:
    gap = f"{progress.worst_gap:.2%}" if progress.worst_gap < 1 else "not known yet"
    what = "busiest links" if progress.minimise != "aggregate" else "busiest link over all layers"
    return (
        f"{progress.done}/{progress.layers} layers, {what} (cost) {progress.objective:,.0f}, "
        f"bound {progress.objective_bound:,.0f}, largest re-checkable gap {gap}, {progress.seconds_left:.0f} s left"
    )


def _figures(progress: Progress) -> dict[str, float]:
    """Return what logs in JSON have beside the text."""
    return {
        "layers_done": progress.done,
        "layers": progress.layers,
        "objective": progress.objective,
        "bound": progress.objective_bound,
        "gap": progress.worst_gap,
        "seconds_left": progress.seconds_left,
    }


def _logger() -> Callable[[Progress], None]:
    last = [0.0]

    def say(progress: Progress) -> None:
        if time.monotonic() - last[0] >= _LOG_EVERY_S:
            last[0] = time.monotonic()
            log.info(f"  {_text(progress)}", **_figures(progress))

    return say


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
