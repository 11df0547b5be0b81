"""Reads recordings for tests, and writes counts the ways people do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_recordings import (
    make,
)
from hypothesis import settings
from hypothesis import strategies as st

from moe_placer.engines.recordings import Options, Recorded, read_recording
from moe_placer.errors import InputError, Mistake

EACH = settings(max_examples=15, deadline=None)
TRUTHS = st.builds(
    make,
    st.integers(0, 2**32),
    dense=st.sampled_from([(), (0,), (0, 1)]),
    layers=st.integers(3, 4),
    ranks=st.integers(2, 4),
    steps=st.integers(1, 4),
    top_k=st.integers(2, 3),
    redundant=st.integers(0, 3),
)


def read(*paths: Path, **options: Any) -> Recorded:
    return read_recording(paths, Options(**options))


def mistake_of(*paths: Path, **options: Any) -> Mistake:
    with pytest.raises(InputError) as caught:
        read(*paths, **options)
    (mistake,) = caught.value.mistakes
    assert "\n" not in str(mistake)
    return mistake


def fresh(folder: Path) -> Path:
    """Make a new folder in one that hypothesis uses again and again."""
    made = folder / f"{len(list(folder.iterdir()))}"
    made.mkdir()
    return made


def write_counts(folder: Path, kind: str, table: np.ndarray) -> Path:
    file = folder / f"load.{kind.split('-')[0]}"
    long = [(layer, expert, count) for layer, row in enumerate(table) for expert, count in enumerate(row)]
    names = ["layer", *(f"e{i}" for i in range(table.shape[1]))]
    rows = [[layer, *row] for layer, row in enumerate(table.tolist())]
    if kind == "npy":
        np.save(file, table)
    elif kind == "npz":
        np.savez(file, load=table)
    elif kind == "csv":
        np.savetxt(file, table, "%d", ",")
    elif kind == "csv-names":
        file.write_text("\n".join(",".join(map(str, row)) for row in [names, *rows]))
    elif kind == "csv-long":
        file.write_text("layer,expert,count\n" + "".join(f"{a},{b},{c}\n" for a, b, c in reversed(long)))
    elif kind == "json":
        file.write_text(json.dumps(table.tolist()))
    elif kind == "json-sglang":
        file.write_text(json.dumps({"logical_count": table.tolist()}))
    elif kind == "json-adrs":
        file.write_text(json.dumps({"load_history": [{"logical_expert_load": table.tolist()}]}))
    else:
        import pyarrow.parquet

        columns = dict(zip(("layer", "expert", "count"), zip(*long, strict=True), strict=True))
        if kind == "parquet":
            columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        pyarrow.parquet.write_table(pyarrow.table({name: list(column) for name, column in columns.items()}), file)
    return file


KINDS = ("npy", "npz", "csv", "csv-names", "csv-long", "json", "json-sglang", "json-adrs", "parquet", "parquet-long")
