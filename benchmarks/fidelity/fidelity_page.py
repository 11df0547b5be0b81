"""The page of a fidelity report, from its rows alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from benchmarks.fidelity.packets_page import packets_section, packets_summary
from moe_placer.experiments.markdown_table import markdown_table

__all__ = ["build_page"]

Row = dict[str, Any]

_INTRO = """# Predictions against what others measured

`make fidelity` makes this page anew, and [the comparison with the flow-level simulator
SimGrid](../2026-11-24-simgrid/README.md). Every prediction is a simulated step (or one layer of it) of an instance with
`schedule.kernels: {preset: deepep}`; [kernels](../../docs/kernels.md) has the parameters and their sources. Ratios are
predicted over measured. Parameters were set from kernel tables and from what two micro-batches gain in prefill; the
throughput of no system was used to set one.
"""


def build_page(rows: Sequence[Row]) -> str:
    """Return the page as Markdown."""
    parts = [_INTRO, *_summary(rows), *_low_latency(rows), *_normal(rows), *_measured(rows), *_systems(rows)]
    parts += packets_section(_of(rows, "packets"))
    return "\n".join(parts).rstrip() + "\n"


def _of(rows: Sequence[Row], part: str) -> list[Row]:
    return [row for row in rows if row["part"] == part]


def _furthest(rows: Sequence[Row]) -> float:
    return max((abs(row["ratio"] - 1) for row in rows), default=0.0)


def _summary(rows: Sequence[Row]) -> Iterator[str]:
    """Say what had to be reached, and what was."""
    yield "## What had to be reached\n"
    table = []
    if low := _of(rows, "low-latency"):
        table.append([f"low-latency table, {len(low)} figures", "each within 15%", f"furthest {_furthest(low):.1%}"])
    if normal := [row for row in _of(rows, "normal") if row["limit"]]:
        table.append(["normal kernels EP32 and EP64", "each within 15%", f"furthest {_furthest(normal):.1%}"])
    if measured := [row for row in _of(rows, "measured") if row["limit"]]:
        middle = median(abs(row["ratio"] - 1) for row in measured)
        reached = f"median {middle:.1%}, furthest {_furthest(measured):.1%} of {len(measured)} figures"
        table.append(["aiconfigurator, 8 to 128 tokens, 2 to 8 nodes", "median 15%, furthest 35%", reached])
    if systems := [row for row in _of(rows, "systems") if row["limit"]]:
        table.append([f"systems, {len(systems)} figures", "each within 25%", f"furthest {_furthest(systems):.1%}"])
    if line := packets_summary(_of(rows, "packets")):
        table.append(line)
    yield markdown_table(["what", "limit", "reached"], table, 3)


def _low_latency(rows: Sequence[Row]) -> Iterator[str]:
    found = _of(rows, "low-latency")
    if not found:
        return
    yield "\n## Low-latency kernels\n"
    yield f"128 tokens per GPU, hidden 7168, top-8 of 256, fp8 out and bf16 back. Source: {_cited(found)}.\n"
    yield _times(found, ["gpus", "way"])


def _normal(rows: Sequence[Row]) -> Iterator[str]:
    found = _of(rows, "normal")
    if not found:
        return
    yield "\n## Normal kernels\n"
    yield f"4,096 tokens per GPU, top-8 from at most 4 nodes. Source: {_cited(found)}. Its GB/s count a"
    yield "token and each of its nodes (in one node: of its GPUs); µs follow from copies counted in drawn tokens.\n"
    yield _times(found, ["gpus", "way", "gb_per_s", "counted_copies"])
    yield "\nWith 8 and 16 GPUs NVLink binds, not the NICs: half of the copies, or all, stay in their node. We forward"
    yield "a copy to each chosen expert, DeepEP one to each GPU that has some: 8 experts are on 6.5 of 16 GPUs, and on"
    yield "5.3 of 8. Times by experts are 1.2 and 1.5 times those by GPUs; without this factor, ratios are 0.9 and 1.0."


def _measured(rows: Sequence[Row]) -> Iterator[str]:
    found = _of(rows, "measured")
    yield "\n## Low-latency kernels in aiconfigurator's tables\n"
    if not found:
        yield "Not measured: the package was not installed (`pip install 'moe-placer[fidelity]'`)."
        return
    yield f"Source: {_cited(found)}; read from the installed package. One node is beside the limits: the start of"
    yield "22 µs is that of DeepEP's own table on H800, these kernels start in 12 to 16 µs.\n"
    table = []
    for gpus in sorted({row["gpus"] for row in found}):
        for way in ("dispatch", "combine"):
            some = [row for row in found if (row["gpus"], row["way"]) == (gpus, way)]
            ratios = [row["ratio"] for row in some]
            table.append(
                [str(gpus), way, str(len(some)), f"{min(ratios):.2f}", f"{median(ratios):.2f}", f"{max(ratios):.2f}"]
            )
    yield markdown_table(["GPUs", "way", "figures", "least", "median", "largest"], table, 2)


def _systems(rows: Sequence[Row]) -> Iterator[str]:
    found = _of(rows, "systems")
    if not found:
        return
    yield "\n## Systems\n"
    yield "DeepSeek-V3, tokens/s per node of 8 GPUs. Six of 58 MoE layers are simulated, those in the"
    yield "middle stand for the others. What was not balanced has the generator's tokens, placed by EPLB for"
    yield "other tokens of the same domains.\n"
    whole = [row for row in found if row["variant"] == "as it is"]
    sources = list(dict.fromkeys(row["source"] for row in whole))
    table = [
        [
            row["system"], f"[{sources.index(row['source']) + 1}] {row['sure']}", f"{row['measured']:,.0f}",
            f"{row['predicted']:,.0f}", f"{row['ratio']:.2f}",
        ]
        for row in whole
    ]  # fmt: skip
    yield markdown_table(["system", "source, and how sure it is", "published", "predicted", "ratio"], table, 2)
    yield "\nSources: " + "; ".join(f"[{number}] {source}" for number, source in enumerate(sources, 1)) + "."
    beyond = [row for row in whole if abs(row["ratio"] - 1) > row["limit"]]
    if beyond:
        yield "\nBeyond the limit: " + ", ".join(f"{row['system']} ({row['ratio']:.3f})" for row in beyond) + "."
    yield from _ablations(found, [row["short"] for row in whole])


def _ablations(found: Sequence[Row], names: Sequence[str]) -> Iterator[str]:
    """Show what one change makes of every ratio, and what two micro-batches gain."""
    ratios = {(row["short"], row["variant"]): row["ratio"] for row in found}
    variants = list(dict.fromkeys(row["variant"] for row in found))
    table = [
        [variant, *(f"{ratios[name, variant]:.2f}" if (name, variant) in ratios else "" for name in names)]
        for variant in variants
    ]
    gains = [ratios[name, "as it is"] / ratios[name, "one micro-batch"] - 1 for name in names]
    table.append(["gain of two micro-batches", *(f"{gain:.0%}" for gain in gains)])
    yield "\nOne thing changed at a time, ratios; an error that another one hides would show here (empty: it is so"
    yield "anyway):\n"
    yield markdown_table(["changed", *names], table, 1)
    yield "\nOf two micro-batches the LMSYS blog states a gain of 27% to 35% in prefill, and of 25.5% in decode with"
    yield "256 sequences per GPU (EP72). In decode they keep to the order of stages that DeepSeek and SGLang state"
    yield "(`staged`). Attention counts as one stage here, all of it beside a combine; engines run its projections"
    yield "beside the dispatch, so gains are too small here where communication is short."


def _cited(rows: Sequence[Row]) -> str:
    """Say where the figures of one table are from, and how sure they are."""
    return f"{rows[0]['source']} ({rows[0]['sure']})"


def _times(rows: Sequence[Row], keys: list[str]) -> str:
    table = [
        [
            *(f"{row[key]:.3g}" if isinstance(row[key], float) else str(row[key]) for key in keys),
            f"{row['measured']:,.0f}",
            f"{row['predicted']:,.0f}",
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    words = {"gpus": "GPUs", "gb_per_s": "GB/s", "counted_copies": "counted copies of a token"}
    head = [*(words.get(key, key) for key in keys), "measured, µs", "predicted, µs", "ratio"]
    return markdown_table(head, table, 2)
