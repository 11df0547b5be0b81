"""Arguments and options that several commands share, and how they load what these name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from moe_placer.instance import Instance

__all__ = ["as_json", "instance_argument", "json_option", "open_instance", "placement_argument", "trace_option"]

# Paths are not checked by click: the readers say more about what is wrong, with the documented exit code.
instance_argument = click.argument("instance", type=click.Path(path_type=Path))
placement_argument = click.argument("placement", type=click.Path(path_type=Path))
trace_option = click.option(
    "--trace",
    "traces",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Recorded routing (.npz with `topk`), one per domain; replaces the instance's traffic. Repeatable.",
)
json_option = click.option(
    "--json", "json_", is_flag=True, help="Print one JSON object on standard output, nothing else."
)


def open_instance(path: Path, traces: tuple[Path, ...]) -> Instance:
    """Read an instance; traces given on the command line replace its traffic."""
    from moe_placer.instance import load_instance

    instance = load_instance(path)
    return instance.with_traces(traces) if traces else instance


def as_json(content: Any) -> str:
    """Return JSON text; infinite and undefined figures become null, which JSON can say."""
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
