"""Opens a ``torch.save`` archive: its plain data at once, the values of its tensors when they are asked for."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moe_placer.engines.pickle_reader import load_pickle
from moe_placer.engines.stored_tensors import NotPlainTensorsError, StoredTensor
from moe_placer.errors import InputError, Mistake

__all__ = ["TorchFile", "read_torch_file"]

_KIND = "a .pt file of tensors, as torch.save writes it"
_MOST_PICKLE_BYTES = 512_000_000
_MAPPED_BYTES = 512_000_000
_CHECKED_BYTES = 16_000_000  # of which the checksum is computed at a time
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field


class TorchFile:
    """A ``.pt`` file whose plain data has been read.

    Attributes
    ----------
    path : Path
    content : object
        What was saved, with a `StoredTensor` for each tensor.
    """

    def __init__(self, path: Path, members: dict[str, zipfile.ZipInfo]) -> None:
        self.path = path
        self._members = members
        pickles = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(pickles) != 1:
            raise NotPlainTensorsError("a zip archive without data.pkl")
        self._folder = pickles[0].removesuffix("data.pkl")
        order = members.get(f"{self._folder}byteorder")
        self._order: Literal["<", ">"] = ">" if order and bytes(self._values(order)).strip() == b"big" else "<"
        if members[pickles[0]].file_size > _MOST_PICKLE_BYTES:
            raise NotPlainTensorsError(f"more than {_MOST_PICKLE_BYTES / 1e6:g} MB of data beside the tensors")
        self.content: Any = load_pickle(bytes(self._values(members[pickles[0]])))

    def wrong(self, found: str, expected: str = _KIND, path: str = "") -> InputError:
        """Say what is wrong with the file."""
        return InputError(Mistake(found, expected, path, self.path))

    def array(self, tensor: StoredTensor) -> npt.NDArray[Any]:
        """Return a tensor's values, once their checksum is found right.

        Raises
        ------
        InputError
            The values are missing, of another length than stated, or damaged.
        """
        try:
            return self._array(tensor)
        except NotPlainTensorsError as error:
            raise self.wrong(str(error)) from None
        except OSError as error:
            raise self.wrong(f"a file that cannot be read ({error.strerror})") from None

    def _array(self, tensor: StoredTensor) -> npt.NDArray[Any]:
        member = self._members.get(f"{self._folder}data/{tensor.storage}")
        if member is None:
            raise NotPlainTensorsError(f"no values for a tensor (data/{tensor.storage[:60]})")
        dtype = np.dtype("u2" if tensor.dtype == "bf16" else tensor.dtype).newbyteorder(self._order)
        if member.file_size != tensor.values * dtype.itemsize:
            stated = f"{tensor.values} values of {dtype.itemsize} bytes should be (data/{tensor.storage[:60]})"
            raise NotPlainTensorsError(f"{member.file_size} bytes where {stated}")
        stored = self._values(member).view(dtype)
        strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
        if math.prod(tensor.shape) == 0:
            return np.zeros(tensor.shape, dtype)
        values = np.lib.stride_tricks.as_strided(stored[tensor.offset :], tensor.shape, strides, writeable=False)
        if tensor.dtype == "bf16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values

    def fingerprint(self, tensor: StoredTensor) -> tuple[object, ...]:
        """Tell tensors of different values apart without reading them (equal ones are equal but for chance)."""
        member = self._members.get(f"{self._folder}data/{tensor.storage}")
        checksum = (member.CRC, member.file_size) if member else (0, 0)
        return (*checksum, tensor.dtype, tensor.offset, tensor.shape, tensor.strides)

    def _values(self, member: zipfile.ZipInfo) -> npt.NDArray[np.uint8]:
        """Return a member's bytes; its checksum is compared."""
        with self.path.open("rb") as stream:
            stream.seek(member.header_offset)
            header = stream.read(_LOCAL_HEADER.size)
            if len(header) < _LOCAL_HEADER.size:
                raise NotPlainTensorsError("an archive that ends too early")
            signature, name, extra = _LOCAL_HEADER.unpack(header)
            start, size = member.header_offset + _LOCAL_HEADER.size + name + extra, member.file_size
            if signature != b"PK\x03\x04" or start + size > self.path.stat().st_size:
                raise NotPlainTensorsError("an archive whose directory points nowhere")
            values: npt.NDArray[np.uint8]
            if size > _MAPPED_BYTES:  # memory that the system can take back at any time
                values = np.memmap(stream, np.uint8, "r", start, (size,))
            else:
                stream.seek(start)
                values = np.frombuffer(stream.read(size), np.uint8)
        found = 0
        for at in range(0, len(values), _CHECKED_BYTES):
            found = zlib.crc32(values[at : at + _CHECKED_BYTES].data, found)
        if found != member.CRC or len(values) != size:
            raise NotPlainTensorsError(f"a damaged part ({member.filename[-60:]}: its checksum is wrong)")
        return values


def read_torch_file(path: Path) -> TorchFile:
    """Read what is in a ``.pt`` file, without running anything; the values of tensors stay where they are.

    Raises
    ------
    InputError
        It is missing, damaged, hostile, or not a zip archive of tensors.
    """
    try:
        if path.exists() and not path.is_file():
            raise NotPlainTensorsError("a folder" if path.is_dir() else "no ordinary file")
        with path.open("rb") as stream:
            if stream.read(4)[:2] != b"PK":
                raise NotPlainTensorsError("no zip archive (torch.save writes one since torch 1.6)")
            with zipfile.ZipFile(stream) as archive:
                members = _check_members(archive, path.stat().st_size)
        return TorchFile(path, members)
    except FileNotFoundError:
        raise InputError(Mistake("no such file", _KIND, file=path)) from None
    except NotPlainTensorsError as error:
        raise InputError(Mistake(str(error), _KIND, file=path)) from None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, struct.error, EOFError) as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputError(Mistake(f"a file that cannot be read ({reason})", _KIND, file=path)) from None


def _check_members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Name the archive's members; what is packed, or lies one in another, could become larger than the file."""
    members = archive.infolist()
    packed = next((member for member in members if member.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise NotPlainTensorsError(f"a compressed part ({packed.filename[-60:]}), which torch.save never writes")
    if sum(member.file_size for member in members) > size:
        raise NotPlainTensorsError("parts that are larger than the file")
    named = {member.filename: member for member in members}
    if len(named) != len(members):
        raise NotPlainTensorsError("two parts of one name")
    return named
