"""Writes a report folder's page and its Markdown, from its rows alone."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from moe_placer.errors import UsageError
from moe_placer.files import write_atomically

__all__ = ["require_libraries", "write_report"]

_NEEDED = ("jinja2", "vl_convert")


def require_libraries() -> None:
    """Refuse to go on without what pages are made with.

    Raises
    ------
    UsageError
        The libraries of the extra `report` are not installed.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(f"reports need {' and '.join(missing)}: pip install 'moe-placer[report]'")


def write_report(folder: Path) -> list[Path]:
    """Write `index.html`, `README.md` and its pictures into a report folder; the same rows give the same bytes.

    Parameters
    ----------
    folder : Path
        Holds `config.json`, `environment.json` and `results.jsonl`, as `moe-placer compare` leaves them.

    Returns
    -------
    list of Path
        What was written. Nothing is, unless all of it could be made.

    Raises
    ------
    InputError
        A file is missing or damaged; of a row, with its line.
    UsageError
        The libraries of the extra `report` are not installed.
    """
    require_libraries()
    from moe_placer.experiments.report.html_page import to_page
    from moe_placer.experiments.report.markdown import to_markdown
    from moe_placer.experiments.report.rows import read_comparison

    comparison = read_comparison(folder)
    contents = {"index.html": to_page(comparison), **to_markdown(comparison)}
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]
