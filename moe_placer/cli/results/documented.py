"""What all results have in common."""

from __future__ import annotations

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

__all__ = ["InstanceName", "documented"]

# The text below a field becomes its description in the JSON Schema.
documented = with_config(ConfigDict(use_attribute_docstrings=True))


@documented
class InstanceName(TypedDict):
    """The instance that a result is about."""

    name: str
    """Its name."""
    sha256: str
    """Hash of its canonical content, as placement files name it."""
