"""``python -m benchmarks.fidelity FOLDER``: predict what others measured, and write rows and a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.fidelity.fidelity_page import build_page
from benchmarks.fidelity.kernels import aiconfigurator_rows, low_latency_rows, normal_rows
from benchmarks.fidelity.left_out import FailedError, LeftOutError
from benchmarks.fidelity.packets import packets_by_setup
from benchmarks.fidelity.systems import system_rows
from benchmarks.netns.cases import METHODS
from moe_placer.experiments.environment import describe_environment
from moe_placer.files import write_atomically

__all__ = ["main"]

Row = dict[str, Any]
Batches = Iterator[list[Row]]  # rows that are measured together


def _at_once(measure: Callable[[], Iterator[Row]]) -> Callable[[int], Batches]:
    """Make one batch of a part's rows, however many placements are asked for."""

    def batches(placements: int) -> Batches:
        del placements
        yield list(measure())

    return batches


_PARTS: Mapping[str, Callable[[int], Batches]] = {
    "low-latency": _at_once(low_latency_rows),
    "normal": _at_once(normal_rows),
    "measured": _at_once(aiconfigurator_rows),
    "systems": _at_once(system_rows),
    "packets": packets_by_setup,
}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--part", "parts", multiple=True, type=click.Choice(list(_PARTS)), help="Only these; others stay.")
@click.option(
    "--placements",
    type=click.IntRange(1, len(METHODS)),
    default=len(METHODS),
    metavar="N",
    help=f"Real packets of the first N placements only, to try them: 5 minutes each.  [{len(METHODS)}]",
)
def main(folder: Path, parts: tuple[str, ...], placements: int) -> None:
    """Predict all figures, or those of some parts, and write results.jsonl, environment.json and README.md.

    They are written after every part, and of real packets after every set-up. What this machine cannot measure is left
    out, and its rows stay as they are; if a measurement fails, the others are made, and the exit code is 1.
    """
    file = folder / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    failed = False
    for part in parts or _PARTS:
        found: list[Row] = []
        try:
            for batch in _PARTS[part](placements):
                found += batch
                setups = {row.get("setup") for row in batch}
                rows = [row for row in rows if row["part"] != part or row.get("setup") not in setups] + batch
                _write(folder, rows)
        except (ModuleNotFoundError, LeftOutError) as error:
            click.echo(f"{part} is left out: {error}", err=True)
        except FailedError as error:
            failed = True
            click.echo(f"{part} failed after {len(found)} rows, the others stay as they are: {error}", err=True)
        else:
            measured = [row for row in rows if row["part"] != part] + found
            if len(measured) < len(rows):  # rows of set-ups that are no more
                rows = measured
                _write(folder, rows)
            click.echo(f"{part}: {len(found)} rows", err=True)
    if failed:
        raise SystemExit(1)


def _write(folder: Path, rows: list[Row]) -> None:
    rows.sort(key=lambda row: list(_PARTS).index(row["part"]))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(folder / "environment.json", json.dumps(describe_environment(), indent=1) + "\n")
    write_atomically(folder / "README.md", build_page(rows))


if __name__ == "__main__":
    main()
