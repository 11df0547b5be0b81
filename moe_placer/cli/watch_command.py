"""``moe-placer watch``."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from moe_placer.cli import log
from moe_placer.cli.interrupts import StopRequest, listen
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import json_option, open_instance, work_option
from moe_placer.errors import UsageError, visible
from moe_placer.files import write_atomically

if TYPE_CHECKING:
    from moe_placer.cli.results.watching import WatchResult
    from moe_placer.replan.task import Minimise
    from moe_placer.watch.watcher import Watcher

__all__ = ["watch"]

_NAP_S = 0.2  # how long a signal may go unheeded

EXAMPLES = """
\b
Examples:
  moe-placer watch /recordings --instance instance.yaml --current placement.json -o /plans --max-moves 500
  moe-placer watch /recordings --instance instance.yaml -o /plans --once --metrics /metrics/placement.prom
"""


@click.command(epilog=EXAMPLES)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--instance", required=True, metavar="FILE", type=click.Path(path_type=Path), help="The instance.")
@click.option(
    "--current",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Placement that runs now; for the first start only.",
)
@click.option(
    "-o", "--output", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder of plans and journal."
)
@click.option("--once", is_flag=True, help="Read the folder once, then end.")
@click.option(
    "--interval", default=30.0, show_default=True, metavar="S", help="Seconds between two readings of the folder."
)
@click.option(
    "--settle", default=2.0, show_default=True, metavar="S", help="Seconds for which a recording must not have changed."
)
@click.option(
    "--steps", default=10_000.0, show_default=True, metavar="N", help="Steps for which a plan is expected to serve."
)
@click.option(
    "--factor",
    default=2.0,
    show_default=True,
    metavar="F",
    help="The gain over --steps must be F times the time of the transfers.",
)
@click.option(
    "--min-choices",
    default=50.0,
    show_default=True,
    metavar="N",
    help="Choices for each expert, on average, that a layer of a recording must have.",
)
@click.option("--max-moves", type=click.IntRange(min=0), metavar="N", help="Replicas that GPUs may load for one plan.")
@click.option("--max-bytes", type=float, metavar="B", help="Bytes of weights that may be transferred for one plan.")
@click.option("--minimise", type=click.Choice(["links", "gpus", "time"]), help="What is minimised, as for `replan`.")
@click.option("--time-limit", default=4.0, show_default=True, metavar="S", help="Seconds of search for one plan.")
@work_option
@click.option("--metrics", metavar="FILE", type=click.Path(path_type=Path), help="For Prometheus' textfile collector.")
@json_option
def watch(
    folder: Path,
    instance: Path,
    current: Path | None,
    output: Path,
    once: bool,
    interval: float,
    settle: float,
    steps: float,
    factor: float,
    min_choices: float,
    max_moves: int | None,
    max_bytes: float | None,
    minimise: Minimise | None,
    time_limit: float,
    work: float | None,
    metrics: Path | None,
    json_: bool,
) -> None:
    """Watch DIR for recordings, and replan when that pays; every plan keeps its number and its folder.

    A new recording, of any format that `import` reads, is planned for. The new plan is put in force where its gain over
    the steps that it is to serve exceeds the time of its transfers by a factor, or where GPUs are out of service.
    journal.jsonl says what was done and why; current.json names the last good plan, after a crash too. SIGHUP reads the
    instance anew and plans again for the newest recording, SIGTERM and Ctrl-C end after what is being done
    (docs/watching.md).
    """
    from moe_placer.limits import Limits
    from moe_placer.placement import load_placement
    from moe_placer.replan.budget import Budget
    from moe_placer.solve.folder import only_writer
    from moe_placer.watch.store import WatchStore
    from moe_placer.watch.watcher import Watcher, WatchPolicy

    if not 0 <= interval <= threading.TIMEOUT_MAX:
        raise UsageError(f"--interval is {interval:g} s, expected 0 or more")
    limits = Limits(time_s=time_limit, work=work)
    policy = WatchPolicy(steps, factor, settle, min_choices, Budget(max_moves, max_bytes), minimise, limits)
    given, first_plan = open_instance(instance, ()), None if current is None else load_placement(current)
    with only_writer(output), _hung_up() as again:
        watcher = Watcher(folder, WatchStore(output), given, policy)
        watcher.begin(first_plan)
        first = len(watcher.store.journal.entries)
        stop_request = listen("ends after what is being done")
        while True:
            if again.is_set():
                again.clear()
                _tell(watcher.reread(lambda: open_instance(instance, ())), json_)
            else:
                _tell(watcher.look(), json_)
            _write_metrics(watcher, metrics)
            if once or _wait(interval, stop_request, again):
                break
        if json_:
            click.echo(as_json(_content(watcher, first)))


@contextmanager
def _hung_up() -> Iterator[threading.Event]:
    """Give an event that SIGHUP sets; where this is not the main thread, nothing sets it."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGHUP, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGHUP, before)


def _wait(seconds: float, stop_request: StopRequest, again: threading.Event) -> bool:
    """Wait for the next look; return whether there is none, since somebody asked to end."""
    until = time.monotonic() + seconds
    while not stop_request() and not again.is_set() and (left := until - time.monotonic()) > 0:
        time.sleep(min(_NAP_S, left))
    return stop_request()


def _tell(entries: Sequence[dict[str, Any]], json_: bool) -> None:
    for entry in entries if not json_ else ():
        version = f" {entry['version']}" if entry["event"] == "plan" else ""
        moves = f", {entry['moves']:,} moves" if "moves" in entry else ""
        about = f"{entry.get('recording', 'instance')}: {entry['event']}{version}{moves}: {entry['reason']}"
        log.info(visible(about))  # whoever writes recordings chooses their names


def _write_metrics(watcher: Watcher, metrics: Path | None) -> None:
    from moe_placer.watch.prometheus import metrics_text

    if metrics is not None:
        write_atomically(metrics, metrics_text(watcher.store.journal.entries, watcher.clock()))


def _content(watcher: Watcher, first: int) -> WatchResult:
    from moe_placer.watch.store import PLACEMENT

    store = watcher.store
    content = {
        "schema": "moe-placer/watch/1",
        "version": store.version,
        "placement": str(store.plan_folder(store.version) / PLACEMENT),
        "entries": store.journal.entries[first:],
    }
    return cast("WatchResult", content)
