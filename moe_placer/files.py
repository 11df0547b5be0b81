"""Reads files no further than they should go, and writes them whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from moe_placer.errors import InputError, Mistake

__all__ = ["parse_json", "read_bounded", "replaced_atomically", "write_atomically"]


def read_bounded(path: Path, most: int, expected: str) -> bytes:
    """Return a file's bytes.

    Parameters
    ----------
    most : int
        Bytes beyond which it is refused; an endless device is read no further.
    expected : str
        What the file should be, for the message.

    Raises
    ------
    InputError
        It is missing, unreadable, or too large.
    """
    try:
        if path.is_dir():
            raise InputError(Mistake("a folder", expected, file=path))
        with path.open("rb") as stream:
            raw = stream.read(most + 1)
    except FileNotFoundError:
        raise InputError(Mistake("no such file", expected, file=path)) from None
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(Mistake(f"a file that cannot be read ({reason})", expected, file=path)) from None
    if len(raw) > most:
        raise InputError(Mistake(f"more than {most / 1e6:g} MB", expected, file=path))
    return raw


def parse_json(raw: bytes, expected: str, path: Path) -> Any:
    """Return what JSON text says; duplicate keys are refused.

    Parameters
    ----------
    raw : bytes
        UTF-8 text.
    expected : str
        What the file should be, for the message.
    path : Path
        Where it is from, likewise.

    Raises
    ------
    InputError
        It is not JSON.
    """
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise InputError(Mistake("deeply nested JSON", expected, file=path)) from None
    except UnicodeDecodeError as error:
        found = f"bytes that are not JSON: no UTF-8 text from byte {error.start} on"
        raise InputError(Mistake(found, expected, file=path)) from None
    except ValueError as error:
        raise InputError(Mistake(f"text that is not JSON ({error})", expected, file=path)) from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:60]!r} stands twice in one object")
        result[key] = value
    return result


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path``, creating folders; a reader sees the old file or the new one, never a part.

    Raises
    ------
    InputError
        The place cannot be written to.
    """
    with replaced_atomically(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replaced_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Give a stream whose content takes the place of ``path`` once all is written; on an error, nothing changes.

    Raises
    ------
    InputError
        The place cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            umask = os.umask(0)
            os.umask(umask)
            Path(name).chmod(0o666 & ~umask)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        found = f"a place that cannot be written to ({error.strerror or error})"
        raise InputError(Mistake(found, "a writable folder with space left", file=path)) from None
