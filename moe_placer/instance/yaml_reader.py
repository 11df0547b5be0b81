"""Reads YAML strictly: YAML 1.2 numbers and booleans, no duplicate keys, no bombs, a line for every field."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from moe_placer.errors import InputError, Mistake
from moe_placer.files import read_bounded
from moe_placer.instance.yaml_nodes import MAX_DEPTH, MAX_VALUES, NotPlainError, compose, is_plain, line_of

__all__ = ["Document", "dotted", "parse_yaml", "read_yaml"]

MAX_BYTES = 2_000_000

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
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # quoted text can escape what a file may not hold
_NAME = re.compile(r"[\w-]+$")
_MAX_DIGITS = 400  # no meaningful size has more; int() of millions of digits takes minutes


@dataclass
class Document:
    """Plain Python data, the file it is from, the line on which each field stands, and what YAML itself found wrong."""

    file: Path | None
    data: Any
    lines: dict[tuple[str | int, ...], int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def line(self, path: tuple[str | int, ...]) -> int | None:
        """Return the line of the field at ``path``, or of the nearest field around it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


def read_yaml(file: Path) -> Document:
    """Read a YAML file as YAML 1.2 and remember where everything stands.

    Raises
    ------
    InputError
        The file is missing, unreadable, too large, not text, or not YAML. Duplicate keys and the like are left in
        the document's ``mistakes``, to be reported with what else is wrong.
    """
    raw = read_bounded(file, MAX_BYTES, f"a YAML file of at most {MAX_BYTES / 1e6:g} MB")
    return parse_yaml(raw, file, "an instance (see `moe-placer schema`)")


def parse_yaml(raw: bytes, file: Path, expected: str) -> Document:
    """Do the same with the bytes of a file; ``expected`` says what it should be, where it is empty.

    Raises
    ------
    InputError
        As `read_yaml`.
    """
    text = _decoded(raw, file)
    try:
        root = compose(text)
        if root is None:
            raise NotPlainError("an empty file", expected)
        builder = _Builder(file)
        data = builder.build(root, ())
    except NotPlainError as error:
        raise InputError(Mistake(error.found, error.expected, file=file, line=error.line)) from None
    return Document(file, data, builder.lines, builder.mistakes)


def _decoded(raw: bytes, file: Path) -> str:
    expected = f"a YAML file of at most {MAX_BYTES / 1e6:g} MB"
    if len(raw) > MAX_BYTES:
        raise InputError(Mistake(f"more than {MAX_BYTES / 1e6:g} MB", expected, file=file))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"bytes that are not UTF-8 text (at byte {error.start})"
        raise InputError(Mistake(found, expected, file=file)) from None
    if "\0" in text:
        raise InputError(Mistake("binary data", expected, file=file))
    return text


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
            found = f"more than {MAX_VALUES:,} values once aliases are expanded (a YAML bomb?)"
            raise NotPlainError(found, "a plain instance file")
        line = line_of(node)
        self.lines.setdefault(path, line)
        if node.tag:
            self._wrong(f"the tag {node.tag}", "a value without a tag", path, line)
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, path: tuple[str | int, ...]) -> dict[str | int, Any]:
        result: dict[str | int, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            if key is None:
                continue
            here, line = (*path, key), line_of(key_node)
            if key in result:
                self._wrong("the key a second time", f"it only once (first on line {self.lines[here]})", here, line)
                continue
            self.lines[here] = line
            result[key] = self.build(value_node, here)
        return result

    def _key(self, node: yaml.Node, path: tuple[str | int, ...]) -> str | int | None:
        """Return a key that is a field name or a number; what else YAML allows has no meaning here."""
        here = path
        if isinstance(node, yaml.ScalarNode):
            key: str | int | None = self._value(node, path)
            allowed = isinstance(key, str | int) and not isinstance(key, bool)
            if allowed and not node.tag and not _CONTROL.search(node.value) and not (is_plain(node) and key == "<<"):
                return key
            here = (*path, node.value[:60])
        self._wrong("a key that is neither a word nor a whole number", "a field name", here, line_of(node))
        return None

    def _scalar(self, node: yaml.ScalarNode, path: tuple[str | int, ...]) -> Any:
        bad = _CONTROL.search(node.value)
        if bad:
            self._wrong(f"the control character U+{ord(bad[0]):04X}", "text without it", path, line_of(node))
            return None
        return self._value(node, path)

    def _value(self, node: yaml.ScalarNode, path: tuple[str | int, ...]) -> Any:
        return self._plain(node.value, path, line_of(node)) if is_plain(node) else node.value

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
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _NAME.match(part) else repr(part)
            text += f".{name}" if text else name
    return text
