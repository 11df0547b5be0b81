"""``moe-placer report``."""

from __future__ import annotations

from pathlib import Path

import click

from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import json_option, written_files

__all__ = ["report"]


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@json_option
def report(folder: Path, json_: bool) -> None:
    """Make the page (index.html) and README.md of a comparison in DIR.

    They are made from config.json, environment.json and results.jsonl in DIR alone, and the same rows give the same
    bytes. The page is one file that needs no network. Needs the extra: pip install 'moe-placer[report]'.

    \b
    Example:
      moe-placer report reports/2026-11-24-methods
    """  # noqa: D301 - click looks for the character \b, which a raw text would not hold
    from moe_placer.experiments.report import write_report

    files = write_report(folder)
    if json_:
        click.echo(as_json(written_files(files)))
        return
    for path in files:
        click.echo(path)
