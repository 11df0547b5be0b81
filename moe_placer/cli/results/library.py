"""What ``library --json`` prints."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from moe_placer.cli.results.documented import documented

__all__ = ["LibraryEntry", "LibraryResult", "Submitted"]


@documented
class LibraryEntry(TypedDict):
    """One instance of the library."""

    name: str
    """Its name."""
    family: str
    """What it belongs with."""
    reason: str
    """Why it is in the library."""
    status: Literal["optimal", "bounded", "open"]
    """Value and bound meet; the gap is at most 1%; it is larger, or something is missing."""
    value: float | None
    """The best known, of what the instance minimises; null where there is no placement."""
    value_by: str | None
    """Solver that found it."""
    bound: float | None
    """The best bound known; null where there is none."""
    bound_by: str | None
    """Solver that proved it."""
    proof: str | None
    """Kinds of proof, and in how many layers."""
    gap: float | None
    """(value - bound) / bound; null where it is not known."""
    recordings: list[str]
    """Recordings that it needs, which are not committed."""
    recording_commands: list[str]
    """Commands that fetch and convert them, in order."""
    max_moves: int | None
    """Moves that a placement may be from the old plan; null where there is none."""
    verdict: NotRequired[Literal["good", "wrong", "skipped"]]
    """Of `check`: whether all of this was derived anew, or a recording is missing."""
    problems: NotRequired[list[str]]
    """Of `check`: what is wrong or missing."""


@documented
class Submitted(TypedDict):
    """A placement that was submitted, as recomputed."""

    value: float
    """What the instance minimises."""
    bound: float
    """What no placement is below, as its records prove it; 0 where they prove nothing."""


@documented
class LibraryResult(TypedDict):
    """What `moe-placer library list, show, get, check` and `submit` print."""

    schema: Literal["moe-placer/library/1"]
    """Name and version of this schema."""
    entries: list[LibraryEntry]
    """The instances that were asked for; of `submit`, the record as it is now."""
    files: list[str]
    """What was written."""
    submitted: NotRequired[Submitted]
    """Of `submit`: the placement that was given."""
