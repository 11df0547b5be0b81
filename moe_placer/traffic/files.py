"""Reads recorded traces and loads, and trusts nothing in them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake
from moe_placer.instance import Instance
from moe_placer.traffic.recording import Recording

__all__ = ["read_load", "read_trace"]

MAX_BYTES = 8_000_000_000  # of one array; a zip bomb stops here


def read_trace(file: Path, instance: Instance) -> Recording:
    """Read a .npz file with ``topk`` [tokens, MoE layers, top_k].

    Raises
    ------
    InputError
        The file is missing, damaged, hostile, or does not fit the instance's model.
    """
    topk = _array(file, "topk")
    model, layers = instance.model, len(instance.moe_layers)
    mistakes = []
    if topk.ndim != 3:
        raise _wrong(file, "topk", f"shape {topk.shape}", f"[tokens, {layers} MoE layers, top_k {model.top_k}]")
    if not np.issubdtype(topk.dtype, np.integer):
        raise _wrong(file, "topk", f"numbers of type {topk.dtype}", "whole numbers (expert ids)")
    if topk.shape[0] == 0:
        mistakes.append(Mistake("no tokens", "at least one token", "topk", file))
    if topk.shape[1] != layers:
        mistakes.append(Mistake(f"{topk.shape[1]} layers", f"{layers} (the instance's MoE layers)", "topk", file))
    if topk.shape[2] != model.top_k:
        mistakes.append(Mistake(f"{topk.shape[2]} experts a token", f"model.top_k ({model.top_k})", "topk", file))
    if topk.size and (topk.min() < 0 or topk.max() >= model.experts):
        bad = np.argwhere((topk < 0) | (topk >= model.experts))[0]
        at = ", ".join(map(str, bad))
        found, expected = f"expert id {topk[tuple(bad)]}", f"ids from 0 to {model.experts - 1} (model.experts)"
        mistakes.append(Mistake(found, expected, f"topk[{at}]", file))
    if mistakes:
        raise InputError(mistakes)
    ordered = np.sort(topk, axis=2)
    twice = np.argwhere(ordered[:, :, 1:] == ordered[:, :, :-1])
    if len(twice):
        token, layer = twice[0][:2]
        raise _wrong(
            file, f"topk[{token}, {layer}]", f"one expert twice: {list(map(int, topk[token, layer]))}", "a set"
        )
    load = np.stack([np.bincount(topk[:, layer].ravel(), minlength=model.experts) for layer in range(layers)])
    return Recording(file.name, load.astype(np.float64), np.full(layers, float(topk.shape[0])), topk)


def read_load(file: Path, instance: Instance) -> Recording:
    """Read expert loads: .npz (``load``), .npy or .csv with counts [MoE layers, experts].

    Raises
    ------
    InputError
        The file is missing, damaged, hostile, or does not fit the instance's model.
    """
    load = _csv(file) if file.suffix == ".csv" else _array(file, "load")
    expected = (len(instance.moe_layers), instance.model.experts)
    if not (np.issubdtype(load.dtype, np.integer) or np.issubdtype(load.dtype, np.floating)):
        raise _wrong(file, "load", f"values of type {load.dtype}", "numbers")
    if load.shape != expected:
        raise _wrong(file, "load", f"shape {load.shape}", f"{expected} [MoE layers, experts]")
    load = load.astype(np.float64)
    if not np.isfinite(load).all() or load.min() < 0:
        at = ", ".join(map(str, np.argwhere(~np.isfinite(load) | (load < 0))[0]))
        raise _wrong(file, f"load[{at}]", "a count that is negative or not finite", "counts of 0 or more")
    empty = np.flatnonzero(load.sum(axis=1) == 0)
    if len(empty):
        raise _wrong(file, f"load[{empty[0]}]", "a layer without any load", "some load in every layer")
    return Recording(file.name, load, load.sum(axis=1) / instance.model.top_k)


def _wrong(file: Path, path: str, found: str, expected: str) -> InputError:
    return InputError(Mistake(found, expected, path, file))


def _array(file: Path, key: str) -> npt.NDArray[Any]:
    """Read one array without running or inflating anything that the file smuggles in."""
    kind = "a NumPy .npy file" if file.suffix == ".npy" else f"a NumPy .npz file with `{key}`"
    try:
        if file.suffix == ".npy":
            with file.open("rb") as stream:
                return _npy(stream, file.stat().st_size)
        with zipfile.ZipFile(file) as archive:
            member = archive.getinfo(f"{key}.npy")
            with archive.open(member) as stream:
                return _npy(stream, member.file_size)
    except FileNotFoundError:
        raise _wrong(file, "", "no such file", kind) from None
    except KeyError:
        raise _wrong(file, "", f"no array `{key}`", kind) from None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _wrong(file, "", f"a file that cannot be read ({reason})", kind) from None


def _npy(stream: IO[bytes], size: int) -> npt.NDArray[Any]:
    """Read an .npy stream of ``size`` bytes; the header must agree with the size before memory is taken."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it contains pickled Python objects, which are never loaded")
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if count * dtype.itemsize > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES / 1e9:g} GB once unpacked")
    if stream.tell() + count * dtype.itemsize != size:
        raise ValueError("its header and its size disagree: truncated?")
    data = stream.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise ValueError("truncated")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _csv(file: Path) -> npt.NDArray[np.float64]:
    try:
        return np.atleast_2d(np.loadtxt(file, delimiter=",", dtype=np.float64))
    except FileNotFoundError:
        raise _wrong(file, "", "no such file", "a .csv file of counts") from None
    except (OSError, ValueError) as error:
        raise _wrong(file, "", f"a file that cannot be read ({error})", "a .csv file: one row per MoE layer") from None
