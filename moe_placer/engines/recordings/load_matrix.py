"""Counts [layers, experts] or [steps, layers, experts] that somebody has added up: .npy, .npz, .csv, .json, .parquet.

JSON may also be SGLang's ``{"logical_count": ...}`` or ADRS's ``{"load_history": [{"logical_expert_load": ...}]}``.
Tables (.csv, .parquet) have a row for each layer and a column for each expert, or the columns layer, expert and count.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.engines.recordings.import_options import Options
from moe_placer.engines.recordings.recorded import Found, Recorded, finish
from moe_placer.engines.recordings.tally import MOST_EXPERTS, Tally
from moe_placer.errors import InputError, Mistake
from moe_placer.files import not_json, read_bounded
from moe_placer.traffic.readers import names_of_arrays, read_array
from moe_placer.traffic.token_table import table_library

__all__ = ["LOAD_SUFFIXES", "read_load_matrices"]

LOAD_SUFFIXES = {".npy", ".npz", ".csv", ".json", ".parquet"}

_KIND = "counts [layers, experts] or [steps, layers, experts]"
_MOST_TEXT_BYTES = 64_000_000
_MOST_CELLS = 10_000_000  # of a table in .parquet, which may be packed
_MOST_COUNT = 2**53
_WHOLE = f"a whole number from 0 to {_MOST_COUNT:,}; shares can be used as they are (traffic.kind: load)"
_LONG = ("layer", "expert", "count")

Floats = npt.NDArray[np.float64]


def read_load_matrices(files: Sequence[Path], options: Options) -> Recorded:
    """Read counts; the steps of several files follow one another, and a layer without counts is dense."""
    tables = [_checked(file, _READERS[file.suffix.lower()](file)) for file in files]
    layers, experts = tables[0].shape[1:]
    for file, table in zip(files, tables, strict=True):
        if table.shape[1:] != (layers, experts):
            expected = f"{layers} layers and {experts} experts as in {files[0].name}"
            raise InputError(Mistake(f"{table.shape[1]} layers and {table.shape[2]} experts", expected, file=file))
    tally = Tally(layers, experts, sources=0, steps=sum(map(len, tables)))
    step = 0
    with options.progress(tally.steps, "steps") as advance:
        for table in tables:
            for counts in table:
                if counts.any():
                    tally.add_counts(counts, step)
                else:
                    tally.empty_steps += 1
                step += 1
                advance(1)
    dense = not tally.load.any(axis=1).all()
    notes = ["which rank a token started on is not recorded"]
    return finish(tally, Found("counts by layer and expert", "", files, decoder_rows=dense, notes=notes))


def _checked(file: Path, table: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return counts [steps, layers, experts] as whole numbers."""
    table = table[None] if table.ndim == 2 else table
    if table.ndim != 3 or 0 in table.shape or table.shape[1] > 1000 or table.shape[2] > MOST_EXPERTS:
        raise InputError(Mistake(f"shape {list(table.shape)}", _KIND, file=file))
    if table.dtype.kind not in "iuf":
        raise InputError(Mistake(f"values of type {table.dtype}", "whole numbers", file=file))
    wrong = ~((table >= 0) & (table <= _MOST_COUNT)) | (table != np.floor(table))
    if wrong.any():
        at = tuple(map(int, np.argwhere(wrong)[0]))
        place = f"step {at[0]}, layer {at[1]}, expert {at[2]}"
        raise InputError(Mistake(f"{table[at]}", _WHOLE, place, file))
    if float(table.sum(dtype=np.float64)) > 2**62:
        raise InputError(Mistake("counts whose sum is beyond 64 bits", "smaller counts", file=file))
    return table.astype(np.int64)


def _numpy(file: Path) -> npt.NDArray[Any]:
    key = ""
    if file.suffix.lower() == ".npz":
        names = names_of_arrays(file)
        key = next(
            (name for name in ("load", "logical_count") if name in names), names[0] if len(names) == 1 else "load"
        )
    return read_array(file, key)


