"""Reads files no further than they should go, and writes them whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from moe_placer.errors import InputError, Mistake, visible

__all__ = [
    "parse_json",
    "policy_hash",
    "read_bounded",
    "refuse_hidden_characters",
    "replaced_atomically",
    "write_atomically",
]

# Escapes in JSON that may be of such characters, or these as they are: where there are none, no text need be looked at.
_HIDDEN = re.compile(
    r"\\u(?:00[01189]|007f|d[89a-f]|061c|20[026])|[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]|\\[bf]",
    re.IGNORECASE,
)
_LAYOUT = dict.fromkeys(map(ord, "\n\r\t"))


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
        It is not JSON, or some text in it has characters that are not for reading.
    """
    try:
        text = raw.decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=_without_duplicates)
        refuse_hidden_characters(text, content, expected, path)
        return content
    except RecursionError:
        raise InputError(Mistake("deeply nested JSON", expected, file=path)) from None
    except UnicodeDecodeError as error:
        found = f"bytes that are not JSON: no UTF-8 text from byte {error.start} on"
        raise InputError(Mistake(found, expected, file=path)) from None
    except ValueError as error:
        raise InputError(Mistake(f"text that is not JSON ({error})", expected, file=path)) from None


def refuse_hidden_characters(raw: str, content: Any, expected: str, path: Path, line: int | None = None) -> None:
    """Refuse JSON with a text that terminals, browsers or drawing libraries would act on instead of showing it.

    Parameters
    ----------
    raw, content : str and object
        Before and after parsing.

    Raises
    ------
    InputError
        It names the first such text; line breaks and tabs are allowed.
    """
    if not _HIDDEN.search(raw):
        return
    for text in _texts(content):
        if visible(letters := text.translate(_LAYOUT)) != letters:
            found = f"control or direction characters in {text[:60]!r}"
            raise InputError(Mistake(found, f"{expected}, with characters that can be read", file=path, line=line))


def _texts(content: Any) -> Iterator[str]:
    """Yield every key and every text of a JSON value."""
    todo = [content]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from value
            todo += value.values()
        elif isinstance(value, list):
            todo += value


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


def policy_hash(text: str) -> str:
    """Return the name by which a page's content security policy allows exactly this program or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
