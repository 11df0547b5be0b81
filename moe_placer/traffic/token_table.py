"""Token choices in tables, Parquet or Arrow: a row for each token and MoE layer, read a batch of rows at a time."""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake
from moe_placer.traffic.readers import wrong
from moe_placer.workers import available_memory

__all__ = ["TABLE_SUFFIXES", "TableBlock", "TokenTable", "is_token_table", "open_token_table", "table_library"]

TABLE_SUFFIXES = frozenset({".parquet", ".arrow", ".feather"})
OF_TOKENS = ("token", "source", "seq")  # columns that say the same in all rows of a token
_KIND = "a table of tokens: whole numbers `layer`, lists `experts`, and where known `token`, `source`, `seq`"
_BLOCK_BYTES = 16_000_000
_MOST_LAYERS = 1000
_MOST_TOP_K = 256

Ids = npt.NDArray[np.integer]
Ints = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TableBlock:
    """Some tokens of a table, in order.

    Attributes
    ----------
    ids : int array [tokens, layers, top_k]
    of_tokens : mapping
        ``token``, ``source`` and ``seq`` [tokens], as far as they are there and were asked for.
    """

    ids: Ids
    of_tokens: Mapping[str, Ints]


@dataclass(frozen=True)
class TokenTable:
    """What a table declares, and what its first rows show.

    Attributes
    ----------
    file : Path
    tokens : int
    layers : tuple of int
        What ``layer`` says in the rows of each token, in ascending order.
    top_k : int
    names : tuple of str
        Of the columns of tokens that are there: ``token``, ``source``, ``seq``.
    """

    file: Path
    tokens: int
    layers: tuple[int, ...]
    top_k: int
    names: tuple[str, ...]

    def blocks(self, names: Collection[str] = OF_TOKENS) -> Iterator[TableBlock]:
        """Read all tokens, and of the columns of tokens those that are asked for and there.

        Raises
        ------
        InputError
            Some row is not as the first ones are.
        """
        each, first = len(self.layers), 0
        rest: Columns = {}
        with _refused(self.file):
            step = max(1, _BLOCK_BYTES // (8 * self.top_k * each)) * each
            wanted = [name for name in self.names if name in names]
            for batch in _batches(self.file, ("layer", "experts", *wanted), step):
                here = _columns(self.file, batch, first + len(rest.get("layer", ())))
                columns = {name: np.concatenate([rest[name], here[name]]) if rest else here[name] for name in here}
                whole = len(columns["layer"]) // each * each
                rest = {name: values[whole:] for name, values in columns.items()}
                if whole:
                    yield self._block({name: values[:whole] for name, values in columns.items()}, first)
                first += whole
        if first != self.tokens * each:
            raise wrong(self.file, "", f"{first:,} rows", f"{self.tokens * each:,}, as the file declares")

    def numbers(self, name: str) -> Iterator[Ints]:
        """Yield what the column ``source`` or ``seq`` says of each token, in blocks, and read no other column.

        Raises
        ------
        InputError
            It cannot be read.
        """
        each, first = len(self.layers), 0
        with _refused(self.file):
            for batch in _batches(self.file, (name,), max(1, _BLOCK_BYTES // 8)):
                values = _columns(self.file, batch, first)[name]
                yield values[-first % each :: each].astype(np.int64)
                first += len(values)

    def _block(self, columns: Columns, first: int) -> TableBlock:
        ids, each = columns.pop("experts"), len(self.layers)
        if ids.shape[1] != self.top_k:
            raise wrong(self.file, f"experts, row {first}", f"{ids.shape[1]} ids", f"{self.top_k}, as in the first row")
        for name, values in columns.items():
            table = values.reshape(-1, each)
            other = table != (np.array(self.layers) if name == "layer" else table[:, :1])
            if other.any():
                row = int(np.argmax(other))
                same = f"{self.layers[row % each]}: every token has the same layers, in ascending order"
                expected = same if name == "layer" else f"{table[row // each, 0]}, as in the token's first row"
                raise wrong(self.file, f"{name}, row {first + row}", f"{values[row]}", expected)
        of_tokens = {name: values[::each].astype(np.int64) for name, values in columns.items() if name != "layer"}
        return TableBlock(ids.reshape(-1, each, self.top_k), of_tokens)


def is_token_table(file: Path) -> bool:
    """Whether a file is a table with every token's choice, rather than one of counts.

    Raises
    ------
    InputError
        It is a table by its name, but missing or damaged.
    """
    if file.suffix.lower() not in TABLE_SUFFIXES:
        return False
    with _refused(file):
        return "experts" in _names(file)


def open_token_table(file: Path) -> TokenTable:
    """Say what a table holds, from what it declares and from the rows of its first token.

    Raises
    ------
    InputError
        It is missing, damaged, of other columns, or declares parts that do not fit memory.
    """
    with _refused(file):
        names = _names(file)
        missing = [name for name in ("layer", "experts") if name not in names]
        if missing:
            raise wrong(file, "", f"no column {' and no column '.join(missing)}", _KIND)
        rows = _declared_rows(file)
        layers, top_k = _first_token(file)
        if not rows or rows % len(layers):
            expected = f"a multiple of {len(layers)}, the layers of the first token" if rows else "some tokens"
            raise wrong(file, "", f"{rows:,} rows", expected)
        if (np.diff(layers) <= 0).any() or layers[0] < 0 or top_k < 1:
            expected = "different layers from 0 on, in ascending order, and one expert or more"
            raise wrong(file, "layer", f"a first token with layers {layers[:8]} and {top_k} experts", expected)
        return TokenTable(file, rows // len(layers), tuple(layers), top_k, tuple(n for n in OF_TOKENS if n in names))


def _first_token(file: Path) -> tuple[list[int], int]:
    """Return the layers of the first token, which end where the first one comes again, and how many experts it has."""
    layers: list[int] = []
    top_k = 0
    for batch in _batches(file, ("layer", "experts"), _MOST_LAYERS + 1):
        columns = _columns(file, batch, len(layers))
        top_k = top_k or int(columns["experts"].shape[1])
        layers += columns["layer"].tolist()
        if layers[0] in layers[1:]:
            return layers[: layers.index(layers[0], 1)], top_k
        if len(layers) > _MOST_LAYERS:
            raise wrong(file, "layer", f"more than {_MOST_LAYERS:,} layers in the first token", "those of a model")
    return layers or [0], top_k


def _columns(file: Path, batch: Any, first: int) -> Columns:
    """Return a batch's columns as arrays; ``experts`` [rows, top_k]."""
    found: Columns = {}
    for name in batch.schema.names:
        column = batch.column(name)
        column.validate(full=True)
        values = column.flatten() if name == "experts" else column
        if column.null_count or values.null_count:
            raise wrong(file, name, f"empty cells in rows from {first} on", "a value in every row")
        array = values.to_numpy(zero_copy_only=False)
        if array.dtype.kind not in "iu":
            raise wrong(file, name, f"values of type {values.type}", _KIND)
        if name == "experts":
            array = array.reshape(len(column), _list_length(file, column, first))
        found[name] = array
    return found


def _list_length(file: Path, column: Any, first: int) -> int:
    if hasattr(column.type, "list_size"):
        return int(column.type.list_size)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    other = np.flatnonzero(lengths != lengths[0])
    if len(other):
        expected = f"{lengths[0]}, as in others"
        raise wrong(file, f"experts, row {first + int(other[0])}", f"{lengths[other[0]]} ids", expected)
    if lengths[0] > _MOST_TOP_K:
        raise wrong(file, "experts", f"{lengths[0]} ids", f"at most {_MOST_TOP_K}")
    return int(lengths[0])


def table_library(file: Path) -> ModuleType:
    """Import what reads tables; it comes with the extra ``parquet``.

    Raises
    ------
    InputError
        It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        expected = "the extra that reads it: pip install 'moe-placer[parquet]'"
        raise InputError(Mistake(f"a {file.suffix} file", expected, file=file)) from None
    library: ModuleType = pyarrow
    return library


@contextmanager
def _refused(file: Path) -> Iterator[None]:
    """Say of a damaged table that it cannot be read."""
    library = table_library(file)
    if not file.is_file():
        raise wrong(file, "", "no such file", _KIND)
    try:
        yield
    except InputError:
        raise
    except (library.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise wrong(file, "", f"a file that cannot be read ({reason})", _KIND) from None


def _names(file: Path) -> list[str]:
    if file.suffix.lower() == ".parquet":
        with table_library(file).parquet.ParquetFile(file) as stored:
            return list(stored.schema_arrow.names)
    return list(_arrow(file, None)[0].schema.names)


def _declared_rows(file: Path) -> int:
    """Count rows; refuse parts that are read at once and declare more than half of the memory that is left."""
    most = available_memory() / 2
    if file.suffix.lower() == ".parquet":
        with table_library(file).parquet.ParquetFile(file) as stored:
            about = stored.metadata
            groups = [about.row_group(at).total_byte_size for at in range(about.num_row_groups)]
            _refuse_large_part(file, "row groups", max(groups, default=0), most)
            return int(about.num_rows)
    reader = _arrow(file, ("layer",))[0]
    rows = [reader.get_batch(at).num_rows for at in range(reader.num_record_batches)]
    _refuse_large_part(file, "record batches", 8.0 * max(rows, default=0), most)
    return sum(rows)


def _refuse_large_part(file: Path, what: str, size: float, most: float) -> None:
    if size > most:
        found = f"{what} of {size / 1e9:,.1f} GB"
        raise wrong(file, "", found, f"at most {most / 1e9:,.1f} GB, half of the memory that is left here")


def _batches(file: Path, names: Sequence[str], rows: int) -> Iterator[Any]:
    """Yield record batches of at most so many rows, none of them empty."""
    if file.suffix.lower() == ".parquet":
        with table_library(file).parquet.ParquetFile(file) as stored:
            for batch in stored.iter_batches(batch_size=rows, columns=list(names), use_threads=False):
                if batch.num_rows:
                    yield batch
        return
    reader, mapped = _arrow(file, names)
    for at in range(reader.num_record_batches):
        batch = reader.get_batch(at)
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)
            if hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_DONTNEED)  # what was read no longer counts as this process's memory


def _arrow(file: Path, names: Sequence[str] | None) -> tuple[Any, mmap.mmap]:
    """Open a file of record batches, of which only some columns are read, and return it with its mapping."""
    library = table_library(file)
    with file.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    source = library.py_buffer(mapped)
    reader = library.ipc.open_file(source)
    if names is not None:
        fields = [reader.schema.get_field_index(name) for name in names]
        reader = library.ipc.open_file(source, options=library.ipc.IpcReadOptions(included_fields=fields))
    return reader, mapped
