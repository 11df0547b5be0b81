"""Reads recorded traces and loads, and trusts nothing in them."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake
from moe_placer.files import read_bounded
from moe_placer.instance import Instance
from moe_placer.traffic.recording import Recording

__all__ = ["read_array", "read_load", "read_trace"]

Ids = npt.NDArray[np.integer]

MAX_BYTES = 8_000_000_000  # of one array; a zip bomb stops here, or at the first block that is wrong
MAX_CSV_BYTES = 200_000_000  # 1000 layers of 8192 experts with 24 characters a count
_BLOCK_BYTES = 16_000_000  # read and checked at a time
_LEAST = 1e-9  # load of a layer; below, shares of it lose their meaning
_MOST = 1e18  # of one count; sums stay finite


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_trace(file: Path, instance: Instance) -> Recording:
    """Read a .npz file with ``topk`` [tokens, MoE layers, top_k].

    Raises
    ------
    InputError
        The file is missing, damaged, hostile, or does not fit the instance's model.
    """
    layers, experts = len(instance.moe_layers), instance.model.experts
    parts: list[Ids] = []
    load = np.zeros((layers, experts))
    with _open_array(file, "topk") as (stream, header):
        _check_topk_header(file, header, instance)
        for ids in _blocks(stream, header):
            first = sum(map(len, parts))
            _check_ids(file, ids, first, experts)
            parts.append(ids.astype(np.uint8 if experts <= 256 else np.uint16))
            load += [np.bincount(parts[-1][:, layer].ravel(), minlength=experts) for layer in range(layers)]
    topk = np.concatenate(parts)
    return Recording(file.name, load, np.full(layers, float(len(topk))), topk)


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
        with _open_array(file, "load") as (stream, header):
            if header.dtype.kind not in "iuf":
                raise _wrong(file, "load", f"values of type {header.dtype}", "numbers")
            _check_load_shape(file, header.shape, expected)
            load = np.concatenate(list(_blocks(stream, header))).astype(np.float64)
    outside = ~((load >= 0) & (load <= _MOST))  # NaN is outside, too
    if outside.any():
        layer, expert = map(int, np.argwhere(outside)[0])
        raise _wrong(file, f"load[{layer}, {expert}]", f"{load[layer, expert]:g}", f"a count from 0 to {_MOST:g}")
    empty = np.flatnonzero(load.sum(axis=1) < _LEAST)
    if len(empty):
        raise _wrong(file, f"load[{empty[0]}]", "a layer without any load", "some load in every layer")
    return Recording(file.name, load, load.sum(axis=1) / instance.model.top_k)


def read_array(file: Path, key: str) -> npt.NDArray[Any]:
    """Read one array of a .npz file as it is.

    Raises
    ------
    InputError
        The file is missing, damaged or hostile, or has no such array, or an empty one.
    """
    with _open_array(file, key) as (stream, header):
        if not header.bytes:
            raise _wrong(file, key, f"shape {header.shape}", "at least one entry")
        return np.concatenate(list(_blocks(stream, header)))


def _wrong(file: Path, path: str, found: str, expected: str) -> InputError:
    return InputError(Mistake(found, expected, path, file))


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:200]  # what NumPy adds is advice for programmers


def _check_topk_header(file: Path, header: _Header, instance: Instance) -> None:
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


def _check_ids(file: Path, ids: Ids, first: int, experts: int) -> None:
    """Check a block [tokens, MoE layers, top_k] whose first token is number ``first``."""
    if ids.min() < 0 or ids.max() >= experts:
        token, layer, choice = map(int, np.argwhere((ids < 0) | (ids >= experts))[0])
        found = f"expert id {ids[token, layer, choice]}"
        expected = f"ids from 0 to {experts - 1} (model.experts)"
        raise _wrong(file, f"topk[{first + token}, {layer}, {choice}]", found, expected)
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
def _open_array(file: Path, key: str) -> Iterator[tuple[IO[bytes], _Header]]:
    """Open one array without running or inflating anything that the file smuggles in.

    Parsing an untrusted zip archive and .npy header raises errors of many kinds; all mean the same to the user.
    """
    npy = file.suffix.lower() == ".npy"
    kind = "a NumPy .npy file" if npy else f"a NumPy .npz file with `{key}`"
    _check_is_file(file, kind)
    try:
        with file.open("rb") as raw, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if npy:
                yield raw, _read_header(raw, file.stat().st_size)
                return
            with zipfile.ZipFile(raw) as archive:
                if f"{key}.npy" not in archive.namelist():
                    raise _wrong(file, "", f"no array `{key}`", kind)
                member = archive.getinfo(f"{key}.npy")
                with archive.open(member) as stream:
                    yield stream, _read_header(stream, member.file_size)
    except InputError:
        raise
    except Exception as error:
        raise _wrong(file, "", f"a file that cannot be read ({_reason(error)})", kind) from None


def _check_is_file(file: Path, kind: str) -> None:
    """Refuse folders, and pipes and devices that would block or never end."""
    try:
        if file.is_file():
            return
        found = "a folder" if file.is_dir() else "no ordinary file" if file.exists() else "no such file"
    except (OSError, ValueError) as error:  # a path that no system allows
        found = f"a file that cannot be read ({_reason(error)})"
    raise _wrong(file, "", found, kind)


def _read_header(stream: IO[bytes], size: int) -> _Header:
    """Read the header of an .npy stream of ``size`` bytes, with which it must agree."""
    version = np.lib.format.read_magic(stream)
    if version not in {(1, 0), (2, 0), (3, 0)}:
        raise ValueError(f"its format version {version} is unknown")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it contains pickled Python objects, which are never loaded")
    header = _Header(shape, fortran, dtype)
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape {shape} is negative")
    if header.bytes > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES / 1e9:g} GB once unpacked")
    if stream.tell() + header.bytes != size:
        raise ValueError("its header and its size disagree: truncated?")
    return header


def _blocks(stream: IO[bytes], header: _Header) -> Iterator[npt.NDArray[Any]]:
    """Read an array of some rows block by block; of Fortran order, all at once, since no row is in one piece."""
    rows = header.shape[0]
    row_bytes = header.bytes // rows
    step = rows if header.fortran else max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        data = stream.read(count * row_bytes)
        if len(data) != count * row_bytes:
            raise ValueError("truncated")
        block = np.frombuffer(data, header.dtype)
        yield block.reshape((count, *header.shape[1:]), order="F" if header.fortran else "C")
    if stream.read(1):  # only at the end is the checksum compared
        raise ValueError("more data than its header says")


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
