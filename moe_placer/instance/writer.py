"""An instance as the text of an instance file, for what a command made from another one."""

from __future__ import annotations

from typing import Any

import yaml

from moe_placer.instance.instance import Instance

__all__ = ["dump_instance"]


def dump_instance(instance: Instance) -> str:
    """Return the YAML text of an instance, without what is the default; recordings have absolute paths."""
    content = _plain(instance.model_dump(exclude_defaults=True))
    if instance.trace_files:
        content["traffic"]["files"] = [str(file.absolute()) for file in instance.trace_files]
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return text


def _plain(value: Any) -> Any:
    """Return a value with lists instead of tuples, as YAML has them."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value
