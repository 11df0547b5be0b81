"""What can go wrong, each with the exit code that the command line documents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "DefectError",
    "GapError",
    "GateError",
    "InfeasibleError",
    "InputError",
    "Mistake",
    "MoePlacerError",
    "NothingFoundError",
    "ScreenError",
    "UsageError",
    "VerificationError",
    "visible",
]

# What terminals, browsers and drawing libraries act on instead of showing it: control characters, line separators, what
# turns the direction of text; and halves of characters, which no file can hold.
_ACTS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHOWN = 40  # mistakes printed in full; the rest is counted


def visible(text: str) -> str:
    r"""Return text on one line in which every control or direction character is spelled out: ``\x1b``, ``\u202e``."""
    return _ACTS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong in one place of an input file.

    Attributes
    ----------
    found, expected : str
        What stands there, and what should, in words a user can act on.
    path : str
        The field, written as ``cluster.fabric.spines`` or ``traffic.mix[3][0]``; empty for the whole file.
    file : Path or None
        The file, where the data came from one.
    line : int or None
        Line number, counted from 1.
    """

    found: str
    expected: str
    path: str = ""
    file: Path | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = "" if self.file is None else str(self.file) + (f":{self.line}" if self.line else "") + ": "
        field = f"{self.path}: " if self.path else ""
        return visible(f"{place}{field}found {self.found}, expected {self.expected}")


class MoePlacerError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class InputError(MoePlacerError):
    """A file or an argument is wrong; ``mistakes`` lists everything found, not just the first (exit code 1)."""

    exit_code = 1

    def __init__(self, mistakes: Sequence[Mistake] | Mistake) -> None:
        self.mistakes: tuple[Mistake, ...] = (mistakes,) if isinstance(mistakes, Mistake) else tuple(mistakes)
        lines = [str(m) for m in self.mistakes[:_SHOWN]]
        if len(self.mistakes) > _SHOWN:
            lines.append(f"... and {len(self.mistakes) - _SHOWN} more")
        super().__init__("\n".join(lines))


class UsageError(MoePlacerError):
    """The call itself makes no sense: an unknown solver, a limit below zero (exit code 2)."""

    exit_code = 2


class InfeasibleError(MoePlacerError):
    """No placement can satisfy the instance, and the message proves it (exit code 3)."""

    exit_code = 3


class NothingFoundError(MoePlacerError):
    """The limits ran out before any placement was found (exit code 4)."""

    exit_code = 4


class VerificationError(MoePlacerError):
    """A placement breaks a constraint, or a stated figure is not what it really is (exit code 5).

    ``rules`` names the broken rule of each violation that the verifier found.
    """

    exit_code = 5

    def __init__(self, message: str, rules: Sequence[str] = ()) -> None:
        self.rules = tuple(rules)
        super().__init__(message)


class GateError(MoePlacerError):
    """A placement is good, but does not hold a limit that was asked for (exit code 6)."""

    exit_code = 6


class ScreenError(MoePlacerError):
    """A plan was screened, and a trial is not recommended (exit code 7), or too little is known (8)."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


class GapError(GateError):
    """A verified placement is written, but its gap is larger than what was asked for (exit code 6)."""


class DefectError(VerificationError):
    """A result of this program, or of a solver that it called, is wrong, so nothing was written (exit code 70).

    70 is ``EX_SOFTWARE`` of sysexits.h: what was asked for is not at fault.
    """

    exit_code = 70
