"""A line of ``--log json``."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from moe_placer.cli.results.documented import documented

__all__ = ["LogLine"]


@documented
class MistakeFound(TypedDict):
    """One thing that is wrong in one place of an input."""

    file: str | None
    """The file, where it is one."""
    line: int | None
    """Line, counted from 1."""
    path: str
    """The field, such as `cluster.fabric.spines`; empty for the whole file."""
    found: str
    """What stands there."""
    expected: str
    """What should."""


@documented
class LogLine(TypedDict):
    """A line on standard error with `--log json`; further keys are figures that the text was made from."""

    schema: Literal["moe-placer/log/1"]
    """Name and version of this schema."""
    time: str
    """UTC, ISO 8601, with milliseconds."""
    level: Literal["info", "warning", "error"]
    """`error` is the last line of a command that failed."""
    command: str
    """The command; empty where arguments were not understood."""
    text: str
    """What people read without `--log json`."""
    exit_code: NotRequired[int]
    """Of errors: the exit code."""
    mistakes: NotRequired[list[MistakeFound]]
    """Of errors with exit code 1: everything that is wrong."""
    rules: NotRequired[list[str]]
    """Of errors with exit code 5 or 70: the rule that each violation breaks."""
