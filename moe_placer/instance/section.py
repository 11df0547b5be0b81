"""The base of every section of an instance file, and the kinds of fields that several of them have."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Strict

__all__ = ["Dtype", "ListOf", "Section"]

Dtype = Literal["fp32", "bf16", "fp16", "fp8", "fp4"]

T = TypeVar("T")
ListOf = Annotated[tuple[T, ...], Strict(False)]  # a YAML list; kept as a tuple, since an instance never changes


class Section(BaseModel):
    """Base of every section: frozen, strict, and closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
