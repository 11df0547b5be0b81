"""``python -m benchmarks.commands``: measure commands of this checkout and of an earlier commit, make the page."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from benchmarks.checkouts import REPOSITORY, earlier_checkout, this_checkout
from benchmarks.commands.command_page import build_page
from benchmarks.commands.command_rows import CASES, command_rows
from benchmarks.kept_runs import describe_run, keep_rows

__all__ = ["main"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=REPOSITORY / "reports" / "commands")
@click.option("--before", metavar="COMMIT", help="Measure an earlier commit or tag as well.")
@click.option("--instance", "names", multiple=True, help="Measure these instances only.  [all]")
def main(folder: Path, before: str | None, names: tuple[str, ...]) -> None:
    """Measure what commands cost on instances of three sizes; append rows to FOLDER, and make its page."""
    file = folder / "rows.jsonl"
    cases = [case for case in CASES if not names or case.instance in names]
    with ExitStack() as stack:
        now = this_checkout()
        earlier = stack.enter_context(earlier_checkout(before)) if before else None
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        head = describe_run(now, earlier)
        for row in command_rows(now, earlier, cases, scratch):
            keep_rows(file, [head | row], build_page)
            click.echo(f"{row['commit']} {row['instance']} {row['command']}: {row['cpu_s']:.2f} CPU s", err=True)
    click.echo(folder / "README.md")


if __name__ == "__main__":
    main()
