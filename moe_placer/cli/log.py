"""What commands tell beside their results, on standard error: lines for people, or one JSON object a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

__all__ = ["FORMS", "as_json_line", "error", "info", "is_json", "is_live", "reset", "silent", "use_json", "warn"]

_OPTION = "--log"
_VARIABLE = "MOE_PLACER_LOG"
FORMS = ("text", "json")


class _State:
    json = False
    command = ""


def reset(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Choose the form before arguments are parsed, since what is wrong with them is told in that form too."""
    forms = [environment.get(_VARIABLE, "text")]
    for index, argument in enumerate(arguments):
        if argument == _OPTION:
            forms += arguments[index + 1 : index + 2]
        elif argument.startswith(f"{_OPTION}="):
            forms.append(argument.partition("=")[2])
    _State.json = forms[-1] == "json"
    _State.command = ""


def use_json(wanted: bool, command: str) -> None:
    """Take the form that the option, as parsed, asks for; ``command`` is named in every line from here on."""
    _State.json, _State.command = wanted, command


def is_json() -> bool:
    """Whether lines are JSON."""
    return _State.json


def is_live() -> bool:
    """Whether somebody watches standard error, so that lines may be drawn over."""
    return not _State.json and sys.stderr.isatty()


def silent(quiet: bool, json_result: bool) -> bool:
    """Whether progress is left out: asked for, or beside a JSON result, unless logs were asked for as JSON too."""
    return quiet or (json_result and not _State.json)


def info(text: str, **fields: Any) -> None:
    """Tell what happens; ``fields`` are figures of it that only JSON lines have."""
    _tell("info", text, text, fields)


def warn(text: str, **fields: Any) -> None:
    """Tell what a user should know although the command goes on."""
    _tell("warning", text, f"moe-placer: {text}", fields)


def error(text: str, exit_code: int, **fields: Any) -> None:
    """Tell why the command ends without what was asked for."""
    _tell("error", text, f"moe-placer: {text}", {"exit_code": exit_code, **fields})


def _tell(level: str, text: str, plain: str, fields: Mapping[str, Any]) -> None:
    import click

    from moe_placer.cli.json_text import finite

    click.echo(as_json_line(level, text, **finite(fields)) if _State.json else plain, err=True)


def as_json_line(level: str, text: str, **fields: Any) -> str:
    """Return a log line: schema, time (UTC), level, command and text, then fields that the text was made from."""
    content = {
        "schema": "moe-placer/log/1",
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "command": _State.command,
        "text": text.strip(),
        **fields,
    }
    return json.dumps(content)
