"""The common form of recordings: counts of the MoE layers, whole tokens where there are any, and what was found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.engines.recordings.tally import Ints, Tally
from moe_placer.errors import InputError, Mistake
from moe_placer.files import replaced_atomically

__all__ = ["About", "Recorded", "finish", "write_recording"]

SCHEMA = "moe-placer/recording/1"


@dataclass(frozen=True)
class About:
    """What a recording says of itself, as JSON in the array ``about`` of its file.

    Attributes
    ----------
    format, engine : str
        What was read, and the engine that writes it (empty where any may have).
    files : tuple of str
        Names of what was read.
    layers : tuple of int or None
        Index among all decoder layers of each MoE layer; None where the recording counts MoE layers only.
    dense_layers : tuple of int
        Decoder layers without any choice.
    decoder_layers : int or None
        Decoder layers in all, where the recording has a row for each.
    experts : int
        Experts of a layer; at least so many, where ``experts_known`` is false.
    top_k : int or None
        Choices of a token in a layer; None for counts alone.
    tokens, kept_tokens : int
        Tokens whose choices were recorded one by one (0 for counts alone), and how many of them the file keeps.
    steps, empty_steps, windows : int
        Steps with and without choices, and the windows that they are merged into.
    sources : int
        Source ranks told apart; 0 for none.
    notes : tuple of str
        What else a user should know, in sentences.
    """

    format: str
    engine: str
    files: tuple[str, ...]
    layers: tuple[int, ...] | None
    dense_layers: tuple[int, ...]
    decoder_layers: int | None
    experts: int
    experts_known: bool
    top_k: int | None
    tokens: int
    kept_tokens: int
    steps: int
    empty_steps: int
    windows: int
    sources: int
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Recorded:
    """A recording that was read.

    Attributes
    ----------
    about : About
    load : int array [MoE layers, experts]
        Times that each expert was chosen, by all tokens.
    arrays : dict of str to array
        What else is there: ``window_load`` [windows, MoE layers, experts]; ``source_load`` [source ranks, MoE layers,
        experts]; ``topk`` [kept tokens, MoE layers, top_k] with ``token_source``, ``token_window`` and
        ``seq``, the number of its sequence [kept tokens]; ``rank_tokens`` [source ranks, MoE layers, ranks] and
        ``rdma_tokens`` [source ranks, MoE layers, nodes], which the engine measured.
    """

    about: About
    load: Ints
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a format's reader knows beside its tally; fields as in `About`."""

    format: str
    engine: str
    files: Sequence[Path]
    decoder_rows: bool
    experts_known: bool = True
    top_k: int | None = None
    row_layers: tuple[int, ...] | None = None
    """Decoder index of each row; None: rows are all decoder layers, or MoE layers only (``decoder_rows``)."""
    measured: Mapping[str, Ints] = field(default_factory=dict)
    """Arrays [source ranks, rows, ...]."""
    notes: Sequence[str] = ()


def finish(tally: Tally, found: Found) -> Recorded:
    """Drop rows without any choice, keep whole tokens only, and say what there is.

    Raises
    ------
    InputError
        Nothing was recorded.
    """
    rows = np.flatnonzero(tally.load.sum(axis=1))
    if not len(rows):
        raise InputError(Mistake("no choice of any expert", "a recording of some traffic", file=found.files[0]))
    notes = list(found.notes)
    by_window = tally.by_window[:, rows]
    filled = np.flatnonzero(by_window.any(axis=(1, 2)))
    arrays: dict[str, npt.NDArray[Any]] = {"window_load": by_window[filled]}
    if len(tally.by_source):
        arrays["source_load"] = tally.by_source[:, rows]
    kept = _whole_tokens(tally, rows, found.top_k or 0, arrays, notes)
    if "token_window" in arrays:
        arrays["token_window"] = np.searchsorted(filled, arrays["token_window"]).astype(np.int32)
    arrays |= {name: values[:, rows] for name, values in found.measured.items()}
    count = len(tally.load)
    layers, dense = _layers(rows, count, found)
    about = About(
        format=found.format,
        engine=found.engine,
        files=tuple(file.name for file in found.files),
        layers=layers,
        dense_layers=dense,
        decoder_layers=count if found.decoder_rows else None,
        experts=tally.load.shape[1],
        experts_known=found.experts_known,
        top_k=found.top_k,
        tokens=tally.tokens,
        kept_tokens=kept,
        steps=tally.steps - tally.empty_steps,
        empty_steps=tally.empty_steps,
        windows=len(filled),
        sources=len(tally.by_source),
        notes=tuple(notes),
    )
    return Recorded(about, tally.load[rows], arrays)


def _layers(rows: Ints, count: int, found: Found) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    if found.row_layers is not None:
        return tuple(found.row_layers[row] for row in rows), ()
    if not found.decoder_rows:
        if len(rows) < count:
            missing = sorted(set(range(count)) - set(rows.tolist()))
            expected = "some choices in every MoE layer"
            raise InputError(Mistake(f"no choices in MoE layer {missing[0]}", expected, file=found.files[0]))
        return None, ()
    return tuple(rows.tolist()), tuple(sorted(set(range(count)) - set(rows.tolist())))


def _whole_tokens(tally: Tally, rows: Ints, top_k: int, arrays: dict[str, npt.NDArray[Any]], notes: list[str]) -> int:
    """Put the kept tokens that chose ``top_k`` different experts in every MoE layer into ``arrays``; count them."""
    if not tally.kept.topk:
        return 0
    topk = np.concatenate([block[:, rows, :top_k] for block in tally.kept.topk])
    ordered = np.sort(topk, axis=2)
    whole = (ordered[:, :, 0] >= 0).all(axis=1) & (ordered[:, :, 1:] != ordered[:, :, :-1]).all(axis=(1, 2))
    if not whole.all():
        notes.append(f"{len(whole) - whole.sum():,} of {len(whole):,} kept tokens lack choices in a layer: left out")
    if not whole.any():
        return 0
    small = np.uint8 if tally.load.shape[1] <= 256 else np.uint16
    arrays["topk"] = topk[whole].astype(small)
    kept = tally.kept
    for name, parts in (("token_source", kept.source), ("token_window", kept.window), ("seq", kept.sequence)):
        values = np.concatenate(parts)[whole]
        if (values >= 0).all():
            arrays[name] = values.astype(np.int32)
    return int(whole.sum())


def write_recording(path: Path, recorded: Recorded) -> None:
    """Write a recording as .npz, whole or not at all.

    Raises
    ------
    InputError
        The place cannot be written to.
    """
    about = {"schema": SCHEMA, **dataclasses.asdict(recorded.about)}
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with replaced_atomically(path) as stream:
        arrays: dict[str, Any] = {"about": text, "load": recorded.load, **recorded.arrays}
        np.savez(stream, **arrays)
