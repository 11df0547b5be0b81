"""Opens .safetensors files: a JSON header of names, types and offsets, and the raw bytes of each array."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake

__all__ = ["read_safetensors"]

_KIND = "a .safetensors file"
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_TYPES = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1"}


def read_safetensors(path: Path) -> Mapping[str, npt.NDArray[Any]]:
    """Map a file's names to arrays of whole numbers, which are views of the file.

    Raises
    ------
    InputError
        The file is missing, damaged, or holds something else than whole numbers.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no ordinary file" if path.exists() else "no such file"
        raise InputError(Mistake(found, _KIND, file=path))
    try:
        with path.open("rb") as stream:
            return _arrays(stream.read(8), np.memmap(stream, np.uint8, "r"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputError(Mistake(f"a file that cannot be read ({reason})", _KIND, file=path)) from None


def _arrays(start: bytes, data: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(_MOST_HEADER_BYTES, len(data) - 8):
        raise ValueError("its header is longer than the file")
    header = json.loads(bytes(data[8 : 8 + length]))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    values = data[8 + length :]
    return {name: _array(name, entry, values) for name, entry in header.items() if name != "__metadata__"}


def _array(name: str, entry: Any, values: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    if not isinstance(entry, dict) or entry.get("dtype") not in _TYPES:
        raise ValueError(f"{name[:60]!r} does not hold whole numbers")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2 or len(shape) > 16:
        raise ValueError(f"shape or offsets of {name[:60]!r} are no list of counts")
    dtype = np.dtype(_TYPES[entry["dtype"]])
    start, end = offsets
    if not start <= end <= len(values) or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"shape and bytes of {name[:60]!r} disagree: truncated?")
    return np.frombuffer(values[start:end].data, dtype).reshape(shape)


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)
