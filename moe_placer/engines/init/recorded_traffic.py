"""Reads which layers, experts and tokens recordings have, for the instance that names them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from moe_placer.engines.init.model_config import ConfigModel
from moe_placer.engines.recordings.recorded import SCHEMA
from moe_placer.errors import InputError, Mistake
from moe_placer.instance.schema import Engine
from moe_placer.traffic.readers import names_of_arrays, open_array, read_array

__all__ = ["RecordedTraffic", "inspect_recordings"]

_MOST_ABOUT_BYTES = 1_000_000
_IMPORT = "a recording of this model; `moe-placer import` makes one of an engine's files"


@dataclass(frozen=True)
class RecordedTraffic:
    """Recordings of one model, one per domain.

    Attributes
    ----------
    kind : str
        ``trace`` or ``load``.
    files : tuple of Path
    engine : str or None
        That wrote all of them, where they say so and instances know it.
    sources : int
        Source ranks of the first recording; 0 for none.
    comment, kind_comment : str
        What stands beside the section and its ``kind``.
    """

    kind: str
    files: tuple[Path, ...]
    engine: str | None
    sources: int
    comment: str
    kind_comment: str


def inspect_recordings(files: Sequence[Path], model: ConfigModel, tokens: bool = False) -> RecordedTraffic:
    """Say what recordings hold, once they are found to be of the model.

    Parameters
    ----------
    files : sequence of Path
    model : ConfigModel
    tokens : bool
        Whole tokens are needed, even if they are fewer than were counted.

    Raises
    ------
    InputError
        One is missing, damaged, or not of this model; every mistake is listed.
    """
    found = [(file, names_of_arrays(file), _about(file)) for file in files]
    mistakes = [mistake for file, names, about in found for mistake in _mistakes(file, names, about, model)]
    if mistakes:
        raise InputError(mistakes)
    kinds = {_kind(names, about) for _, names, about in found}
    kind = "load" if "load" in kinds and not tokens else "trace"
    lacking = next((file for file, names, _ in found if ("load" if kind == "load" else "topk") not in names), None)
    if lacking is not None:
        if kind == "trace":
            expected = "whole tokens (`topk`): a dispatch other than per-expert depends on them"
            raise InputError(Mistake("counts only", expected, file=lacking))
        raise InputError(Mistake("whole tokens only", "counts (`load`), as the other recordings", file=lacking))
    about = found[0][2]
    engines = {str(about.get("engine")) for _, _, about in found}
    (engine,) = engines if len(engines) == 1 else (None,)
    comment = f"{about['format']}" if about.get("format") else "recorded"
    kept, counted = _count(about, "kept_tokens"), _count(about, "tokens")
    if kind == "trace":
        why = f"{kept:,} of {counted:,} tokens" if kept else "whole tokens"
    else:
        why = f"counts of all {counted:,} tokens; trace: {kept:,} of them" if kept else "counts"
    needed = {"source_load"} if kind == "load" else {"load", "source_load", "token_source"}
    sources = _count(about, "sources") if needed <= set(found[0][1]) else 0
    known = engine if engine in get_args(Engine) else None
    return RecordedTraffic(kind, tuple(files), known, sources, comment, why)


def _count(about: dict[str, Any], key: str) -> int:
    """Return a count that a recording states of itself; 0 where it states none."""
    value = about.get(key)
    return value if type(value) is int and value >= 0 else 0


def _kind(names: Sequence[str], about: dict[str, Any]) -> str:
    """Prefer single tokens where all are kept, and counts of all tokens where some are not."""
    if "topk" not in names:
        return "load"
    whole = about.get("kept_tokens") == about.get("tokens")
    return "trace" if whole or "load" not in names else "load"


def _about(file: Path) -> dict[str, Any]:
    """Return what an imported recording says of itself; nothing of other files."""
    if "about" not in names_of_arrays(file):
        return {}
    with open_array(file, "about", _MOST_ABOUT_BYTES) as (_, header):
        text = header.dtype.str[1:] == "u1" and len(header.shape) == 1 and header.bytes > 0
    try:
        about = json.loads(read_array(file, "about").tobytes()) if text else None
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise InputError(Mistake("what no `moe-placer import` wrote", SCHEMA, "about", file))
    return about


def _mistakes(file: Path, names: Sequence[str], about: dict[str, Any], model: ConfigModel) -> list[Mistake]:
    """Compare a recording with the model."""
    key = "load" if "load" in names else "topk" if "topk" in names else ""
    if not key:
        return [Mistake("neither load nor topk", _IMPORT, file=file)]
    with open_array(file, key) as (_, header):
        shape = header.shape
    fields, dense = model.fields, set(model.fields["dense_layers"])
    moe = [layer for layer in range(fields["layers"]) if layer not in dense]
    mistakes = []
    if len(shape) < 2 or shape[-2] != len(moe):
        layers = f"{shape[-2]} MoE layers" if len(shape) > 1 else f"shape {list(shape)}"
        mistakes.append(
            Mistake(layers, f"{len(moe)}: {model.name} has {fields['layers']} layers, {len(dense)} dense", key, file)
        )
    elif about.get("layers") is not None and about["layers"] != moe:
        other = sorted(set(about["layers"]) ^ set(moe)) if isinstance(about["layers"], list) else []
        said = f"layers {', '.join(map(str, other[:6]))} as MoE or dense" if other else "other layers"
        mistakes.append(Mistake(said, f"the {len(moe)} MoE layers of {model.name}", "about.layers", file))
    if key == "load" and shape[-1] != fields["experts"]:
        expected = f"{fields['experts']} experts of {model.name}"
        if shape[-1] < fields["experts"] and about.get("experts_known") is False:
            expected += f": import it again with --experts {fields['experts']}"
        mistakes.append(Mistake(f"{shape[-1]} experts", expected, key, file))
    top_k = about.get("top_k") if key == "load" else shape[-1]
    if top_k is not None and top_k != fields["top_k"]:
        mistakes.append(Mistake(f"top-{top_k}", f"top-{fields['top_k']} of {model.name}", key, file))
    return mistakes
