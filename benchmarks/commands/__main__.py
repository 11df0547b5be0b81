"""``python -m benchmarks.commands``: measure commands of this checkout and of an earlier commit, make the page."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks.commands.command_page import build_page
from benchmarks.commands.command_rows import CASES, command_rows
from benchmarks.release.checkouts import REPOSITORY, earlier_checkout, this_checkout
from moe_placer.experiments.environment import describe_environment
from moe_placer.files import write_atomically

__all__ = ["main"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=REPOSITORY / "reports" / "commands")
@click.option("--before", metavar="COMMIT", help="Measure an earlier commit or tag as well.")
@click.option("--instance", "names", multiple=True, help="Measure these instances only.  [all]")
def main(folder: Path, before: str | None, names: tuple[str, ...]) -> None:
    """Measure what commands cost on instances of three sizes; append rows to FOLDER, and make its page."""
    load, environment = os.getloadavg()[0], describe_environment()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.jsonl"
    with ExitStack() as stack:
        now = this_checkout()
        earlier = stack.enter_context(earlier_checkout(before)) if before else None
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        head = {
            "run": datetime.now(UTC).isoformat(timespec="seconds"),
            "now": now.commit,
            "before": earlier.commit if earlier else None,
            "python": platform.python_version(),
            "machine": f"{environment['cpu']}, {environment['cores']} cores",
            "load": load,
        }
        for row in command_rows(now, earlier, [case for case in CASES if not names or case.instance in names], scratch):
            text = (file.read_text() if file.exists() else "") + json.dumps(head | row) + "\n"
            write_atomically(file, text)
            write_atomically(folder / "README.md", build_page([json.loads(line) for line in text.splitlines()]))
            click.echo(f"{row['commit']} {row['instance']} {row['command']}: {row['cpu_s']:.2f} CPU s", err=True)
    click.echo(folder / "README.md")


if __name__ == "__main__":
    main()
