"""Predictions against published kernels and systems; the report has all of them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from click.testing import CliRunner
from drafted import CONFIGS, write

from benchmarks.fidelity import __main__ as command
from benchmarks.fidelity.deployments import MODEL
from benchmarks.fidelity.fidelity_page import build_page
from benchmarks.fidelity.kernels import aiconfigurator_rows, low_latency_rows, normal_rows
from benchmarks.fidelity.left_out import FailedError, LeftOutError
from benchmarks.fidelity.published import SYSTEMS
from benchmarks.fidelity.systems import LIMIT, predict
from moe_placer.engines.init import read_model_config

REPORT = max((Path(__file__).parents[2] / "reports").glob("*-fidelity"))


def rows_of_report() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (REPORT / "results.jsonl").read_text().splitlines()]


def test_low_latency_kernels_are_within_15_percent() -> None:
    rows = list(low_latency_rows())
    assert len(rows) == 12
    assert max(abs(row["ratio"] - 1) for row in rows) <= 0.15


def test_normal_kernels_are_within_15_percent_where_nics_bind() -> None:
    rows = list(normal_rows())
    assert [row["gpus"] for row in rows if row["limit"]] == [32, 32, 64, 64]
    assert all(abs(row["ratio"] - 1) <= row["limit"] for row in rows if row["limit"])
    # Where NVLink binds we forward a copy to every expert, and DeepEP to every GPU: 8 experts are on 5.3 of 8 GPUs.
    alone = [row for row in rows if row["gpus"] == 8]
    assert all(row["ratio"] * row["counted_copies"] / 8 == pytest.approx(1, abs=0.15) for row in alone)


@pytest.mark.skipif(importlib.util.find_spec("aiconfigurator_core") is None, reason="needs the extra fidelity")
def test_measured_tables_are_within_15_percent_in_the_median() -> None:
    off = [abs(row["ratio"] - 1) for row in aiconfigurator_rows() if row["limit"]]
    assert len(off) == 54
    assert median(off) <= 0.15
    assert max(off) <= 0.35


@pytest.mark.parametrize("name", ["DeepSeek prefill EP32 profile", "DeepSeek decode EP128 profile, 128 per GPU"])
def test_profiles_are_predicted_within_25_percent(name: str) -> None:
    (system,) = (one for one in SYSTEMS if one.name == name)
    predicted = predict(system, {}, True, 2)
    assert abs(predicted / system.tokens_per_s - 1) <= LIMIT
    (row,) = (row for row in rows_of_report() if (row.get("system"), row.get("variant")) == (name, "as it is"))
    assert row["predicted"] == pytest.approx(predicted, rel=1e-6)  # the committed report is of this code


def test_the_model_is_that_of_its_config(tmp_path: Path) -> None:
    fields = read_model_config(write(tmp_path, "config.json", CONFIGS["deepseek_v3"])).fields
    assert {key: fields[key] for key in MODEL} == MODEL


def test_the_page_is_made_from_the_rows() -> None:
    rows = rows_of_report()
    assert (REPORT / "README.md").read_text() == build_page(rows)
    assert {row["part"] for row in rows} == {"low-latency", "normal", "measured", "systems", "packets"}
    assert all(row["source"] and row["sure"] for row in rows)
    assert all(row["source"] in (REPORT / "README.md").read_text() for row in rows)


@pytest.mark.parametrize("part", ["low-latency", "normal", "measured", "systems", "packets"])
def test_a_page_of_one_part_or_none(part: str) -> None:
    rows = [row for row in rows_of_report() if row["part"] == part]
    lines = build_page(rows).splitlines()
    assert any(line in (REPORT / "README.md").read_text().splitlines() for line in lines if line.startswith("|"))
    assert "What had to be reached" in build_page([])


def test_what_fails_or_is_left_out_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set-ups of real packets that ended are written, those that did not keep their rows, and other parts are made."""
    rows = rows_of_report()
    packets = [row for row in rows if row["part"] == "packets"]
    setups = list(dict.fromkeys(row["setup"] for row in packets))
    asked = []

    def fails(placements: int) -> Iterator[list[dict[str, Any]]]:
        asked.append(placements)
        yield [{**row, "measured": row["measured"] + 1} for row in packets if row["setup"] == setups[0]]
        raise FailedError(f"{setups[1]}: a flow alone reaches 0.5")

    def left_out(placements: int) -> Iterator[list[dict[str, Any]]]:
        raise LeftOutError("not here")
        yield []

    def made(placements: int) -> Iterator[list[dict[str, Any]]]:
        yield [row for row in rows if row["part"] == "normal"]

    monkeypatch.setattr(command, "_PARTS", {"packets": fails, "low-latency": left_out, "normal": made})
    old = [row for row in rows if row["part"] in {"packets", "low-latency"}]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    done = CliRunner().invoke(command.main, [str(tmp_path), "--placements", "2"])
    assert done.exit_code == 1
    assert asked == [2]
    assert f"packets failed after 44 rows, the others stay as they are: {setups[1]}: a flow alone" in done.stderr
    assert "low-latency is left out: not here" in done.stderr
    assert "normal: 8 rows" in done.stderr
    written = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(written) == len(old) + 8
    assert [row for row in written if row.get("setup") == setups[1]] == [r for r in old if r.get("setup") == setups[1]]
    assert min(row["measured"] for row in written if row.get("setup") == setups[0]) > 2
    assert (tmp_path / "README.md").read_text() == build_page(written)
