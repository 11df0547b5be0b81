"""What a layer costs by the number of GPUs: the law, the workers that an answer takes, and rows from real solves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kept_rows import HEAD, cells

import moe_placer
from benchmarks.checkouts import REPOSITORY, Checkout
from benchmarks.scale.ladder import FAMILIES, instance_of, ladder_rows
from benchmarks.scale.scale_page import Cost, build_page, cost_of, power_law, workers_needed


def row(gpus: int, cpu: float, search: float, **more: Any) -> dict[str, Any]:
    found = {"layers": 4, "experts": gpus // 2, "cpu_s": cpu, "compile_cpu_s": 1.0, "search_cpu_s": [search / 4] * 4}
    rest = {"peak_bytes": 5e8, "gaps": [0.0001, 0.0005]}
    return {**HEAD, "commit": "new", "family": "two replicas", "gpus": gpus, **found, **rest, **more}


def test_the_law_is_found_again() -> None:
    sizes = (128, 256, 1024, 4096)
    assert power_law(sizes, [3e-4 * n**1.4 for n in sizes]) == pytest.approx((3e-4, 1.4))


def test_workers_share_the_search_and_the_coordinator_does_the_rest() -> None:
    assert cost_of(row(128, 9.0, 4.0)) == Cost(1.0, 2.0, 1.0)
    hard = row(128, 29.0, 4.0) | {"search_cpu_s": [1.0, 21.0, 1.0, 1.0]}  # one layer goes on until its effort is spent
    assert cost_of(hard) == Cost(1.0, 2.0, 1.0)
    both = row(4096, 29.0, 4.0, stages_cpu_s=8.0, network_cpu_s=4.0)  # of 20 s besides once and search, 8 go to workers
    assert cost_of(both) == Cost(5.0, 6.0, 3.0)
    # 60 - 2 - 58 x 0.5 = 29 s are left for 58 x 3 = 174 s of search.
    assert workers_needed(Cost(2.0, 3.5, 3.0)) == 6
    assert workers_needed(Cost(0.0, 0.1, 0.1)) == 1
    assert workers_needed(Cost(3.0, 4.0, 3.0)) is None  # 58 s of the coordinator, and 3 s before


def test_the_page_has_measured_sizes_the_law_and_what_failed() -> None:
    measured = [row(1024, 5.0, 2.0), row(2048, 9.0, 4.0), row(4096, 17.0, 8.0)]
    hard = row(128, 99.0, 80.0, gaps=[0.0005, 0.002])  # effort ran out: shown, and not in the law
    page = build_page(
        [
            hard,
            *measured,
            row(8192, 9.0, 2.0, layers=1, search_cpu_s=[2.0], commit="one"),
            row(4096, 0, 0, commit="old", error="no memory"),
        ]
    )
    lines = {cells(line)[0]: cells(line) for line in page.splitlines() if line.startswith("| ") and "GPUs" not in line}
    assert lines["128"][3:8] == ["24.50", "20.00", "500", "0.200%", ""]
    assert lines["2,048"][:8] == ["2,048", "1,024", "1.00", "2.00", "1.00", "500", "0.050%", "1.00"]
    assert lines["8,192 (by the law)"][3] == "8.00"
    assert "x (GPUs / 1,000)^**1.00**, from 1,024 to 4,096 GPUs" in page
    assert "| 4,096 | no memory |" in page
    assert lines["8,192, one layer"][2:5] == ["1.00", "8.00", "2.00"]
    assert lines["1,024"][8:] == ["1", "1"]  # 29 s of search in 60 - 1 - 29; 1 + 58 x 1 s are in time
    assert lines["2,048"][8:] == ["58", "2"]
    assert lines["8,192 (by the law)"][8].startswith("none: the coordinator takes 233 s")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gpus", [128, 16_384])
def test_sizes_are_instances(family: str, gpus: int) -> None:
    instance = moe_placer.make_instance(**instance_of(family, gpus))
    assert instance.gpus == gpus
    assert instance.replicas_per_layer == gpus


@pytest.mark.slow
def test_rows_are_measured_by_the_code_that_is_asked(tmp_path: Path) -> None:
    (found, _) = ladder_rows(Checkout("here", REPOSITORY), [128], tmp_path, 60.0, layers=1)
    spent = sum(found["search_cpu_s"]) + found["compile_cpu_s"] + found["stages_cpu_s"] + found["network_cpu_s"]
    assert 0 < spent < found["cpu_s"]
    assert found["stages_cpu_s"] == 0.0  # layers of 128 GPUs are small
    assert found["bound"] <= found["z"]
    assert max(found["gaps"]) <= 0.001
    (failed, _) = ladder_rows(Checkout("broken", tmp_path), [128], tmp_path, 60.0, layers=1)
    assert "AssertionError" in failed["error"]
