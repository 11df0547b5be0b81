"""Reads arrays of files and recorded loads, and trusts nothing in them."""

from __future__ import annotations

import io
import math
import os
import struct
import tokenize
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake, visible
from moe_placer.files import read_bounded
from moe_placer.instance import Instance
from moe_placer.traffic.recording import Recording
from moe_placer.workers import available_memory

__all__ = [
    "ArrayHeader",
    "array_of_bytes",
    "names_of_arrays",
    "open_array",
    "read_array",
    "read_blocks",
    "read_load",
    "read_rows",
    "wrong",
]

MAX_BYTES = 8_000_000_000  # of one array that is read whole, or packed
_MAX_STORED_BYTES = 10**12  # of one that is read in blocks, and takes as much on the disk
MAX_CSV_BYTES = 200_000_000  # 1000 layers of 8192 experts with 24 characters a count
_BLOCK_BYTES = 16_000_000  # read and checked at a time
_MOST_RATIO = 200  # unpacked over packed bytes; recorded ids, stored as 64-bit numbers, reach 16, and a bomb 1,000
_TOO_SMALL_BYTES = 16_000_000  # below, unpacking is over before anybody minds
_LEAST = 1e-9  # load of a layer; below, shares of it lose their meaning
_MOST = 1e18  # of one count; sums stay finite


@dataclass(frozen=True)
class ArrayHeader:
    """Shape, order and type of an array that is still in its file."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    place: tuple[int, int] | None = None
    """Descriptor of the open file, and bytes before the values in it; None where these are packed."""

    @property
    def bytes(self) -> int:
        """Size of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_load(file: Path, instance: Instance) -> Recording:
    """Read expert loads: .npz (``load``), .npy or .csv with counts [MoE layers, experts].

    Raises
    ------
    InputError
        The file is missing, damaged, hostile, or does not fit the instance's model.
    """
    expected = (len(instance.moe_layers), instance.model.experts)
    if file.suffix.lower() == ".csv":
        load = _csv(file)
        _check_load_shape(file, load.shape, expected)
    else:
        with open_array(file, "load") as (stream, header):
            if header.dtype.kind not in "iuf":
                raise wrong(file, "load", f"values of type {header.dtype}", "numbers")
            _check_load_shape(file, header.shape, expected)
            load = _whole(file, "load", stream, header).astype(np.float64)
    outside = ~((load >= 0) & (load <= _MOST))  # NaN is outside, too
    if outside.any():
        layer, expert = map(int, np.argwhere(outside)[0])
        raise wrong(file, f"load[{layer}, {expert}]", f"{load[layer, expert]:g}", f"a count from 0 to {_MOST:g}")
    empty = np.flatnonzero(load.sum(axis=1) < _LEAST)
    if len(empty):
        raise wrong(file, f"load[{empty[0]}]", "a layer without any load", "some load in every layer")
    return Recording(visible(file.name), load, load.sum(axis=1) / instance.model.top_k)


def read_array(file: Path, key: str) -> npt.NDArray[Any]:
    """Read one array of a .npz file as it is.

    Raises
    ------
    InputError
        The file is missing, damaged or hostile, or has no such array, or an empty one.
    """
    with open_array(file, key) as (stream, header):
        if not header.bytes or not header.shape:
            raise wrong(file, key, f"shape {header.shape}", "at least one entry")
        return _whole(file, key, stream, header)


def wrong(file: Path, path: str, found: str, expected: str) -> InputError:
    """Say what is wrong with a file.

    Parameters
    ----------
    file : Path
        Where the mistake is.
    path : str
        The array, or the place in it.
    found, expected : str
        What stands there, and what should.
    """
    return InputError(Mistake(found, expected, path, file))


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:200]  # what NumPy adds is advice for programmers


