"""``python -m moe_placer.experiments.sweep FOLDER``: solve, sweep and report what FOLDER/config.json asks for."""

from __future__ import annotations

from pathlib import Path

import click

from moe_placer.errors import MoePlacerError
from moe_placer.experiments.report.report_files import require_libraries
from moe_placer.experiments.row_files import write_rows
from moe_placer.experiments.sweep.study import read_study, run_study
from moe_placer.experiments.sweep.sweep_folder import write_page

__all__ = ["main"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--page", "page_only", is_flag=True, help="Only make the page anew, from the rows that are there.")
def main(folder: Path, page_only: bool) -> None:
    """Run the study of FOLDER/config.json, and write rows, environment, page and pictures beside it."""
    try:
        require_libraries()
        study = read_study(folder / "config.json")
        if not page_only:
            rows, environment = run_study(study, folder, lambda line: click.echo(line, err=True))
            write_rows(folder, rows, environment)
        for path in write_page(
            folder, study.title, f"python -m moe_placer.experiments.sweep reports/{folder.resolve().name}"
        ):
            click.echo(path)
    except MoePlacerError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
