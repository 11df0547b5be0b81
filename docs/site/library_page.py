"""The table and the picture of the instance library, made from its records."""

from __future__ import annotations

from pathlib import Path

import altair as alt

from moe_placer.library import Library, Record, open_library

PICTURE = Path("build") / "library.svg"


def library_page(root: Path) -> str:
    """Return the table of all instances, and draw their gaps over their sizes."""
    library = open_library(root / "library")
    (root / PICTURE).parent.mkdir(exist_ok=True)
    _picture(library).save(root / PICTURE)
    rows = [_row(library, record) for record in library.records.values()]
    head = "| instance | family | GPUs | replicas x layers | status | best | bound | gap | why |"
    rule = "|---|---|---:|---:|---|---:|---:|---:|---|"
    alt_text = "Gap of every instance over its number of replicas, by status"
    counts = ", ".join(f"{_count(library, status)} {status}" for status in ("optimal", "bounded", "open"))
    return (
        f"{len(rows)} instances: {counts}.\n\n![{alt_text}](../{PICTURE})\n\n" + "\n".join([head, rule, *rows]) + "\n"
    )


def _count(library: Library, status: str) -> int:
    return sum(record.status == status for record in library.records.values())


def _row(library: Library, record: Record) -> str:
    instance = library.without_recordings(record)
    best, bound = (f"{part.value:,.1f}" if part else "" for part in (record.best, record.bound))
    gap = "" if record.gap is None else f"{record.gap:.3%}"
    size = f"{instance.replicas_per_layer} x {len(instance.moe_layers)}"
    cells = (f"`{record.name}`", record.family, instance.gpus, size, record.status, best, bound, gap, record.reason)
    return "| " + " | ".join(map(str, cells)) + " |"


def _picture(library: Library) -> alt.Chart:
    """Draw the gap of every instance over how many replicas it places, both on logarithmic scales."""
    values = [
        {
            "name": record.name,
            "status": record.status,
            "gap": max(100 * record.gap, 1e-4),
            "replicas": instance.replicas_per_layer * len(instance.moe_layers),
        }
        for record in library.records.values()
        if record.gap is not None
        for instance in [library.without_recordings(record)]
    ]
    data = alt.InlineData(values=values)
    marks = alt.Chart(data, width=640, height=320).mark_point(filled=True, size=60)
    drawn: alt.Chart = marks.encode(
        x=alt.X("replicas:Q", title="replicas to place, all layers", scale=alt.Scale(type="log")),
        y=alt.Y("gap:Q", title="gap in %, smaller ones at 0.0001", scale=alt.Scale(type="log")),
        color=alt.Color(
            "status:N", scale=alt.Scale(domain=["optimal", "bounded", "open"], range=["#009e73", "#0072b2", "#d55e00"])
        ),
        shape=alt.Shape("status:N", scale=alt.Scale(domain=["optimal", "bounded", "open"])),
    )
    return drawn
