"""Reads recorded traces and loads, and trusts nothing in them."""

from __future__ import annotations

import io
import math
import tokenize
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    "read_load",
    "read_rows",
    "read_trace",
]

Ids = npt.NDArray[np.integer]

MAX_BYTES = 8_000_000_000  # of one array
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

    @property
    def bytes(self) -> int:
        """Size of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_trace(file: Path, instance: Instance) -> Recording:
    """Read a .npz file with ``topk`` [tokens, MoE layers, top_k].

    Raises
    ------
    InputError
        The file is missing, damaged, hostile, or does not fit the instance's model.
    """
    with open_array(file, "topk") as (stream, header):
        _check_topk_header(file, header, instance)
        topk, load = _read_topk(file, stream, header, instance.model.experts)
    return Recording(visible(file.name), load, np.full(len(load), float(len(topk))), topk)


def _read_topk(file: Path, stream: IO[bytes], header: ArrayHeader, experts: int) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Return the ids [tokens, layers, top_k] and how often each expert was chosen [layers, experts].

    The ids, in the smallest type that holds them, are all that is ever in memory, but for one block: what that takes
    is known from the header, and refused where the machine has not as much left.
    """
    kind = np.dtype(np.uint8 if experts <= 256 else np.uint16)
    tokens, layers, top_k = header.shape
    needed = math.prod(header.shape) * kind.itemsize
    _refuse_more_than_memory(file, "topk", f"choices of {tokens:,} tokens", needed)
    flat = np.empty(math.prod(header.shape), kind)
    ids = flat.reshape(header.shape, order="F" if header.fortran else "C")
    load = np.zeros((layers, experts))

    def count(first: int, last: int) -> None:
        _check_different(file, ids[first:last], first)
        for layer in range(layers):
            load[layer] += np.bincount(ids[first:last, layer].ravel(), minlength=experts)

    # In C order a block is whole tokens, so what is wrong with one is told at once.
    for start, block in _blocks(stream, header, 1 if header.fortran else layers * top_k):
        _check_ids(file, block, start, header, experts)
        flat[start : start + len(block)] = block
        if not header.fortran:
            count(start // (layers * top_k), (start + len(block)) // (layers * top_k))
    if header.fortran:
        step = max(1, _BLOCK_BYTES // (layers * top_k * kind.itemsize))
        for first in range(0, tokens, step):
            count(first, min(first + step, tokens))
    return ids, load


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
                raise _wrong(file, "load", f"values of type {header.dtype}", "numbers")
            _check_load_shape(file, header.shape, expected)
            load = _whole(file, "load", stream, header).astype(np.float64)
    outside = ~((load >= 0) & (load <= _MOST))  # NaN is outside, too
    if outside.any():
        layer, expert = map(int, np.argwhere(outside)[0])
        raise _wrong(file, f"load[{layer}, {expert}]", f"{load[layer, expert]:g}", f"a count from 0 to {_MOST:g}")
    empty = np.flatnonzero(load.sum(axis=1) < _LEAST)
    if len(empty):
        raise _wrong(file, f"load[{empty[0]}]", "a layer without any load", "some load in every layer")
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
            raise _wrong(file, key, f"shape {header.shape}", "at least one entry")
        return _whole(file, key, stream, header)


def _wrong(file: Path, path: str, found: str, expected: str) -> InputError:
    return InputError(Mistake(found, expected, path, file))


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:200]  # what NumPy adds is advice for programmers


def _check_topk_header(file: Path, header: ArrayHeader, instance: Instance) -> None:
    """Refuse what does not fit the model before any memory is taken for it."""
    layers, top_k = len(instance.moe_layers), instance.model.top_k
    if header.dtype.kind not in "iu":
        raise _wrong(file, "topk", f"values of type {header.dtype}", "whole numbers (expert ids)")
    if len(header.shape) != 3:
        raise _wrong(file, "topk", f"shape {header.shape}", f"[tokens, {layers} MoE layers, top_k {top_k}]")
    mistakes = []
    if header.shape[0] == 0:
        mistakes.append(Mistake("no tokens", "at least one token", "topk", file))
    if header.shape[1] != layers:
        mistakes.append(Mistake(f"{header.shape[1]} layers", f"{layers} (the instance's MoE layers)", "topk", file))
    if header.shape[2] != top_k:
        mistakes.append(Mistake(f"{header.shape[2]} experts a token", f"model.top_k ({top_k})", "topk", file))
    if mistakes:
        raise InputError(mistakes)


def _check_ids(file: Path, block: Ids, start: int, header: ArrayHeader, experts: int) -> None:
    """Check a block of ids whose first is number ``start`` of the file."""
    if block.min() < 0 or block.max() >= experts:
        first = int(np.argmax((block < 0) | (block >= experts)))
        place = np.unravel_index(start + first, header.shape, "F" if header.fortran else "C")
        found, expected = f"expert id {block[first]}", f"ids from 0 to {experts - 1} (model.experts)"
        raise _wrong(file, f"topk[{', '.join(map(str, place))}]", found, expected)


def _check_different(file: Path, ids: Ids, first: int) -> None:
    """Check that no token [tokens, MoE layers, top_k], the first being number ``first``, has one expert twice."""
    ordered = np.sort(ids, axis=2)
    same = ordered[:, :, 1:] == ordered[:, :, :-1]
    if same.any():
        token, layer = map(int, np.argwhere(same)[0][:2])
        found = f"one expert twice: {list(map(int, ids[token, layer]))}"
        raise _wrong(file, f"topk[{first + token}, {layer}]", found, "different experts")


def _check_load_shape(file: Path, shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    if shape != expected:
        raise _wrong(file, "load", f"shape {shape}", f"{expected} [MoE layers, experts]")


@contextmanager
def open_array(file: Path, key: str, most: int | None = None) -> Iterator[tuple[IO[bytes], ArrayHeader]]:
    """Open one array of at most ``most`` bytes, without running or inflating anything that the file smuggles in.

    Parsing an untrusted zip archive and .npy header raises errors of many kinds; all mean the same to the user.
    """
    npy = file.suffix.lower() == ".npy"
    kind = "a NumPy .npy file" if npy else f"a NumPy .npz file with `{key}`"
    _check_is_file(file, kind)
    try:
        with file.open("rb") as raw, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if npy:
                yield raw, _read_header(raw, file.stat().st_size, most)
                return
            with zipfile.ZipFile(raw) as archive:
                if f"{key}.npy" not in archive.namelist():
                    raise _wrong(file, "", f"no array `{key}`", kind)
                member = archive.getinfo(f"{key}.npy")
                _refuse_bomb(file, key, member)
                with archive.open(member) as stream:
                    yield stream, _read_header(stream, member.file_size, most)
    except InputError:
        raise
    except Exception as error:
        raise _wrong(file, "", f"a file that cannot be read ({_reason(error)})", kind) from None


def read_rows(stream: IO[bytes], header: ArrayHeader) -> Iterator[npt.NDArray[Any]]:
    """Yield blocks of the rows of an array that is in C order, as `open_array` gives it."""
    for _, block in _blocks(stream, header, math.prod(header.shape[1:])):
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
        raise _wrong(file, "", f"a file that cannot be read ({_reason(error)})", kind) from None


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
        raise _wrong(file, key, f"{packed:,} bytes that unpack to {unpacked:,}", expected)


def _check_is_file(file: Path, kind: str) -> None:
    """Refuse folders, and pipes and devices that would block or never end."""
    try:
        if file.is_file():
            return
        found = "a folder" if file.is_dir() else "no ordinary file" if file.exists() else "no such file"
    except (OSError, ValueError) as error:  # a path that no system allows
        found = f"a file that cannot be read ({_reason(error)})"
    raise _wrong(file, "", found, kind)


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


def _blocks(stream: IO[bytes], header: ArrayHeader, row: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Read an array's values in the order of the file: number of the first, and a block of ``row`` or a multiple."""
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
    for start, block in _blocks(stream, header, 1):
        flat[start : start + len(block)] = block
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def _refuse_more_than_memory(file: Path, key: str, what: str, needed: int) -> None:
    left = available_memory()
    if needed > left:
        expected = f"at most the {left / 1e9:,.1f} GB of memory that are left here"
        raise _wrong(file, key, f"{what}: {needed / 1e9:,.1f} GB", expected)


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
        raise _wrong(file, "", f"bytes that are not text (at byte {error.start})", kind) from None
    except (ValueError, MemoryError) as error:
        raise _wrong(file, "", f"a file that cannot be read ({_reason(error)})", kind) from None
