"""Tables with every token's choice, in Parquet or Arrow: one or several files in order, counted batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_placer.engines.recordings.import_options import Options
from moe_placer.engines.recordings.recorded import Found, Recorded, finish
from moe_placer.engines.recordings.tally import MOST_EXPERTS, MOST_WINDOWS, Tally, cut_in_steps
from moe_placer.errors import InputError, Mistake
from moe_placer.traffic.stored_choices import count_choices, draw_tokens
from moe_placer.traffic.token_table import TableBlock, TokenTable, open_token_table

__all__ = ["read_recorded_tables"]

_MOST_RANKS = 65_536


def read_recorded_tables(files: Sequence[Path], options: Options) -> Recorded:
    """Count all tokens and keep some; windows have equally many tokens, in the order of rows."""
    tables = [open_token_table(file) for file in files]
    first = tables[0]
    for table in tables:
        if (table.layers, table.top_k, table.names) != (first.layers, first.top_k, first.names):
            columns = ", ".join(table.names) or "no more"
            other = f"{len(table.layers)} layers, top-{table.top_k}, columns of tokens: {columns}"
            raise InputError(Mistake(other, f"the same as in {first.file.name}", file=table.file))
    total = sum(table.tokens for table in tables)
    sources = max(_count_ranks(table) for table in tables)
    wanted, steps = draw_tokens(total, options.keep_tokens), min(MOST_WINDOWS, total)
    tally = Tally(len(first.layers), options.experts or 1, sources=sources, steps=steps, wanted=wanted)
    with options.progress(total, "tokens") as advance:
        for table in tables:
            for block in table.blocks():
                _check(table, block, options)
                for step, start, end in cut_in_steps(len(block.ids), tally.tokens, steps, total):
                    _add(tally, block, step, slice(start, end))
                advance(len(block.ids))
    notes = [] if sources else ["which rank a token started on is not recorded"]
    if not options.experts:
        notes.append(f"{tally.load.shape[1]} experts are known from the largest id; --experts says how many there are")
    found = Found(
        "table of tokens",
        "",
        files,
        decoder_rows=False,
        experts_known=bool(options.experts),
        top_k=first.top_k,
        row_layers=None if first.layers == tuple(range(len(first.layers))) else first.layers,
        notes=notes,
    )
    return finish(tally, found)


def _count_ranks(table: TokenTable) -> int:
    """Return how many source ranks there are; 0 where the table does not tell them apart."""
    if "source" not in table.names:
        return 0
    ends = [(int(ranks.min()), int(ranks.max())) for ranks in table.numbers("source") if len(ranks)]
    least, most = min(low for low, _ in ends), max(high for _, high in ends)
    if least < 0 or most >= _MOST_RANKS:
        found, expected = f"rank {least if least < 0 else most}", f"ranks from 0 to {_MOST_RANKS - 1:,}"
        raise InputError(Mistake(found, expected, "source", table.file))
    return most + 1


def _check(table: TokenTable, block: TableBlock, options: Options) -> None:
    least, most, limit = int(block.ids.min()), int(block.ids.max()), options.experts or MOST_EXPERTS
    if least < -1 or most >= limit:
        expected = f"ids from 0 to {limit - 1}, or -1 for none"
        raise options.wrong(table.file, f"expert {least if least < -1 else most}", expected, "experts")


def _add(tally: Tally, block: TableBlock, step: int, rows: slice) -> None:
    ids, experts = block.ids[rows], max(int(block.ids.max()) + 1, tally.load.shape[1])
    source, sequence = (block.of_tokens[name][rows] if name in block.of_tokens else None for name in ("source", "seq"))
    if source is None:
        tally.add_counts(count_choices(ids, experts), step)
    else:
        for rank in np.unique(source).tolist():
            tally.add_counts(count_choices(ids[source == rank], experts), step, rank)
    chosen = tally.next_tokens(len(ids))
    of_kept = (None if values is None else values[chosen] for values in (source, sequence))
    tally.keep(ids[chosen], step, *of_kept)
