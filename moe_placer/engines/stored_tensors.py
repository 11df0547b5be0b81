"""What stands in a ``.pt`` file's pickle beside plain data: tensors that are still in the file, and long lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from moe_placer.errors import MoePlacerError

__all__ = [
    "STORAGES",
    "Integers",
    "NotPlainTensorsError",
    "StoredTensor",
    "fail",
    "is_count",
    "run_of_integers",
    "stated_tensor",
    "unpack_integers",
]

# Storage classes of torch, and what one value of them is in NumPy; bfloat16, which NumPy lacks, is widened on reading.
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bf16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
}
_MOST_DIMENSIONS = 16


class NotPlainTensorsError(MoePlacerError, ValueError):
    """The pickle holds something else than plain data and tensors, or is no pickle."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that is still in its file.

    Attributes
    ----------
    storage : str
        Name of the archive's member with its values.
    dtype : str
        NumPy's name of the type of a value, or ``bf16``.
    values : int
        Values of the storage.
    offset : int
        Of the first element in the storage, in values.
    shape, strides : tuple of int
        Per dimension; strides in values.
    """

    storage: str
    dtype: str
    values: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_integer(self) -> bool:
        """Whether its values are whole numbers."""
        return self.dtype[0] in "iu"


class Integers:
    """A long list of integers, kept as the bytes that it is written in: about a tenth of a list's memory."""

    __slots__ = ("_lengths", "_parts")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._lengths: list[int] = []

    def __len__(self) -> int:
        return sum(self._lengths)

    def extend(self, run: bytes, count: int) -> None:
        """Add ``count`` integers that are written as a run of instructions."""
        self._parts.append(run)
        self._lengths.append(count)

    def to_list(self) -> list[int]:
        """Return the integers."""
        return [value for part in self._parts for value in unpack_integers(part)]


def fail(found: str) -> NoReturn:
    """Refuse a pickle."""
    raise NotPlainTensorsError(found)


def unpack_integers(run: bytes) -> list[int]:
    """Return the integers that a run of instructions pushes, one each."""
    values, at = [], 0
    while at < len(run):
        width = _INTEGER_WIDTH[run[at]]
        values.append(int.from_bytes(run[at + 1 : at + 1 + width], "little", signed=width == 4))
        at += 1 + width
    return values


_INTEGER_WIDTH = {ord("K"): 1, ord("M"): 2, ord("J"): 4}


def run_of_integers(data: bytes, start: int) -> tuple[int, int]:
    """Return the end of the run of integers that starts at a byte, and how many they are."""
    at, count, size = start, 0, len(data)
    width = _INTEGER_WIDTH
    while at < size and (more := width.get(data[at])) is not None and at + more < size:
        at += 1 + more
        count += 1
    return at, count


def stated_tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """Check what `torch.save` states of a tensor: it must lie in its storage, value by value."""
    if len(arguments) not in {6, 7} or not isinstance(arguments[0], StoredTensor):
        fail("a tensor without its values")
    storage, offset, shape, strides = arguments[:4]
    numbers = isinstance(shape, tuple) and isinstance(strides, tuple) and all(map(is_count, (*shape, *strides)))
    if not numbers or not is_count(offset) or len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS:
        fail("a tensor whose shape is no shape")
    size = 1
    for length in shape:
        size *= length
    if size > storage.values:
        fail(f"a tensor of shape {_shown(shape)}, but {storage.values} values")
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if size and last >= storage.values:
        fail(f"a tensor of shape {_shown(shape)} that reaches beyond its {storage.values} values")
    return StoredTensor(storage.storage, storage.dtype, storage.values, offset, shape, strides)


def _shown(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(str(length)[:20] for length in shape)}]"


def is_count(value: Any) -> bool:
    """Whether a value is a whole number that a size can be."""
    return type(value) is int and 0 <= value < 2**62
