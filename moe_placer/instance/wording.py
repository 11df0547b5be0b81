"""Says in plain words what pydantic found wrong with a field, and what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from moe_placer.instance.gpu_presets import NAMES

__all__ = ["Loc", "expected", "found", "real_path"]

Loc = tuple[str | int, ...]

# Values that are announced, by field: until they are there, what is offered instead is said with a word about them.
_PLANNED = {
    "fabric": {"rail", "graph"},
}
_COUNTED_ONLY = {"optimal"}
_SECTION = "a section of `field: value` lines"
_EXPECTED = {
    "missing": "this field, which has no default",
    "invalid_key": "a field name",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": _SECTION,
    "model_type": _SECTION,
    "model_attributes_type": _SECTION,
    "string_too_short": "some text",
    "string_pattern_mismatch": "a name without slashes, a leading dot, or control and direction characters",
}
# By the key of the limit in pydantic's context.
_LIMITS = {
    "ge": "at least {}",
    "gt": "more than {}",
    "le": "at most {}",
    "lt": "less than {}",
}
_LOOKS_LIKE_A_NUMBER = re.compile(r"[-+]?[0-9][0-9_,']*(\.[0-9]*)?$")


def real_path(loc: Loc, data: Any) -> Loc:
    """Drop from a pydantic location the names of union branches and the like, which are not in the file."""
    path: list[str | int] = []
    here = data
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        inside_list = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if inside_list or (isinstance(here, dict) and part in here):
            here = here[part]
        elif not (last and isinstance(here, dict)) or part == "[key]":
            continue
        path.append(part)
    return tuple(path)


def found(detail: ErrorDetails) -> str:
    """Say what stands in the file."""
    kind = detail["type"]
    if kind == "missing":
        return "nothing"
    if kind == "extra_forbidden":
        return "an unknown field"
    if kind == "union_tag_not_found":
        return "no kind"
    if kind == "union_tag_invalid":
        return f"kind {detail['ctx']['tag']}"
    if kind == "too_long":
        return f"more than {detail['ctx']['max_length']:,} entries"
    return shown(detail["input"])


def expected(detail: ErrorDetails, path: Loc, data: Any, root: type[BaseModel]) -> str:
    """Say what should stand there; ``root`` is the model of the whole file, ``data`` its content.

    Parameters
    ----------
    detail : ErrorDetails
        One of pydantic's mistakes.
    path : Loc
        Keys that lead to it.
    data : Any
        Content of the whole file.
    root : type[BaseModel]
        The model of the whole file.
    """
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _known_field(path, data, root)
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        return _kinds(path, data, root, str(context.get("tag")))
    if kind == "literal_error":
        if path == ("placement", "replicas"):
            return "dp, {redundant_slots: n} or {redundant_slots_in_all: n}"
        offered = str(context["expected"]).replace("'", "")
        return (offered if " or " not in offered else f"one of {offered}") + _planned(path, detail["input"])
    if kind == "too_long":
        return f"at most {context['max_length']:,}"
    if kind == "string_too_long":
        return f"at most {context['max_length']} characters"
    for limit, words in _LIMITS.items():
        if limit in context:
            value = context[limit]
            return words.format(int(value) if value == int(value) else value)
    if kind in _EXPECTED:
        return _EXPECTED[kind] + _hint(path, kind, detail["input"])
    message = detail["msg"].removeprefix("Input should be ")
    return message[:1].lower() + message[1:]


def shown(value: Any) -> str:
    """Show a value briefly: never a whole section, never more than a line."""
    kinds: dict[type, str] = {dict: "a section", list: "a list", bool: f"{str(value).lower()}", type(None): "nothing"}
    if type(value) in kinds:
        return kinds[type(value)]
    text = repr(value) if isinstance(value, str) else str(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"the text {text}" if isinstance(value, str) else text


def _hint(path: Loc, kind: str, value: Any) -> str:
    """Say what else may stand there, or how a number is written."""
    if path == ("cluster", "gpu") and isinstance(value, str):
        return f", or one of {', '.join(NAMES)}"
    if path == ("parallelism", "expert_tp") and isinstance(value, str) and not _LOOKS_LIKE_A_NUMBER.match(value):
        return " or auto"
    if isinstance(value, float) and kind in {"int_type", "int_from_float"} and value.is_integer():
        return " without a decimal point"
    if not isinstance(value, str) or kind not in {"int_type", "float_type"} or not _LOOKS_LIKE_A_NUMBER.match(value):
        return ""
    return " without separators" if re.search("[_,']", value) else " without quotes"


def _known_field(path: Loc, data: Any, root: type[BaseModel]) -> str:
    """Name the field that was meant, or those that there are."""
    name = str(path[-1]) if path else ""
    names = [field for section in _sections(path[:-1], data, root) for field in section.model_fields]
    if name in names:  # known, but in another of the forms that the section can take
        return f"only one of {', '.join(names)}"
    close = difflib.get_close_matches(name, names, 1, 0.7)
    if close:
        return f"a known one (did you mean {close[0]}?)"
    for home, info in root.model_fields.items():
        if any(name in section.model_fields for section in _models(info.annotation)) and home not in path:
            return f"it in the section {home}"
    return f"one of {', '.join(dict.fromkeys(names))}" if names else "a known one"


def _kinds(path: Loc, data: Any, root: type[BaseModel], tag: str) -> str:
    kinds = [kind for section in _sections(path, data, root) for kind in _kind_of(section)]
    return f"kind: {', '.join(kinds[:-1])} or {kinds[-1]}{_planned(path, tag)}"


def _planned(path: Loc, value: Any) -> str:
    field = path[-1] if path else ""
    if field == "replica_routing" and isinstance(value, str) and value in _COUNTED_ONLY:
        return (
            f" ({value} is no rule of an engine, but the best split of tokens for a placement; "
            f"`evaluate --routing {value}` counts it)"
        )
    planned = isinstance(field, str) and isinstance(value, str) and value in _PLANNED.get(field, ())
    return f" ({value} is planned, not there yet)" if planned else ""


def _sections(path: Loc, data: Any, root: type[BaseModel]) -> list[type[BaseModel]]:
    """Return the models that the section at ``path`` can be, or the one that its ``kind`` names."""
    candidates: list[type[BaseModel]] = [root]
    here = data
    for part in path:
        here = here[part]
        if isinstance(part, str):
            infos = [section.model_fields[part] for section in candidates if part in section.model_fields]
            candidates = [model for info in infos for model in _models(info.annotation)]
            kind = here.get("kind") if isinstance(here, dict) else None
            candidates = [model for model in candidates if kind in _kind_of(model)] or candidates
    return candidates


def _kind_of(section: type[BaseModel]) -> tuple[Any, ...]:
    info = section.model_fields.get("kind")
    return get_args(info.annotation) if info is not None and get_origin(info.annotation) is Literal else ()


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Find the models in an annotation, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
