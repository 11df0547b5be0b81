"""``moe-placer split``."""

from __future__ import annotations

from pathlib import Path

import click

from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import json_option, written_files

__all__ = ["split"]


@click.command()
@click.argument("traces", metavar="TRACE...", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--parts",
    default=2,
    show_default=True,
    metavar="N",
    type=click.IntRange(2, 1000),
    help="Files that each TRACE is split into.",
)
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    default=".",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder to write to.",
)
@json_option
def split(traces: tuple[Path, ...], parts: int, output: Path, json_: bool) -> None:
    """Split each TRACE, an .npz or a table of tokens, by sequences: to solve on one part and to measure on another.

    Sequence n goes to part n modulo --parts. Two parts are NAME_even.npz and NAME_odd.npz; more are numbered from 0.

    \b
    Example:
      moe-placer split intent.npz summary.npz -o parts
      moe-placer compare instances/dsv2-lite-128.yaml --trace parts/intent_even.npz --trace parts/summary_even.npz \\
        --held-out parts/intent_odd.npz --held-out parts/summary_odd.npz
    """  # noqa: D301 - click looks for the character \b, which a raw text would not hold
    from moe_placer.traffic.split import split_recording

    files = []
    for trace in traces:
        for path in split_recording(trace, output, parts):
            files.append(path)
            if not json_:
                click.echo(path)
    if json_:
        click.echo(as_json(written_files(files)))