def _json(file: Path) -> npt.NDArray[Any]:
    raw = read_bounded(file, _MOST_TEXT_BYTES, _KIND)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(Mistake(not_json(error), _KIND, file=file)) from None
    if isinstance(content, dict):
        known = [key for key in ("logical_count", "load_history", "load") if key in content]
        if not known:
            raise InputError(
                Mistake("none of logical_count, load_history and load", f"one of them: {_KIND}", file=file)
            )
        content = content[known[0]]
        if known[0] == "load_history" and isinstance(content, list):
            content = [step.get("logical_expert_load") if isinstance(step, dict) else None for step in content]
    try:
        return np.array(content, dtype=None if content else np.float64)
    except (ValueError, OverflowError):
        raise InputError(Mistake("rows of several lengths", _KIND, file=file)) from None


def _csv(file: Path) -> npt.NDArray[Any]:
    raw = read_bounded(file, _MOST_TEXT_BYTES, _KIND)
    try:
        rows = [row for row in csv.reader(io.StringIO(raw.decode("utf-8-sig"))) if row and not row[0].startswith("#")]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(Mistake(f"a file that cannot be read ({str(error)[:100]})", _KIND, file=file)) from None
    names = [name.strip().lower() for name in rows[0]] if rows else []
    if rows and not _is_number(names[0]):
        return _table(file, names, rows[1:])
    return _floats(file, rows, 1)


def _table(file: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Floats:
    """Read a table with names of columns: layer, expert, count; or a first column layer and one for each expert."""
    if not rows:
        raise InputError(Mistake("names of columns alone", _KIND, file=file))
    values = _floats(file, rows, 2)
    if values.shape[1] != len(names):
        raise InputError(Mistake(f"rows of {values.shape[1]} values", f"{len(names)}, as there are names", file=file))
    if set(_LONG) <= set(names):
        return _from_long(file, *(values[:, names.index(name)] for name in _LONG))
    if names[0] != "layer":
        raise InputError(
            Mistake(f"columns {', '.join(names)[:60]}", "layer, expert, count; or layer and experts", file=file)
        )
    return values[np.argsort(values[:, 0], kind="stable"), 1:]


def _from_long(file: Path, layer: Floats, expert: Floats, count: Floats) -> Floats:
    for name, ids, most in (("layer", layer, 999), ("expert", expert, MOST_EXPERTS - 1)):
        if not len(ids) or not ((ids >= 0) & (ids <= most) & (ids == np.floor(ids))).all():
            raise InputError(Mistake("ids outside that, or none", f"whole numbers from 0 to {most}", name, file))
    table = np.zeros((int(layer.max()) + 1, int(expert.max()) + 1))
    np.add.at(table, (layer.astype(np.int64), expert.astype(np.int64)), count)
    return table


def _floats(file: Path, rows: Sequence[Sequence[str]], first: int) -> Floats:
    try:
        return np.array([[float(cell) for cell in row] for row in rows])
    except ValueError as error:
        found = f"a row that is no row of numbers, or of another length ({str(error)[:80]})"
        raise InputError(Mistake(found, _KIND, file=file, line=_bad_line(rows, first))) from None


def _bad_line(rows: Sequence[Sequence[str]], first: int) -> int | None:
    for number, row in enumerate(rows, first):
        if len(row) != len(rows[0]) or not all(map(_is_number, row)):
            return number
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet(file: Path) -> npt.NDArray[Any]:
    """Read a table; pyarrow comes with the extra ``parquet``."""
    pyarrow = table_library(file)
    if not file.is_file():
        raise InputError(Mistake("no such file", _KIND, file=file))
    try:
        about = pyarrow.parquet.ParquetFile(file).metadata
        cells = about.num_rows * about.num_columns
        if cells > _MOST_CELLS:
            raise ValueError(f"{about.num_rows:,} rows of {about.num_columns:,} columns")
        table = pyarrow.parquet.read_table(file)
        columns = {name.lower(): table.column(name).to_numpy() for name in table.column_names}
        values = {name: column.astype(np.float64) for name, column in columns.items()}
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise InputError(
            Mistake(f"a file that cannot be read ({str(error).splitlines()[0][:100]})", _KIND, file=file)
        ) from None
    if set(_LONG) <= set(values):
        return _from_long(file, *(values[name] for name in _LONG))
    names = [name for name in values if name != "layer"]
    whole = np.stack([values[name] for name in names], axis=1) if names else np.zeros((0, 0))
    return whole[np.argsort(values["layer"], kind="stable")] if "layer" in values else whole


_READERS = {".npy": _numpy, ".npz": _numpy, ".csv": _csv, ".json": _json, ".parquet": _parquet}
