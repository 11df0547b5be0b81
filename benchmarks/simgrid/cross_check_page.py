"""The page of a cross-check, made from its rows and its environment alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.simgrid.agreement import Row, Rows, agreement, beside, by, excess, ranking
from benchmarks.simgrid.models import MODELS
from benchmarks.simgrid.ratio_chart import draw
from moe_placer.experiments.environment import environment_in_words
from moe_placer.experiments.markdown_table import markdown_table

__all__ = ["build_page", "is_large"]

_LARGE_BYTES = 1e7  # mean bytes per node pair from which messages count as large: 31 µs of a 400 GB/s link at 80%
_PICTURE = "ratio.svg"
_ROUNDING = 1e-3  # relative
_OPTIONS = ("bandwidth-factor", "latency-factor", "weight-S", "TCP-gamma", "crosstraffic")


def build_page(rows: Rows, environment: Mapping[str, Any]) -> dict[str, str]:
    """Return file names and contents: README.md and its picture; the same rows and environment give the same bytes."""
    parts = [
        "# Our network model against SimGrid",
        _answer(rows),
        _machine(environment),
        _what(rows),
        _sizes(rows),
        f"![Our time over SimGrid's by tokens per GPU, one panel per network model; the band is 10%]({_PICTURE})",
        _instances(rows),
        _ranks(rows),
        _both(rows),
        _bottleneck(rows),
        _shortcut(rows),
        *_beyond(rows),
        _WHY,
        _AGAIN,
    ]
    return {"README.md": "\n\n".join(parts) + "\n", _PICTURE: draw(rows)}


def is_large(rows: Rows) -> bool:
    """Whether all rows send 10 MB and more from node to node, on average."""
    return all(row["mean_flow_bytes"] >= _LARGE_BYTES for row in rows)


def _answer(rows: Rows) -> str:
    large = [row for group in by(rows, "tokens_per_gpu").values() if is_large(group) for row in group]
    least = min(row["tokens_per_gpu"] for row in large)
    groups = by(large, "instance", "tokens_per_gpu").values()
    cells = []
    for model in MODELS:
        found = agreement(large, model)
        lowest = min(ranking(group, "network", model).steps for group in groups)
        spread = f"{found.lowest:+.1%} to {found.highest:+.1%}"
        cells.append([model, f"{found.median:+.1%}", spread, f"{found.within:.1%}", _rank(lowest)])
    head = ("SimGrid's model", "median", "range", "within 10%", "Spearman of an instance's placements, lowest")
    return (
        f"Where messages are large ({least:,g} tokens per GPU and more: 10 MB and more from node to node on average), "
        f"our times of {len(large):,} all-to-alls are off SimGrid's by\n\n{markdown_table(head, cells, texts=1)}"
    )


def _machine(environment: Mapping[str, Any]) -> str:
    return f"{environment_in_words(environment)}, {environment['date']}. Simulated times do not depend on the machine."


def _what(rows: Rows) -> str:
    methods = {solver: len({row["seed"] for row in group}) for (solver,), group in by(rows, "solver").items()}
    named = ", ".join(name if seeds == 1 else f"{name} ({seeds} seeds)" for name, seeds in methods.items())
    cells = []
    for name, model in MODELS.items():
        options = [model.config[f"network/{option}"] for option in _OPTIONS]
        cells.append([name, model.summary, *options, f"{model.latency_us:g}"])
    return (
        "## What was run\n\n"
        f"The dispatch of single layers, alone on the fabric, of the placements of {named}. Ours is "
        "`moe_placer.schedule.network.Network`; SimGrid's platform is built from the same fabric graph, link by link, "
        "with one flow per shortest path of a node pair. Its models, from our own assumptions to its defaults:\n\n"
        f"{markdown_table(('model', 'assumes', *_OPTIONS, 'latency of a link, µs'), cells, texts=2)}\n\n"
        "Our time has the links' latency on the longest path added, as the schedule adds it; nothing else is fitted."
    )


def _sizes(rows: Rows) -> str:
    cells = []
    for (tokens,), group in by(rows, "tokens_per_gpu").items():
        sizes, times = ([row[field] for row in group] for field in ("mean_flow_bytes", "network_us"))
        span = f"{min(times) / 1e3:.3g} to {max(times) / 1e3:.3g}"
        cells.append([f"{tokens:,g}", _span(sizes), span, *(_off(group, model) for model in MODELS)])
    head = ("tokens per GPU", "bytes from node to node, mean", "our time, ms", *MODELS)
    return (
        "## By size of messages\n\n"
        "Our time over SimGrid's, minus 1: the median over all instances, placements and layers, and the range.\n\n"
        f"{markdown_table(head, cells)}"
    )


def _instances(rows: Rows) -> str:
    cells = []
    for (name,), group in by(_largest(rows), "instance").items():
        flows = f"{min(row['flows'] for row in group)} to {max(row['flows'] for row in group)}"
        cells.append([name, str(len(group)), flows, *(_off(group, model) for model in MODELS)])
    head = ("instance", "all-to-alls", "flows", *MODELS)
    return f"## By instance\n\nThe same, of the largest messages.\n\n{markdown_table(head, cells, texts=1)}"


def _ranks(rows: Rows) -> str:
    sizes = sorted({row["tokens_per_gpu"] for row in rows})
    shown = [row for row in rows if row["tokens_per_gpu"] in {sizes[0], sizes[-1]}]
    cells = []
    for (name, tokens), group in by(shown, "instance", "tokens_per_gpu").items():
        found = [ranking(group, "network", model) for model in MODELS]
        found.append(ranking(group, "bottleneck", next(iter(MODELS))))
        ranks = [f"{_rank(one.steps)} ({_rank(one.median_layer)}, {_rank(one.worst_layer)})" for one in found]
        cells.append([name, f"{tokens:,g}", str(found[0].placements), *ranks])
    head = ("instance", "tokens per GPU", "placements", *MODELS, "worst link")
    return (
        "## Ranks of placements\n\n"
        "Spearman's rank correlation between our times of an instance's placements and SimGrid's: of the sums over "
        "the layers, and in brackets of single layers, the median and the lowest; for the smallest and the largest "
        "messages. The last column ranks by the worst link alone, which placements are optimised for, against "
        f"*{next(iter(MODELS))}*.\n\n{markdown_table(head, cells, texts=1)}"
    )


def _both(rows: Rows) -> str:
    cells = []
    for (name,), group in by(_largest(rows), "instance").items():
        for place, transfer in enumerate(("dispatch", "combine")):
            off = {model: np.array([beside(row, model)[place] - 1 for row in group]) for model in MODELS}
            spans = [f"{np.median(one):+.1%} ({one.min():+.1%} to {one.max():+.1%})" for one in off.values()]
            cells.append([name, transfer, *spans])
    return (
        "## Two at a time\n\n"
        "A dispatch, and once its worst link would be half through, a combine (the dispatch reversed) beside it, as "
        "with two micro-batches: our time over SimGrid's, minus 1, each from its start to its end, of the largest "
        f"messages.\n\n{markdown_table(('instance', 'transfer', *MODELS), cells, texts=2)}"
    )


def _bottleneck(rows: Rows) -> str:
    cells = []
    for (name, solver), group in by(_largest(rows), "instance", "solver").items():
        more = excess(group)
        shares = [f"{(more > limit).mean():.0%}" for limit in (0.01, 0.05)]
        seeds = len({row["seed"] for row in group})
        sums = [sum(row[f"{what}_us"] for row in group) / seeds / 1e3 for what in ("bottleneck", "network")]
        spread = [f"{np.median(more):.2%}", f"{more.max():.2%}"]
        cells.append([name, solver, str(len(group)), *(f"{ms:.2f}" for ms in sums), *spread, *shares])
    facts = ("instance", "solver", "all-to-alls", "worst links, ms", "our time, ms")
    head = (*facts, "longer, median", "largest", "by more than 1%", "by more than 5%")
    return (
        "## Is the worst link the right objective?\n\n"
        "A placement is judged by z, the time that its worst link needs. Fair sharing can take longer: a link idles "
        "while flows that it could take are held up elsewhere. How much longer it takes (our network; the shares are "
        "the same at every size; ms are of the largest messages, layers added up, seeds averaged):\n\n"
        f"{markdown_table(head, cells, texts=2)}\n\n{_first(rows)}"
    )


def _first(rows: Rows) -> str:
    """Say whether the placement with the least worst links is also the fastest."""
    lines = ["The best placement by either measure:", ""]
    for (name,), group in by(_largest(rows), "instance").items():
        placements = by(group, "solver", "seed")
        sums = {
            what: {placement: sum(row[f"{what}_us"] for row in own) / 1e3 for placement, own in placements.items()}
            for what in ("bottleneck", "network")
        }
        cool, fast = (min(sums[what], key=sums[what].__getitem__) for what in ("bottleneck", "network"))
        times = sums["network"]
        if times[cool] <= times[fast]:
            lines.append(f"- {name}: {cool[0]} by both.")
        else:
            lost = times[cool] / times[fast] - 1
            lines.append(f"- {name}: {cool[0]} by worst links, {fast[0]} by time ({cool[0]} takes {lost:.1%} longer).")
    return "\n".join(lines)


def _shortcut(rows: Rows) -> str:
    off = np.array([row["network_us"] / row["exact_us"] - 1 for row in rows])
    spread, most = f"{off.min():+.2%} to {off.max():+.2%}", np.percentile(np.abs(off), 95)
    return (
        "## What spans cost\n\n"
        "`Network` lets flows that end within 2% of a transfer's time end together. Against exact max-min sharing its "
        f"times are {spread} off, {most:.2%} or less in 95% of the rows."
    )


def _beyond(rows: Rows) -> list[str]:
    """Say where SimGrid was faster than its links allow; nothing where it never was."""
    names = {}
    for model, network in MODELS.items():
        usable = float(network.config["network/bandwidth-factor"])
        fast = [row for row in rows if row["simgrid_us"][model] * usable < row["bottleneck_us"] * (1 - _ROUNDING)]
        if fast:
            most = max(row["bottleneck_us"] / row["simgrid_us"][model] / usable - 1 for row in fast)
            names[model] = f"{len(fast)} under *{model}*, by up to {most:.1%}"
    if not names:
        return []
    return [
        "## Where SimGrid is faster than possible\n\n"
        f"Of its {len(rows):,} times under each model some are below what the worst link needs at full bandwidth: "
        f"{'; '.join(names.values())}. There its sharing exceeded a link's capacity, and ours is right. This comes "
        "from its default `network/optim:Lazy`; with `Full`, which later runs of this comparison use, the largest of "
        "these differences is gone: 6,260.1 µs by both, instead of 5,617.4 µs (*CM02*, h100-128-oversubscribed, "
        "contiguous, layer 60, 1,024 tokens per GPU)."
    ]


_WHY = """\
## Where they differ, and why

