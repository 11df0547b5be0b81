"""``python -m benchmarks.fidelity FOLDER``: predict what others measured, and write rows and a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.fidelity.fidelity_page import build_page
from benchmarks.fidelity.kernels import aiconfigurator_rows, low_latency_rows, normal_rows
from benchmarks.fidelity.left_out import LeftOutError
from benchmarks.fidelity.packets import packets_rows
from benchmarks.fidelity.systems import system_rows
from moe_placer.experiments.environment import describe_environment
from moe_placer.files import write_atomically

__all__ = ["main"]

_PARTS: Mapping[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "low-latency": low_latency_rows,
    "normal": normal_rows,
    "measured": aiconfigurator_rows,
    "systems": system_rows,
    "packets": packets_rows,
}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--part", "parts", multiple=True, type=click.Choice(list(_PARTS)), help="Only these; others stay.")
def main(folder: Path, parts: tuple[str, ...]) -> None:
    """Predict all figures, or those of some parts, and write results.jsonl, environment.json and README.md."""
    file = folder / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for part in parts or _PARTS:
        try:
            found = list(_PARTS[part]())
        except (ModuleNotFoundError, LeftOutError) as error:
            click.echo(f"{part} is left out: {error}", err=True)
            continue
        rows = [row for row in rows if row["part"] != part] + found
        click.echo(f"{part}: {len(found)} rows", err=True)
    rows.sort(key=lambda row: list(_PARTS).index(row["part"]))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(folder / "environment.json", json.dumps(describe_environment(), indent=1) + "\n")
    write_atomically(folder / "README.md", build_page(rows))


if __name__ == "__main__":
    main()
