"""The options of an import, and how it reports its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moe_placer.errors import InputError, Mistake

__all__ = ["Options", "Progress"]

Progress = Callable[[int, int, str], None]  # done, of how many, what


@dataclass(frozen=True)
class Options:
    """How to read a recording.

    Attributes
    ----------
    keep_tokens : int
        Whole tokens to keep at most, drawn with equal chances; all are counted.
    experts : int or None
        Experts of a layer, for formats that do not say.
    report : callable, optional
        Called now and then with what is done, of how much, and what that is.
    """

    keep_tokens: int = 100_000
    experts: int | None = None
    report: Progress | None = None

    @contextmanager
    def progress(self, total: int, what: str) -> Iterator[Callable[[int], None]]:
        """Give a function to call with how much more is done of ``total``."""
        done = [0]

        def advance(more: int) -> None:
            done[0] += more
            if self.report is not None:
                self.report(done[0], total, what)

        yield advance

    @staticmethod
    def wrong(file: Path, found: str, expected: str, path: str = "") -> InputError:
        """Say what is wrong with a file.

        Parameters
        ----------
        file : Path
            Where the mistake is.
        found : str
            What stands there.
        expected : str
            What should stand there.
        path : str
            Path of the key in the file.
        """
        return InputError(Mistake(found, expected, path, file))
