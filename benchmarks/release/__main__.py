"""``python -m benchmarks.release --before COMMIT``: measure two commits and EPLB, append the rows, make the page."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.checkouts import REPOSITORY, earlier_checkout, this_checkout
from benchmarks.kept_runs import describe_run, keep_rows
from benchmarks.release.release_page import build_page
from benchmarks.release.release_rows import ENGINE_SOURCES, engine_row, solved_rows

__all__ = ["main"]

INSTANCES = ("tiny", "eplb-288", "h100-128", "dsv3-320")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=REPOSITORY / "reports" / "releases")
@click.option("--before", required=True, metavar="COMMIT", help="The release before: a tag or a commit.")
@click.option("--instance", "names", multiple=True, default=INSTANCES, show_default=True, help="Of instances/.")
@click.option("--repeat", default=2, show_default=True, type=click.IntRange(min=1), help="Runs of each.")
@click.option(
    "--engines",
    type=click.Path(path_type=Path),
    default=REPOSITORY / ".venv-engines",
    help="What `make engines` sets up; without it EPLB's own code is left out.",
)
def main(folder: Path, before: str, names: tuple[str, ...], repeat: int, engines: Path) -> None:
    """Measure this checkout, an earlier commit and SGLang's EPLB; append rows to FOLDER, and make its page."""
    files = [REPOSITORY / "instances" / f"{name}.yaml" for name in names]
    rows: list[dict[str, Any]] = []
    with earlier_checkout(before) as old, tempfile.TemporaryDirectory() as scratch:
        now = this_checkout()
        head = describe_run(now, old)
        for file in files:
            for checkout in (now, old):
                rows += solved_rows(checkout, [file], repeat, Path(scratch))
            if (engines / "sources" / ENGINE_SOURCES).is_dir():
                theirs = engine_row(file, engines, Path(scratch))
                rows += [] if theirs is None else [theirs]
            click.echo(f"{file.stem}: {len(rows)} rows so far", err=True)
    click.echo(keep_rows(folder / "results.jsonl", [head | row for row in rows], build_page))


if __name__ == "__main__":
    main()
