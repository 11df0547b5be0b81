"""Reads YAML strictly: YAML 1.2 numbers and booleans, no duplicate keys, no bombs, a line for every field."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from moe_placer.errors import InputError, Mistake

__all__ = ["Document", "read_yaml"]

MAX_BYTES = 2_000_000
MAX_VALUES = 500_000
MAX_DEPTH = 32

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_BASED_INT = re.compile(r"0o[0-7]+$|0x[0-9a-fA-F]+$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_SPECIAL = re.compile(r"([-+]?\.(inf|Inf|INF))$|(\.(nan|NaN|NAN))$")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+$")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}
_MAX_DIGITS = 400  # no meaningful size has more; int() of millions of digits takes minutes


@dataclass
class Document:
    """A parsed file: plain Python data, the line on which each field stands, and what YAML itself found wrong."""

    file: Path
    data: Any
    lines: dict[tuple[str | int, ...], int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def line(self, path: tuple[str | int, ...]) -> int | None:
        """Return the line of the field at ``path``, or of the nearest field around it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


class _Limits(yaml.YAMLError):
    """The file is deeper or larger than any instance needs."""


def read_yaml(file: Path) -> Document:
    """Read a YAML file as YAML 1.2 and remember where everything stands.

    Raises
    ------
    InputError
        The file is missing, unreadable, too large, not text, or not YAML. Duplicate keys and the like are left in
        the document's ``mistakes``, to be reported with what else is wrong.
    """
    text = _read_text(file)
    try:
        _check_depth(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except _Limits as error:
        raise InputError(Mistake(str(error), "a plain instance file", file=file)) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = f"text that is not YAML ({error.problem or error.context})"
        raise InputError(Mistake(what, "valid YAML", file=file, line=mark.line + 1 if mark else None)) from None
    except yaml.YAMLError as error:
        raise InputError(Mistake(f"text that is not YAML ({error})", "valid YAML", file=file)) from None
    if node is None:
        raise InputError(Mistake("an empty file", "an instance (see `moe-placer schema`)", file=file))
    builder = _Builder(file)
    try:
        data = builder.build(node, ())
    except _Limits as error:
        raise InputError(Mistake(str(error), "a plain instance file", file=file)) from None
    return Document(file, data, builder.lines, builder.mistakes)


def _read_text(file: Path) -> str:
    def wrong(found: str, expected: str = "a readable YAML file") -> InputError:
        return InputError(Mistake(found, expected, file=file))

    try:
        if file.is_dir():
            raise wrong("a directory")
        with file.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise wrong("no such file") from None
    except (OSError, ValueError) as error:
        raise wrong(f"a file that cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(raw) > MAX_BYTES:
        raise wrong(f"more than {MAX_BYTES / 1e6:g} MB", f"an instance file of at most {MAX_BYTES / 1e6:g} MB")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise wrong(f"bytes that are not UTF-8 text (at byte {error.start})") from None
    if "\0" in text:
        raise wrong("binary data")
    return text


def _check_depth(text: str) -> None:
    """Refuse deep nesting before anything recursive sees it."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _Limits(f"nesting deeper than {MAX_DEPTH} levels ({_line(event)})")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _Limits(f"a second YAML document ({_line(event)})")


def _line(event: yaml.Event) -> str:
    return f"line {event.start_mark.line + 1}" if event.start_mark else "somewhere"


class _Builder:
    """Turns YAML nodes into plain data, collecting lines and mistakes on the way."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines: dict[tuple[str | int, ...], int] = {}
        self.mistakes: list[Mistake] = []
        self.values = 0

    def build(self, node: yaml.Node, path: tuple[str | int, ...]) -> Any:
        self.values += 1
        if self.values > MAX_VALUES or len(path) > MAX_DEPTH:
            raise _Limits(f"more than {MAX_VALUES:,} values once aliases are expanded (a YAML bomb?)")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: tuple[str | int, ...]) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                self._wrong("a key that is not a plain word", "a field name", path, line)
                continue
            key = self._scalar(key_node, path)
            if key in result:
                first = self.lines[(*path, key)]
                self._wrong("the key a second time", f"it only once (first on line {first})", (*path, key), line)
                continue
            result[key] = None
            self.lines[(*path, key)] = line
            result[key] = self.build(value_node, (*path, key))
        return result

    def _scalar(self, node: yaml.Node, path: tuple[str | int, ...]) -> Any:
        text: str = node.value
        line = node.start_mark.line + 1
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        standard = node.tag.startswith("tag:yaml.org,2002:") and node.tag.rsplit(":", 1)[1] not in {"binary", "set"}
        if not standard or (plain and node.tag == "tag:yaml.org,2002:str" and text == "<<"):
            self._wrong(f"the tag {node.tag}", "a value without a tag", path, line)
            return None
        return self._plain(text, path, line) if plain else text

    def _plain(self, text: str, path: tuple[str | int, ...], line: int) -> Any:
        """Resolve an unquoted scalar by the YAML 1.2 core schema (yaml.org/spec/1.2.2, 10.3.2)."""
        if text in _WORDS:
            return _WORDS[text]
        if _SPECIAL.match(text):
            return float(text.lower().replace(".", "", 1))
        if len(text) > _MAX_DIGITS:
            return text
        if _INT.match(text):
            return int(text)
        if _BASED_INT.match(text):
            return int(text, 0)
        if _LEADING_ZERO.match(text):
            expected = f"{text.lstrip('+-0') or '0'}, or 0o... for an octal number"
            self._wrong(f"{text}, a number with a leading zero", expected, path, line)
            return None
        if _FLOAT.match(text):
            value = float(text)
            # 1e9 is how people write a round number: let it serve where a whole number is asked for.
            return int(value) if "." not in text and value.is_integer() else value
        return text

    def _wrong(self, found: str, expected: str, path: tuple[str | int, ...], line: int) -> None:
        self.mistakes.append(Mistake(found, expected, dotted(path), self.file, line))


def dotted(path: tuple[str | int, ...]) -> str:
    """Write a path of keys and indices the way people read it: ``traffic.mix[3][0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text
