"""From a YAML file to an `Instance`, or to a list of everything that is wrong with it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from moe_placer.errors import InputError, Mistake
from moe_placer.instance import schema
from moe_placer.instance.contradictions import find_contradictions
from moe_placer.instance.instance import Instance
from moe_placer.instance.yaml_reader import Document, dotted, read_yaml

__all__ = ["load_instance"]

Loc = tuple[str | int, ...]

_SECTIONS: dict[str, Any] = {
    "model": schema.Model,
    "cluster": schema.Cluster,
    "parallelism": schema.Parallelism,
    "placement": schema.Placement,
    "traffic": schema.AnyTraffic,
}
_NOT_YET = {"rail", "graph"}
_EXPECTED = {
    "missing": "this field",
    "extra_forbidden": "no such field",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a section of `field: value` lines",
    "model_type": "a section of `field: value` lines",
    "model_attributes_type": "a section of `field: value` lines",
    "string_too_short": "some text",
    "string_pattern_mismatch": "a name without slashes and line breaks",
}


def load_instance(path: str | Path) -> Instance:
    """Read and check an instance file.

    Parameters
    ----------
    path : str or Path
        A YAML file; ``moe-placer schema`` prints its JSON Schema.

    Returns
    -------
    Instance
        With all defaults filled in; paths of traces are relative to the file's folder.

    Raises
    ------
    InputError
        Lists every mistake in the file, each with line, field, what was found and what is expected.
    """
    document = read_yaml(Path(path))
    if not isinstance(document.data, dict):
        found = f"{_shown(document.data)} at the top level"
        raise InputError(
            Mistake(found, "a section of `field: value` lines", file=document.file, line=document.line(()))
        )
    try:
        instance = Instance.model_validate(document.data)
    except ValidationError as error:
        mistakes = _wrong_fields(error, document)
    except InputError as error:
        mistakes = [_placed(m, document) for m in error.mistakes]
    else:
        mistakes = []
    if mistakes or document.mistakes:
        first = {(m.line, m.path): m for m in [*mistakes, *document.mistakes]}
        raise InputError(sorted(first.values(), key=lambda m: (m.line or 0, m.path)))
    instance._directory = document.file.parent
    return instance


def _wrong_fields(error: ValidationError, document: Document) -> list[Mistake]:
    """Every mistake: the wrong fields, and the contradictions among the sections that are right in themselves."""
    found: dict[tuple[int | None, str], Mistake] = {}
    for detail in error.errors():
        path = _real_path(detail["loc"], document.data)
        mistake = Mistake(_found(detail), _expected(detail), dotted(path), document.file, document.line(path))
        found.setdefault((mistake.line, mistake.path), mistake)
    sections: dict[str, Any] = {}
    for name, kind in _SECTIONS.items():
        with contextlib.suppress(ValidationError):
            sections[name] = TypeAdapter(kind).validate_python(document.data.get(name, {}))
    contradictions = [_placed(m, document) for m in find_contradictions(sections)]
    return [*found.values(), *contradictions]


def _placed(mistake: Mistake, document: Document) -> Mistake:
    """Add file and line to a mistake that knows only its field."""
    line = document.line(_parse(mistake.path))
    return Mistake(mistake.found, mistake.expected, mistake.path, document.file, line)


def _parse(path: str) -> Loc:
    """Undo `dotted`."""
    words = (word for word in path.replace("[", ".[").split(".") if word)
    return tuple(int(word[1:-1]) if word.startswith("[") else word for word in words)


def _real_path(loc: Loc, data: Any) -> Loc:
    """Drop from a pydantic location the names of union branches, which are not in the file."""
    path: list[str | int] = []
    here = data
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        inside_list = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if inside_list or (isinstance(here, dict) and part in here):
            here = here[part]
        elif not (last and isinstance(here, dict)):
            continue
        path.append(part)
    return tuple(path)


def _shown(value: Any) -> str:
    kinds: dict[type, str] = {dict: "a section", list: "a list", bool: f"{str(value).lower()}", type(None): "nothing"}
    if type(value) in kinds:
        return kinds[type(value)]
    text = repr(value) if isinstance(value, str) else str(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"the text {text}" if isinstance(value, str) else text


def _found(detail: ErrorDetails) -> str:
    if detail["type"] == "missing":
        return "nothing"
    if detail["type"] == "extra_forbidden":
        return "an unknown field"
    if detail["type"] == "union_tag_not_found":
        return "no kind"
    if detail["type"] == "union_tag_invalid":
        return f"kind {detail['ctx']['tag']!r}"
    return _shown(detail["input"])


def _expected(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        note = " (this one is planned, not there yet)" if context.get("tag") in _NOT_YET else ""
        return f"kind: {context.get('expected_tags') or 'one of those in `moe-placer schema`'}{note}"
    if kind == "literal_error":
        return f"one of {context['expected']}"
    message = detail["msg"].removeprefix("Input should be ")
    for long, short in (("greater than or equal to", "at least"), ("less than or equal to", "at most")):
        message = message.replace(long, short)
    return message[:1].lower() + message[1:]
