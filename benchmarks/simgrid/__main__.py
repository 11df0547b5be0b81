"""``python -m benchmarks.simgrid FOLDER``: compare our network with SimGrid, and write a report."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from benchmarks.simgrid.cases import Settings, open_instance, rows_of
from benchmarks.simgrid.cross_check_page import build_page
from benchmarks.simgrid.run_simgrid import require_simgrid
from moe_placer.errors import InputError, Mistake, MoePlacerError
from moe_placer.experiments.environment import describe_environment
from moe_placer.files import read_bounded, write_atomically

__all__ = ["main"]

_MOST_BYTES = 100_000_000


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--page", "page_only", is_flag=True, help="Only make the page anew, from the rows that are there.")
def main(folder: Path, page_only: bool) -> None:
    """Run what FOLDER/config.json asks for in SimGrid, and write the rows, the environment and the page beside it."""
    try:
        if not page_only:
            _measure(folder)
        _write_page(folder)
    except MoePlacerError as error:
        raise click.ClickException(str(error)) from None


def _measure(folder: Path) -> None:
    settings = _settings(folder / "config.json")
    require_simgrid()
    environment = describe_environment()
    environment["versions"]["simgrid"] = version("simgrid")
    rows: list[dict[str, Any]] = []
    for entry in settings.instances:
        instance = open_instance(entry, folder)
        rows += rows_of(instance, settings)
        click.echo(f"{instance.name}: {sum(row['instance'] == instance.name for row in rows)} rows", err=True)
    write_atomically(folder / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(folder / "environment.json", json.dumps(environment, indent=1) + "\n")


def _settings(file: Path) -> Settings:
    expected = "settings (see reports/*-simgrid/config.json)"
    try:
        return Settings.model_validate_json(_read(file, expected))
    except ValidationError as error:
        raise InputError(Mistake(f"what cannot be read ({error})", expected, file=file)) from None


def _write_page(folder: Path) -> None:
    rows = [json.loads(line) for line in _read(folder / "results.jsonl", "rows").splitlines()]
    environment = json.loads(_read(folder / "environment.json", "an environment"))
    for name, content in build_page(rows, environment).items():
        write_atomically(folder / name, content)
        click.echo(folder / name)


def _read(file: Path, expected: str) -> str:
    return read_bounded(file, _MOST_BYTES, expected).decode()


if __name__ == "__main__":
    main()
