"""The largest of several bounds: each holds, so the largest does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

__all__ = ["largest"]


class _Valued(Protocol):
    @property
    def value(self) -> float: ...


_Bound = TypeVar("_Bound", bound=_Valued)


def largest(bounds: Iterable[_Bound]) -> _Bound:
    """Return the bound with the largest value; of equals, the first."""
    return max(bounds, key=lambda bound: bound.value)