- **Small messages.** Ours adds the latency of the longest path once. *LV08* multiplies it by 13.01, for TCP's
  slow start: over four links of 0.5 µs that is 26 µs whatever the bytes, more than a small all-to-all takes.
  RDMA has no slow start; what small messages cost besides is for the schedule to add, not for the network.
- **TCP's share of the bandwidth.** *LV08* gives 97% of it to payload, hence 3% at every large size. In ours
  `link_utilization` stands for all such losses.
- **Acknowledgements.** SimGrid's default sends 5% of every flow's rate back. That costs more than 5%: max-min
  sharing gives all flows that cross a full link one rate, and so also those of which only acknowledgements
  cross it. A flow is held back by what goes the other way, the more so where a combine runs beside a dispatch.
  NICs with RDMA acknowledge by far fewer bytes, and are not held back by these.
- **Who gets which share.** Ours gives a node pair one share of a link. With *fair paths* a pair over four
  spines has four shares of its node's link, and a pair under one leaf has one; *CM02* weighs flows by 1 / latency
  besides, so that near pairs get more. How much that changes depends on the placement: the ranges show it.
- **Paths of a pair.** Ours keeps the parts of a pair's flow at one pace, as spraying packets does. SimGrid's
  flows of each path end when they do: on a dragonfly, where a pair's paths are not alike, some end sooner.
- **Neither knows** packets: collisions of ECMP's hashes, incast, pauses, retransmissions."""
_AGAIN = """\
## Run it again

`config.json` says what is compared. SimGrid compiles for minutes, and pyproject.toml says with what (extra `simgrid`).

```
python -m benchmarks.simgrid reports/2026-11-24-simgrid          # rows, environment, page
python -m benchmarks.simgrid reports/2026-11-24-simgrid --page   # the page alone, from the rows
pytest -m simgrid                                                   # a few small cases
```"""


def _largest(rows: Rows) -> list[Row]:
    """Return the rows of the largest messages."""
    most = max(row["tokens_per_gpu"] for row in rows)
    return [row for row in rows if row["tokens_per_gpu"] == most]


def _off(rows: list[Row], model: str) -> str:
    found = agreement(rows, model)
    return f"{found.median:+.1%} ({found.lowest:+.1%} to {found.highest:+.1%})"


def _span(sizes: list[float]) -> str:
    low, high = min(sizes), max(sizes)
    unit, name = next((unit, name) for unit, name in ((1e6, "MB"), (1e3, "kB"), (1.0, "B")) if high >= unit)
    return f"{low / unit:.3g} to {high / unit:.3g} {name}"


def _rank(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
