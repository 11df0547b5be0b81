"""What the library's file says of one instance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from moe_placer.errors import InputError, Mistake
from moe_placer.files import write_atomically
from moe_placer.instance.yaml_reader import dotted, read_yaml
from moe_placer.result import OPTIMAL_GAP, gap

__all__ = [
    "BoundKnown",
    "Known",
    "KnownStatus",
    "Migration",
    "NeededRecording",
    "Record",
    "read_record",
    "status_of",
    "write_record",
]

SCHEMA = "moe-placer/library-record/1"
BOUNDED = 1e-2  # largest gap of this status; closer than `OPTIMAL_GAP` is optimal
_EXPECTED = f"a record of the library ({SCHEMA})"

KnownStatus = Literal["optimal", "bounded", "open"]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9.-]*$")]
Line = Annotated[str, Field(min_length=10, max_length=200, pattern=r"^[^\n]+$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NeededRecording(_Part):
    """A recording that cannot be committed, and where it is from.

    Attributes
    ----------
    file : str
        Name of the .npz.
    topk_sha256 : str
        SHA-256 of its `topk` as 16-bit little-endian numbers in C order: the same however the file is packed.
    source : str
    commands : tuple of str
        What fetches the source and converts it, line by line.
    """

    file: str
    topk_sha256: Sha256
    source: str
    commands: Annotated[tuple[Line, ...], Field(min_length=1)]


class Migration(_Part):
    """The plan that runs, and how many moves another may be from it."""

    current: Sha256  # of its placement file, which lies in placements/ too
    max_moves: Annotated[int, Field(ge=0)]


class Known(_Part):
    """The best value known, and the placement that has it."""

    value: NonNegativeFloat
    placement: Sha256  # of the placement file; it lies, compressed, in placements/
    solver: str
    version: str
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]


class BoundKnown(Known):
    """The best bound known, and the placement file that carries its certificate."""

    proof: str


class Record(_Part):
    """One instance of the library.

    Attributes
    ----------
    reason : str
        One line: why the instance is in the library.
    instance : str
        Path of an instance file, relative to the record's folder.
    changes : mapping
        What differs from it, section by section; `null` takes a field out.
    recordings : tuple of NeededRecording
        In the order of the instance's `mix`.
    migration : Migration or None
        Where only placements within a budget of moves from an old plan count.
    status : str
        `optimal`: value and bound meet (1e-6 relative); `bounded`: the gap is at most 1%; `open`: it is larger, or
        something is missing.
    """

    schema_: Literal["moe-placer/library-record/1"] = Field(alias="schema")
    name: Name
    family: Name
    reason: Line
    instance: str
    changes: Mapping[str, Any] = Field(default_factory=dict)
    recordings: tuple[NeededRecording, ...] = ()
    migration: Migration | None = None
    instance_sha256: Sha256 | None = None
    traffic_sha256: Sha256 | None = None
    status: KnownStatus = "open"
    best: Known | None = None
    bound: BoundKnown | None = None

    @property
    def placements(self) -> frozenset[str]:
        """SHA-256 of the placement files that the record names."""
        named = {part.placement for part in (self.best, self.bound) if part is not None}
        return frozenset(named | ({self.migration.current} if self.migration is not None else set()))

    @property
    def gap(self) -> float | None:
        """(value - bound) / bound; None where either is missing, or the bound is 0 and the value is not."""
        if self.best is None or self.bound is None:
            return None
        found = gap(self.best.value, self.bound.value)
        return None if math.isinf(found) else found


def status_of(value: float, bound: float) -> KnownStatus:
    """Return the status that a value and a bound give."""
    found = gap(value, bound)
    if found > BOUNDED:
        return "open"
    return "optimal" if found <= OPTIMAL_GAP else "bounded"


def read_record(path: Path) -> Record:
    """Read and check a record.

    Raises
    ------
    InputError
        Lists every mistake with its line.
    """
    document = read_yaml(path)
    if document.mistakes:
        raise InputError(document.mistakes)
    try:
        record = Record.model_validate(document.data)
    except ValidationError as error:
        mistakes = []
        for detail in error.errors(include_url=False):
            line = document.line(detail["loc"])
            mistakes.append(Mistake(detail["msg"], _EXPECTED, file=path, line=line, path=dotted(detail["loc"])))
        raise InputError(mistakes) from None
    if record.name != path.stem:
        raise InputError(Mistake(f"the name {record.name!r}", f"the file's own name, {path.stem!r}", file=path))
    return record


def write_record(record: Record, path: Path) -> None:
    """Write a record atomically."""
    content = record.model_dump(mode="json", by_alias=True, exclude_defaults=True) | {"status": record.status}
    content = {"schema": SCHEMA} | content
    write_atomically(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110))
