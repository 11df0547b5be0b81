"""Writes what ``torch.save`` writes, without torch: the same zip members, the same pickle instructions."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "f8": "DoubleStorage",
    "f4": "FloatStorage",
    "f2": "HalfStorage",
    "i8": "LongStorage",
    "i4": "IntStorage",
    "i2": "ShortStorage",
    "i1": "CharStorage",
    "u1": "ByteStorage",
    "b1": "BoolStorage",
}


class Global:
    """A name of another program's module."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *arguments: Any) -> Any:  # picklers ask for something to call
        raise AssertionError


@cache
def torch_name(module: str, name: str) -> Global:
    """Return the one object of a name, so that picklers remember it."""
    return Global(module, name)


class View:
    """A tensor that shares its storage: an array as it lies in ``base``."""

    def __init__(self, base: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.base, self.offset, self.shape, self.strides = base, offset, shape, strides


class Bfloat16:
    """A bfloat16 tensor with the upper halves of some float32 values."""

    def __init__(self, values: np.ndarray) -> None:
        self.halves = (values.astype("<f4").view("<u4") >> 16).astype("<u2")


class TorchPickler(pickle._Pickler):  # type: ignore[misc,name-defined]
    """The pickler of `torch.save`: storages go by reference, tensors as calls of _rebuild_tensor_v2."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=2)
        self.storages: list[tuple[np.ndarray, str]] = []

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        key = next((key for key, (base, _) in enumerate(self.storages) if base is obj.base), len(self.storages))
        if key == len(self.storages):
            self.storages.append((obj.base, obj.kind))
        return ("storage", torch_name("torch", obj.kind), str(key), "cpu", obj.base.size)

    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(obj, Global):
            if id(obj) in self.memo:
                self.write(self.get(self.memo[id(obj)][0]))
            else:
                self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
                self.memoize(obj)
            return None
        if isinstance(obj, np.ndarray | View | Bfloat16):
            return self.save_reduce(*_rebuilt(obj), obj=obj)
        return super().save(obj, save_persistent_id)


KEPT: list[Any] = []


class _Storage:
    def __init__(self, base: np.ndarray, kind: str) -> None:
        self.base, self.kind = base, kind


def _rebuilt(obj: Any) -> tuple[Any, tuple[Any, ...]]:
    call = torch_name("torch._utils", "_rebuild_tensor_v2")
    if isinstance(obj, Bfloat16):
        base, kind, offset, shape = obj.halves, "BFloat16Storage", 0, obj.halves.shape
        strides = tuple(stride // 2 for stride in base.strides)
    elif isinstance(obj, View):
        base, offset, shape, strides = obj.base, obj.offset, obj.shape, obj.strides
        kind = STORAGES[base.dtype.str[1:]]
    else:
        base, offset, shape = np.array(obj, order="C"), 0, obj.shape
        strides = tuple(stride // base.itemsize for stride in base.strides)
        kind = STORAGES[base.dtype.str[1:]]
        KEPT.append(base)
    return call, (_Storage(base, kind), offset, tuple(shape), tuple(strides), False, OrderedDict())


def torch_pickle(content: Any) -> tuple[bytes, list[np.ndarray]]:
    """Return the pickle and the storages of some content."""
    stream = io.BytesIO()
    pickler = TorchPickler(stream)
    pickler.dump(content)
    return stream.getvalue(), [base for base, _ in pickler.storages]


def save(content: Any, file: Path) -> Path:
    """Write content (with NumPy arrays for tensors) as torch.save does."""
    data, storages = torch_pickle(content)
    return write_archive(file, data, [base.tobytes() for base in storages])


def write_archive(
    file: Path, data: bytes, storages: list[bytes], compression: int = zipfile.ZIP_STORED, order: bytes = b"little"
) -> Path:
    """Write the archive of a pickle and its storages."""
    folder = file.stem
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", data)
        archive.writestr(f"{folder}/.format_version", b"1")
        archive.writestr(f"{folder}/.storage_alignment", b"64")
        archive.writestr(f"{folder}/byteorder", order)
        for key, values in enumerate(storages):
            archive.writestr(f"{folder}/data/{key}", values)
        archive.writestr(f"{folder}/version", b"3\n")
        archive.writestr(f"{folder}/.data/serialization_id", b"0636457737946401051300000018175087910580")
    return file