def _check_load_shape(file: Path, shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    if shape != expected:
        raise wrong(file, "load", f"shape {shape}", f"{expected} [MoE layers, experts]")


@contextmanager
def open_array(
    file: Path, key: str, most: int | None = None, streamed: bool = False
) -> Iterator[tuple[IO[bytes], ArrayHeader]]:
    """Open one array of at most ``most`` bytes, without running or inflating anything that the file smuggles in.

    Parsing an untrusted zip archive and .npy header raises errors of many kinds; all mean the same to the user.

    Parameters
    ----------
    file : Path
    key : str
        Name of the array in a .npz file.
    most : int, optional
        Bytes of its values beyond which it is refused; absent, `MAX_BYTES`.
    streamed : bool
        Whether it is read in blocks: one that is not packed may then be as large as its file.
    """
    npy = file.suffix.lower() == ".npy"
    kind = "a NumPy .npy file" if npy else f"a NumPy .npz file with `{key}`"
    _check_is_file(file, kind)
    try:
        with file.open("rb") as raw, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = _MAX_STORED_BYTES if streamed else most
            if npy:
                header = _read_header(raw, file.stat().st_size, stored)
                yield raw, replace(header, place=(raw.fileno(), raw.tell()))
                return
            with zipfile.ZipFile(raw) as archive:
                if f"{key}.npy" not in archive.namelist():
                    raise wrong(file, "", f"no array `{key}`", kind)
                member = archive.getinfo(f"{key}.npy")
                _refuse_bomb(file, key, member)
                plain = member.compress_type == zipfile.ZIP_STORED
                with archive.open(member) as stream:
                    header = _read_header(stream, member.file_size, stored if plain else most)
                    if plain:
                        start = _start_of_member(raw.fileno(), member) + stream.tell()
                        header = replace(header, place=(raw.fileno(), start))
                    yield stream, header
    except InputError:
        raise
    except Exception as error:
        raise wrong(file, "", f"a file that cannot be read ({_reason(error)})", kind) from None


def read_rows(stream: IO[bytes], header: ArrayHeader) -> Iterator[npt.NDArray[Any]]:
    """Yield blocks of the rows of an array that is in C order, as `open_array` gives it."""
    for _, block in read_blocks(stream, header, math.prod(header.shape[1:])):
        yield block.reshape(-1, *header.shape[1:])


def names_of_arrays(file: Path) -> list[str]:
    """List the arrays of a .npz file, in order.

    Raises
    ------
    InputError
        The file is missing or damaged.
    """
    kind = "a NumPy .npz file"
    _check_is_file(file, kind)
    try:
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except Exception as error:
        raise wrong(file, "", f"a file that cannot be read ({_reason(error)})", kind) from None


def array_of_bytes(raw: bytes) -> npt.NDArray[Any]:
    """Return the array that the bytes of a .npy file hold; nothing is unpickled.

    Raises
    ------
    ValueError
        They are no such bytes, or some are missing.
    """
    stream = io.BytesIO(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = _read_header(stream, len(raw))
    values = np.frombuffer(raw, header.dtype, offset=stream.tell())
    return values.reshape(header.shape, order="F" if header.fortran else "C")


def _refuse_bomb(file: Path, key: str, member: zipfile.ZipInfo) -> None:
    """Refuse what grows out of proportion when unpacked, before a byte of it is."""
    unpacked, packed = member.file_size, member.compress_size
    if unpacked > max(_TOO_SMALL_BYTES, _MOST_RATIO * packed):
        expected = f"at most {_MOST_RATIO} times as much (a zip bomb?); if it is real, store it with numpy.savez"
        raise wrong(file, key, f"{packed:,} bytes that unpack to {unpacked:,}", expected)


def _start_of_member(descriptor: int, member: zipfile.ZipInfo) -> int:
    """Return where the bytes of a member begin: after its header and, as that says, its name and more fields."""
    head = os.pread(descriptor, 30, member.header_offset)
    name, fields = struct.unpack("<HH", head[26:30])
    return int(member.header_offset + 30 + name + fields)


def _check_is_file(file: Path, kind: str) -> None:
    """Refuse folders, and pipes and devices that would block or never end."""
    try:
        if file.is_file():
            return
        found = "a folder" if file.is_dir() else "no ordinary file" if file.exists() else "no such file"
    except (OSError, ValueError) as error:  # a path that no system allows
        found = f"a file that cannot be read ({_reason(error)})"
    raise wrong(file, "", found, kind)


def _read_header(stream: IO[bytes], size: int, most: int | None = None) -> ArrayHeader:
    """Read the header of an .npy stream of ``size`` bytes, with which it must agree."""
    version = np.lib.format.read_magic(stream)
    if version not in {(1, 0), (2, 0), (3, 0)}:
        raise ValueError(f"its format version {version} is unknown")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(stream)
    except (SyntaxError, tokenize.TokenError):  # NumPy tries headers of Python 2 too, and lets these through
        raise ValueError("its header is damaged") from None
    if dtype.hasobject:
        raise ValueError("it contains pickled Python objects, which are never loaded")
    header = ArrayHeader(shape, fortran, dtype)
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape {shape} is negative")
    limit = most or MAX_BYTES
    if header.bytes > limit:
        raise ValueError(f"more than {limit / 1e9:g} GB once unpacked")
    if stream.tell() + header.bytes != size:
        raise ValueError("its header and its size disagree: truncated?")
    return header


def read_blocks(stream: IO[bytes], header: ArrayHeader, row: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield an array's values in the order of the file: number of the first, and a block of ``row`` or a multiple."""
    count, size = math.prod(header.shape), header.dtype.itemsize
    step = max(1, _BLOCK_BYTES // (row * size)) * row
    for start in range(0, count, step):
        wanted = min(step, count - start) * size
        data = stream.read(wanted)
        if len(data) != wanted:
            raise ValueError("truncated")
        yield start, np.frombuffer(data, header.dtype)
    if stream.read(1):  # only at the end is the checksum compared
        raise ValueError("more data than its header says")


def _whole(file: Path, key: str, stream: IO[bytes], header: ArrayHeader) -> npt.NDArray[Any]:
    """Read an array as it is, into the memory that its header declares."""
    _refuse_more_than_memory(file, key, f"an array of shape {header.shape}", header.bytes)
    flat = np.empty(math.prod(header.shape), header.dtype)
    for start, block in read_blocks(stream, header, 1):
        flat[start : start + len(block)] = block
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def _refuse_more_than_memory(file: Path, key: str, what: str, needed: int) -> None:
    left = available_memory()
    if needed > left:
        expected = f"at most the {left / 1e9:,.1f} GB of memory that are left here"
        raise wrong(file, key, f"{what}: {needed / 1e9:,.1f} GB", expected)


def _csv(file: Path) -> npt.NDArray[np.float64]:
    kind = "a .csv file of counts: one row per MoE layer, one column per expert"
    _check_is_file(file, kind)
    raw = read_bounded(file, MAX_CSV_BYTES, kind)
    try:
        text = raw.decode("utf-8-sig")
        if not text.strip():
            raise ValueError("it is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float64, ndmin=2)
    except UnicodeDecodeError as error:
        raise wrong(file, "", f"bytes that are not text (at byte {error.start})", kind) from None
    except (ValueError, MemoryError) as error:
        raise wrong(file, "", f"a file that cannot be read ({_reason(error)})", kind) from None
