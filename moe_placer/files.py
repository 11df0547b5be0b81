"""Reads files no further than they should go, and writes them whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from moe_placer.errors import InputError, Mistake, visible

__all__ = [
    "is_unfinished",
    "move_files",
    "not_json",
    "parse_json",
    "policy_hash",
    "read_bounded",
    "refuse_hidden_characters",
    "remove_unfinished",
    "removed_at_the_end",
    "replaced_atomically",
    "temporary_folder",
    "unfinished",
    "unwritable",
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
    except UnicodeDecodeError as error:
        found = f"bytes that are not JSON: no UTF-8 text from byte {error.start} on"
        raise InputError(Mistake(found, expected, file=path)) from None
    except (ValueError, RecursionError) as error:
        raise InputError(Mistake(not_json(error), expected, file=path)) from None


def not_json(error: ValueError | RecursionError) -> str:
    """Say what is wrong with text that `json.loads` refused."""
    if isinstance(error, RecursionError):
        return "text that is not JSON, or deeply nested"
    told = str(error).splitlines()[0][:100] if str(error) else "cut short"
    return f"text that is not JSON ({'a number of too many digits' if 'digits' in told else told})"


def refuse_hidden_characters(raw: str, content: Any, expected: str, path: Path, line: int | None = None) -> None:
    """Refuse JSON with a text that terminals, browsers or drawing libraries would act on instead of showing it.

    Parameters
    ----------
    raw, content : str and object
        Before and after parsing.
    expected : str
        What should stand there.
    path : Path
        The file.
    line : int or None
        Line of the file; None: the file is one line.

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
        with unfinished(path) as new:
            with new.open("xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            new.replace(path)
    except (OSError, UnicodeEncodeError) as error:
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError | UnicodeEncodeError) -> InputError:
    """Say why a file or folder cannot be written, and what to do about it."""
    if isinstance(error, UnicodeEncodeError):
        found = f"a name that cannot be written in {error.encoding}, which is what files are named in here"
        return InputError(Mistake(found, "other letters, or a locale such as C.UTF-8", file=path))
    found = f"a place that cannot be written to ({error.strerror or error})"
    return InputError(Mistake(found, "a writable folder with space left", file=path))


_UNFINISHED = re.compile(r"\..*\.moe-placer-[0-9a-f]{8}")
_begun: dict[Path, Callable[[Path], None]] = {}  # what is to go in the end, and how


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` for what will take its place; whatever happens, nothing of this name is left."""
    new = path.with_name(f".{path.name[:200]}.moe-placer-{secrets.token_hex(4)}")
    with removed_at_the_end(new):
        yield new


@contextmanager
def removed_at_the_end(path: Path, *, only_if_empty: bool = False) -> Iterator[None]:
    """Remove a file or folder in the end, also where a signal ends the process before."""
    remove = _remove_empty if only_if_empty else _remove
    _begun[path] = remove
    try:
        yield
    finally:
        remove(path)
        del _begun[path]


def is_unfinished(name: str) -> bool:
    """Whether a name is one of `unfinished`, so that it is what a killed process has left where nobody writes."""
    return _UNFINISHED.fullmatch(name) is not None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder that is gone afterwards."""
    with unfinished(Path(tempfile.gettempdir()) / "run") as folder:
        folder.mkdir(mode=0o700)
        yield folder


def move_files(source: Path, target: Path) -> Iterator[Path]:
    """Move the files of a folder to another one on the same disk, in the order of their names; yield each new path.

    Raises
    ------
    InputError
        The place cannot be written to.
    """
    for path in sorted(source.iterdir()):
        new = target / path.name
        try:
            path.replace(new)
        except OSError as error:
            raise unwritable(new, error) from None
        yield new


def remove_unfinished() -> None:
    """Remove what is being written, in a process that is about to end."""
    for path, remove in reversed(tuple(_begun.items())):
        with suppress(OSError):
            remove(path)


def _remove_empty(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def policy_hash(text: str) -> str:
    """Return the name by which a page's content security policy allows exactly this program or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
