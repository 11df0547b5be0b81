"""JSON text of results."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any

from moe_placer.errors import visible

__all__ = ["as_json", "finite"]


def as_json(content: Any) -> str:
    """Return JSON text; dataclasses become objects; infinite and undefined figures become null, which JSON can say."""
    text = json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False)
    return "\n".join(map(_escaped, text.split("\n")))


def _escaped(line: str) -> str:
    """Spell out control and direction characters, which JSON can have in texts only, the way JSON does."""
    return (
        line
        if visible(line) == line
        else "".join(letter if visible(letter) == letter else f"\\u{ord(letter):04x}" for letter in line)
    )


def finite(content: Any) -> Any:
    """Return the same without dataclasses, tuples, and figures that are infinite or undefined (null)."""
    if is_dataclass(content) and not isinstance(content, type):
        return {field.name: finite(getattr(content, field.name)) for field in fields(content)}
    if isinstance(content, dict):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
