"""``python -m benchmarks.scale``: measure a layer from 128 to 4,096 GPUs, append the rows, make the page."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from benchmarks.checkouts import REPOSITORY, earlier_checkout, this_checkout
from benchmarks.kept_runs import describe_run, keep_rows
from benchmarks.scale.ladder import LAYERS, ladder_rows
from benchmarks.scale.scale_page import build_page

__all__ = ["main"]

SIZES = (128, 256, 512, 1024, 2048, 4096)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=REPOSITORY / "reports" / "scale")
@click.option(
    "--gpus", "sizes", multiple=True, type=click.IntRange(min=128), default=SIZES, show_default=True,
    help="Sizes to measure, multiples of 128; 8192 and 16384 take minutes and gigabytes.",
)  # fmt: skip
@click.option("--before", metavar="COMMIT", help="Measure an earlier commit or tag as well.")
@click.option("--layers", default=LAYERS, show_default=True, type=click.IntRange(min=1), help="Of each instance.")
@click.option("--time-limit", default=300.0, show_default=True, metavar="SECONDS", help="Of each solve.")
def main(folder: Path, sizes: tuple[int, ...], before: str | None, layers: int, time_limit: float) -> None:
    """Measure what a layer costs by the number of GPUs; append rows to FOLDER, and make its page."""
    file = folder / "rows.jsonl"
    with ExitStack() as stack:
        now = this_checkout()
        earlier = stack.enter_context(earlier_checkout(before)) if before else None
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        head = describe_run(now, earlier)
        for checkout in (now, *([earlier] if earlier else [])):
            for row in ladder_rows(checkout, sorted(sizes), scratch, time_limit, layers):
                keep_rows(file, [head | row], build_page)
                took = row.get("error") or f"{row['cpu_s']:.2f} CPU s"
                click.echo(f"{row['commit']} {row['family']}, {row['gpus']:,} GPUs: {took}", err=True)
    click.echo(folder / "README.md")


if __name__ == "__main__":
    main()
