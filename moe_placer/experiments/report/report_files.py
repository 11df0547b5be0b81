"""Writes a report folder's page and its Markdown, from its rows alone."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moe_placer.errors import DefectError, InputError, Mistake, UsageError
from moe_placer.experiments.process import end_with_parent, run_child
from moe_placer.files import write_atomically

__all__ = ["draw_report", "require_libraries", "write_report"]

CHILD = (sys.executable, "-P", "-m", "moe_placer.experiments.report.report_files")
_NEEDED = ("altair", "jinja2", "vl_convert")
_PATIENCE_S = 600.0  # 2 GB of rows are read in a tenth of it


def require_libraries() -> None:
    """Refuse to go on without what pages are made with.

    Raises
    ------
    UsageError
        The libraries of the extra `report` are not installed.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(f"reports need {', '.join(missing)}: pip install 'moe-placer[report]'")


def write_report(folder: Path) -> list[Path]:
    """Write `index.html`, `README.md` and its pictures into a report folder; the same rows give the same bytes.

    A process of its own reads and draws: where a drawing library crashes, this one says so.

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
    DefectError
        Drawing crashed, or did not end.
    """
    require_libraries()
    ended = run_child(CHILD, json.dumps({"folder": str(folder)}), _PATIENCE_S)
    if ended.output is None:
        raise DefectError(f"{folder}: no page was made, since drawing it failed: {ended.failed}")
    answer = json.loads(ended.output)
    if mistakes := answer["mistakes"]:
        raise InputError([Mistake(**{**fields, "file": Path(fields["file"])}) for fields in mistakes])
    for name, content in answer["contents"].items():
        write_atomically(folder / name, content)
    return [folder / name for name in answer["contents"]]


def draw_report(folder: Path) -> dict[str, str]:
    """Return what a report folder's files contain, by name, drawn in this process; raises what `write_report` does."""
    from moe_placer.experiments.follow.follow_rows import CONFIG, CONFIG_FILE
    from moe_placer.experiments.report.rows import read_comparison

    if _schema_of(folder / CONFIG_FILE) == CONFIG:
        from moe_placer.experiments.follow.follow_folder import draw_followed

        return draw_followed(folder)
    comparison = read_comparison(folder)
    # Drawing libraries take a second to load: what is damaged is told before.
    from moe_placer.experiments.report.html_page import to_page
    from moe_placer.experiments.report.markdown import to_markdown

    return {"index.html": to_page(comparison), **to_markdown(comparison)}


def _schema_of(file: Path) -> str | None:
    """Return the schema that a JSON file names; None where it is no JSON object, which its reader refuses."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return str(content.get("schema")) if isinstance(content, dict) else None


def main() -> None:
    """Draw the folder that standard input names; write contents or mistakes to the file named as argument."""
    end_with_parent()
    folder = Path(json.load(sys.stdin)["folder"])
    answer: dict[str, Any] = {"contents": {}, "mistakes": []}
    try:
        answer["contents"] = draw_report(folder)
    except InputError as error:
        answer["mistakes"] = [{**asdict(mistake), "file": str(mistake.file or folder)} for mistake in error.mistakes]
    Path(sys.argv[1]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
