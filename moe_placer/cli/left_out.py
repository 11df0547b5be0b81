"""What `moe-placer solve` leaves out when it is asked to be quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["LeftOut", "Part"]

Part = Literal["baselines", "bounds", "dags"]


@dataclass(frozen=True)
class LeftOut:
    """Which parts of a solve are left out.

    Attributes
    ----------
    baselines : bool
        Heuristics to compare with; a search starts from them, and has them all the same.
    bounds : bool
        Bounds of layers that the method leaves unbounded.
    dags : bool
    """

    baselines: bool = False
    bounds: bool = False
    dags: bool = False

    @property
    def names(self) -> list[Part]:
        """What is left out, as ``--json`` lists it."""
        parts: list[tuple[Part, bool]] = [("baselines", self.baselines), ("bounds", self.bounds), ("dags", self.dags)]
        return [name for name, out in parts if out]

    @property
    def sentence(self) -> str:
        """Say what a quick solve left out, and which commands give it."""
        return (
            "Left out (--quick): bounds, heuristics to compare with, the verdict, DAGs. Without --quick they come with "
            "the placement; `moe-placer evaluate` compares, `moe-placer dag` draws."
        )
