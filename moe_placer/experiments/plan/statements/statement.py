"""One statement of a plan: its words, how it is judged, and the command that shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moe_placer.experiments.plan.figures import Figures

__all__ = ["VERDICTS", "Judged", "Statement", "not_measured"]

Judged = tuple[str, str]  # one of VERDICTS, and a sentence

VERDICTS = {
    "holds": "the figures say so",
    "partly": "in a range, or in part",
    "fails": "the figures say otherwise",
    "given": "an input of the instance, taken as stated",
    "open": "the plan leaves it open; an assumption of the instance",
    "out of scope": "nothing here computes it",
    "not measured": "needs rows of sweeps or scenarios",
}


@dataclass(frozen=True)
class Statement:
    """A statement.

    Attributes
    ----------
    number : int
    text : str
        The statement, in a line.
    judge : callable
        From figures to a verdict and a sentence.
    command : str
        What shows it; ``I`` and ``P`` stand for instance and placement.
    """

    number: int
    text: str
    judge: Callable[[Figures], Judged]
    command: str


def not_measured(what: str) -> Judged:
    """Say that rows are missing."""
    return "not measured", f"give {what} to `plan-report`"
