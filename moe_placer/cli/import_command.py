"""``moe-placer import``."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from moe_placer.cli import log
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import json_option

if TYPE_CHECKING:
    from moe_placer.cli.results.engine_files import ImportResult
    from moe_placer.engines.recordings.import_options import Progress
    from moe_placer.engines.recordings.recorded import About, Recorded

__all__ = ["import_recording"]

EXAMPLES = """
\b
Examples:
  moe-placer import expert_distribution_recorder_1764000000.pt -o recording.npz
  moe-placer import recorder_folder/ -o recording.npz             per_pass, per_token: the files of all ranks
  moe-placer import $EXPERT_STATISTIC_PATH -o recording.npz       TensorRT-LLM
  moe-placer import routed_experts.npy --experts 128 -o recording.npz
"""


@click.command("import", epilog=EXAMPLES)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, metavar="FILE", type=click.Path(path_type=Path), help="The .npz to write."
)
@click.option(
    "--tokens",
    default=100_000,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=0),
    help="Whole tokens to keep at most, drawn with equal chances; all are counted.",
)
@click.option(
    "--experts",
    metavar="N",
    type=click.IntRange(1, 8192),
    help="Experts of a layer, where the recording does not say.  [the largest id and one]",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress on standard error.")
@json_option
def import_recording(
    files: tuple[Path, ...], output: Path, tokens: int, experts: int | None, quiet: bool, json_: bool
) -> None:
    """Read what an inference engine recorded of its router, and write it as one .npz that instances can name.

    FILES are one recording: SGLang's expert distribution recorder (stat, per_pass, per_token: the files of all ranks or
    their folder) or moe_bundle_trace, TensorRT-LLM's statistics folder, vLLM's routed experts or load statistics, the
    folder of ESFT's expert_weights_*.txt, tables of tokens (.parquet, .arrow), or counts of layers and experts (.npy,
    .npz, .csv, .json, .parquet). What a file is, its content tells. Nothing in a file is run: .pt files are read by a
    reader of their own, which knows tensors only.

    Physical expert ids become logical ones, layers without any choice are dense, and source ranks are kept where the
    recording tells them apart.
    """
    from moe_placer.engines.recordings import import_recording as read

    with _progress(log.silent(quiet, json_)) as report:
        recorded = read(files, output, tokens=tokens, experts=experts, progress=report)
    if json_:
        click.echo(as_json(_content(recorded, output)))
        return
    for name, text in _lines(recorded):
        click.echo(f"  {name:<12}  {text}" if name else text)
    log.info(f"Written: {output}", file=str(output))


def _content(recorded: Recorded, output: Path) -> ImportResult:
    about = dataclasses.asdict(recorded.about)
    content = {"schema": "moe-placer/import/1", **about, "arrays": _shapes(recorded), "file": str(output)}
    return cast("ImportResult", content)


def _shapes(recorded: Recorded) -> dict[str, list[int]]:
    return {name: list(array.shape) for name, array in {"load": recorded.load, **recorded.arrays}.items()}


def _lines(recorded: Recorded) -> Iterator[tuple[str, str]]:
    about = recorded.about
    yield "", about.format
    yield "files", f"{len(about.files)}: {', '.join(about.files[:3])}" + (" ..." if len(about.files) > 3 else "")
    yield "layers", _layers(about, len(recorded.load))
    yield "experts", f"{about.experts}" + ("" if about.experts_known else " or more: the largest id that was chosen")
    choices = recorded.load.sum(axis=1)
    yield (
        "choices",
        f"{choices.min():,} to {choices.max():,} in a layer" + (f", top-{about.top_k}" if about.top_k else ""),
    )
    if about.tokens:
        yield "tokens", f"{about.tokens:,}, of which the file keeps {about.kept_tokens:,}"
    else:
        yield "tokens", "not one by one: counts only"
    empty = f", {about.empty_steps:,} more without any choice" if about.empty_steps else ""
    yield "steps", f"{about.steps:,}{empty}; {about.windows:,} windows"
    yield "sources", f"{about.sources:,} ranks told apart" if about.sources else "not told apart"
    measured = [name for name in ("rank_tokens", "rdma_tokens") if name in recorded.arrays]
    if measured:
        yield "measured", ", ".join(f"{name} {list(recorded.arrays[name].shape)}" for name in measured)
    for note in about.notes:
        yield "note", note


def _layers(about: About, count: int) -> str:
    if about.layers is None:
        return f"{count} MoE layers (which of all layers they are is not recorded)"
    dense = f"; {_ranges(about.dense_layers)} dense" if about.dense_layers else ""
    return f"{count} MoE layers: {_ranges(about.layers)}{dense}"


def _ranges(numbers: tuple[int, ...]) -> str:
    """Write numbers in ascending order briefly: 0-2, 5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in parts)


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress | None]:
    """Give what tells of progress on standard error, every half second to people and every 10 s to logs."""
    if quiet:
        yield None
        return
    live, begun = log.is_live(), time.monotonic()
    last = [begun if not live else 0.0]

    def report(done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if now - last[0] < (0.5 if live else 10.0) and not (live and done == total):
            return
        last[0] = now
        text = f"{done:,} of {total:,} {what}, {now - begun:.0f} s"
        if not live:
            log.info(text, done=done, total=total, what=what)
            return
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()

    yield report
    if live and last[0]:
        sys.stderr.write("\r\x1b[K")
