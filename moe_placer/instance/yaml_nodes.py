"""Reads YAML text into nodes that know their lines, refusing what no instance needs: tags, binary, endless nesting."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import yaml

from moe_placer.errors import MoePlacerError

__all__ = ["MAX_DEPTH", "MAX_VALUES", "Mapping", "Node", "NotPlainError", "Scalar", "Sequence", "compose"]

MAX_VALUES = 300_000
MAX_DEPTH = 32

# libyaml's parser, where PyYAML was built with it, is twenty times faster.
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What YAML 1.2 calls printable (yaml.org/spec/1.2.2, 5.1).
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class NotPlainError(MoePlacerError):
    """The text is not YAML, or not the plain YAML that instances are written in."""

    def __init__(self, found: str, expected: str, line: int | None = None) -> None:
        super().__init__(found)
        self.found, self.expected, self.line = found, expected, line


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value; ``plain`` if it is written without quotes, ``tag`` only if one is written out."""

    text: str
    line: int
    plain: bool
    tag: str | None


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list of nodes."""

    items: tuple[Node, ...]
    line: int
    tag: str | None


@dataclass(frozen=True, slots=True)
class Mapping:
    """Pairs of keys and values, in order, duplicates included."""

    pairs: tuple[tuple[Node, Node], ...]
    line: int
    tag: str | None


Node: TypeAlias = Scalar | Sequence | Mapping


def compose(text: str) -> Node | None:
    """Parse one YAML document; None if it is empty.

    Raises
    ------
    NotPlainError
        The text is not YAML, has several documents, or is deeper or larger than any instance needs.
    """
    bad = _UNPRINTABLE.search(text)
    if bad:
        found = f"the control character U+{ord(bad[0]):04X}"
        raise NotPlainError(found, "text", text.count("\n", 0, bad.start()) + 1)
    try:
        return _Composer(yaml.parse(text, Loader=_LOADER)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ": ".join(part for part in (error.context, error.problem) if part)
        raise _not_yaml(problem, mark.line + 1 if mark else None) from None
    except NotPlainError:
        raise
    except Exception as error:
        # PyYAML lets slip what chr() and int() raise on absurd escapes and directives.
        raise _not_yaml((str(error) or type(error).__name__).splitlines()[0]) from None


def _not_yaml(problem: str, line: int | None = None) -> NotPlainError:
    return NotPlainError(f"text that is not YAML ({problem})", "valid YAML", line)


class _Composer:
    """Builds nodes from parse events; recursion is no deeper than `MAX_DEPTH`."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self._events = events
        self._anchors: dict[str, Node] = {}
        self._values = 0

    def document(self) -> Node | None:
        root: Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise NotPlainError("a second YAML document", "one instance per file", _line(event))
                root = self._node(next(self._events), 0)
        empty = isinstance(root, Scalar) and root.plain and not root.text
        return None if empty else root

    def _node(self, event: yaml.Event, depth: int) -> Node:
        self._values += 1
        line = _line(event)
        if self._values > 2 * MAX_VALUES:  # keys count here
            raise NotPlainError(f"more than {MAX_VALUES:,} values", "a plain instance file", line)
        if depth > MAX_DEPTH:
            raise NotPlainError(f"nesting deeper than {MAX_DEPTH} levels", "a plain instance file", line)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _not_yaml(f"the alias *{event.anchor} stands for nothing that ends before it", line)
            return self._anchors[event.anchor]
        node = self._content(event, depth, line)
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _content(self, event: yaml.Event, depth: int, line: int) -> Node:
        tag = getattr(event, "tag", None)
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(event.value, line, not event.style, tag)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(child := next(self._events), yaml.SequenceEndEvent):
                items.append(self._node(child, depth + 1))
            return Sequence(tuple(items), line, tag)
        pairs = []
        while not isinstance(child := next(self._events), yaml.MappingEndEvent):
            key = self._node(child, depth + 1)
            pairs.append((key, self._node(next(self._events), depth + 1)))
        return Mapping(tuple(pairs), line, tag)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
