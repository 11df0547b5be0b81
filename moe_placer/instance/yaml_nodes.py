"""Reads YAML text into PyYAML's nodes, refusing what no instance needs: binary, endless nesting, several documents."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.composer import Composer

from moe_placer.errors import MoePlacerError

__all__ = ["MAX_DEPTH", "MAX_VALUES", "NotPlainError", "compose", "is_plain", "line_of"]

MAX_VALUES = 300_000
MAX_DEPTH = 32

# libyaml's parser, where PyYAML was built with it, is twenty times faster; its own composer knows no limits.
_BASES: Any = (Composer, yaml.CSafeLoader) if yaml.__with_libyaml__ else (yaml.SafeLoader,)

# What YAML 1.2 calls printable (yaml.org/spec/1.2.2, 5.1).
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class NotPlainError(MoePlacerError):
    """The text is not YAML, or not the plain YAML that instances are written in."""

    def __init__(self, found: str, expected: str, line: int | None = None) -> None:
        super().__init__(found)
        self.found, self.expected, self.line = found, expected, line


def compose(text: str) -> yaml.Node | None:
    """Parse one YAML document; None if it is empty.

    The ``tag`` of a node is empty unless one is written out: what a plain scalar means is for the reader to say.

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
        root = _Composer(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ": ".join(part for part in (error.context, error.problem) if part)
        raise _not_yaml(problem, mark.line + 1 if mark else None) from None
    except NotPlainError:
        raise
    except Exception as error:
        # PyYAML lets slip what chr() and int() raise on absurd escapes and directives.
        raise _not_yaml((str(error) or type(error).__name__).splitlines()[0]) from None
    return None if isinstance(root, yaml.ScalarNode) and is_plain(root) and not root.value else root


def is_plain(node: yaml.ScalarNode) -> bool:
    """Return whether a scalar is written without quotes."""
    return not node.style


def line_of(place: yaml.Node | yaml.Event) -> int:
    """Return the line of the text on which a node starts, counted from 1."""
    return place.start_mark.line + 1 if place.start_mark else 1


def _not_yaml(problem: str, line: int | None = None) -> NotPlainError:
    return NotPlainError(f"text that is not YAML ({problem})", "valid YAML", line)


class _Composer(*_BASES):  # type: ignore[misc]
    """PyYAML's composer on the fastest parser there is, with limits; recursion is no deeper than `MAX_DEPTH`."""

    def __init__(self, text: str) -> None:
        _BASES[-1].__init__(self, text)
        self.anchors: dict[str, yaml.Node] = {}
        self._values = self._depth = 0
        self._tag = ""

    def compose_document(self) -> yaml.Node:
        root: yaml.Node = super().compose_document()
        if self.check_event(yaml.DocumentStartEvent):
            raise NotPlainError("a second YAML document", "one instance per file", line_of(self.peek_event()))
        return root

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        line, name = line_of(event), event.anchor
        self._values += 1
        if self._values > 2 * MAX_VALUES:  # keys count here
            raise NotPlainError(f"more than {MAX_VALUES:,} values", "a plain instance file", line)
        if self._depth > MAX_DEPTH:
            raise NotPlainError(f"nesting deeper than {MAX_DEPTH} levels", "a plain instance file", line)
        if isinstance(event, yaml.AliasEvent):
            if not getattr(self.anchors.get(name), "end_mark", None):
                raise _not_yaml(f"the alias *{name} stands for nothing that ends before it", line)
            self.get_event()
            return self.anchors[name]
        self.anchors.pop(name, None)  # YAML lets a later anchor take the name
        self._tag = event.tag or ""
        self._depth += 1
        node: yaml.Node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def resolve(self, kind: type, value: Any, implicit: Any) -> str:  # noqa: ARG002
        """Leave a node the tag that is written out, be it the bare ``!``, or none."""
        return self._tag
