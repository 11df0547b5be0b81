"""Bytes of a token there and back, and GPUs by name: by hand, in link times, in DAGs, and as before without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import ONE_LAYER, in_order, recomputed, tiny_instance, tiny_traffic

from moe_placer.dag.drawing_files import write_dags
from moe_placer.errors import InputError
from moe_placer.fabric import link_us
from moe_placer.instance import Instance, load_instance
from moe_placer.instance.gpu_presets import NAMES, PRESETS
from moe_placer.instance.reader import make_instance
from moe_placer.instance.sizes import back_ratio, combine_wire, dispatch_wire, token_bytes, token_us
from moe_placer.limits import Limits
from moe_placer.problem.compile import compile_problem
from moe_placer.solve.solve import solve
from moe_placer.verifier.dags import verify_dags

REPO = Path(__file__).parents[2]
FP8: dict[str, Any] = {"placement": {"dispatch_dtype": "fp8", "combine_dtype": "bf16"}}


def seed_plan(**placement: Any) -> Instance:
    plan = load_instance(REPO / "instances" / "h100-128.yaml").model_dump()
    return Instance.model_validate({**plan, "placement": plan["placement"] | placement})


def test_bytes_by_hand() -> None:
    # 7,168 values: in fp8 a byte each and 56 scales of 4 bytes; in bf16 2 bytes each; in fp4 half a byte, 448 scales.
    instance = seed_plan(dispatch_dtype="fp8", combine_dtype="bf16")
    assert (dispatch_wire(instance).token_bytes, combine_wire(instance).token_bytes) == (7168 + 224, 14336)
    assert dispatch_wire(seed_plan(dispatch_dtype="fp4")).token_bytes == 3584 + 448
    assert dispatch_wire(tiny_instance(model={"hidden_size": 130}, **FP8)).token_bytes == 130 + 2 * 4
    assert back_ratio(instance) == pytest.approx(14336 / 7392)


def test_without_the_fields_everything_is_as_it_was() -> None:
    plain, same = seed_plan(), load_instance(REPO / "instances" / "h100-128.yaml")
    assert plain.sha256 == same.sha256 == "46b51102f083adf23560a9089f7519b6efbbb2158e8a801325054ebedbd7b76d"
    assert dispatch_wire(plain) == combine_wire(plain)
    assert dispatch_wire(plain).token_bytes == token_bytes(plain) == 14336
    assert back_ratio(plain) == 1.0
    assert seed_plan(dispatch_dtype="bf16").sha256 != plain.sha256
    # A model in fp8 whose wire is not asked for has no scales, as before.
    assert dispatch_wire(tiny_instance(model={"dtype": "fp8"})).token_bytes == 64


def test_times_count_what_is_sent_there_and_back() -> None:
    plain, fp8 = tiny_instance(), tiny_instance(**FP8)
    traffic = tiny_traffic(plain)
    before, found = (recomputed(one, in_order(one), traffic) for one in (plain, fp8))
    ratio = (64 + 4) / 128
    assert found.dispatch_us == pytest.approx(before.dispatch_us * ratio)
    assert found.combine_us == pytest.approx(before.combine_us)
    assert before.combine_us == before.dispatch_us
    assert found.us == pytest.approx(before.us * ratio)
    assert token_us(fp8) == pytest.approx(token_us(plain) * ratio)
    gb_per_s, load = np.array([50.0]), np.array([1000.0])
    assert link_us(fp8, gb_per_s, load)[0] == pytest.approx(1e6 * 1000 * 68 / (50e9 * 0.8))
    # The price of a GPU's time counts both directions.
    prices = [compile_problem(one, traffic).gpu_price for one in (plain, fp8)]
    assert prices[1] == pytest.approx(prices[0] * 2 / (1 + ratio))


def test_dags_carry_both_types_and_a_false_one_is_reported(tmp_path: Path) -> None:
    instance = tiny_instance(model=ONE_LAYER, **FP8)
    traffic = tiny_traffic(instance)
    placement = solve(instance, traffic, limits=Limits(work=0.1)).placement
    write_dags(instance, placement, traffic, tmp_path)
    assert [check.violations for check in verify_dags(instance, placement, tmp_path, traffic)] == [()] * 4
    file = tmp_path / "detailed_expert_dag.json"
    edges = {row["tensor"]: row for row in json.loads(file.read_text())["edges"] if "tensor" in row}
    sent = next(row for name, row in edges.items() if name.startswith("sent."))
    back = next(row for name, row in edges.items() if name.startswith("back."))
    assert (sent["dtype"], back["dtype"]) == ("fp8+scales", "bf16")
    assert sent["bytes"] == pytest.approx(sent["shape"][0] * 68)
    assert back["bytes"] == pytest.approx(back["shape"][0] * 128)
    other = tiny_instance(model=ONE_LAYER)  # whose DAG would have other bytes on the way
    checks = verify_dags(other, placement, tmp_path, traffic)
    assert {violation.rule for check in checks for violation in check.violations} >= {"dag-shapes", "dag-traffic"}


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_has_the_figures_of_its_name(name: str) -> None:
    sections = tiny_instance().model_dump()
    cluster = {key: value for key, value in sections["cluster"].items() if key != "nvlink_gb_per_s"}
    for dtype in ("bf16", "fp8"):
        model = {**sections["model"], "dtype": dtype}
        made = make_instance(**{**sections, "model": model, "cluster": {**cluster, "gpu": name.upper()}})
        key = name.removesuffix("-sxm")
        if key == "h100-seed":
            assert (made.cluster.gpu.memory_gb, made.cluster.gpu.peak_tflops, made.cluster.gpu.mfu) == (64, 400, 0.6)
            continue
        preset = PRESETS[key]
        assert (made.cluster.gpu.name, made.cluster.gpu.memory_gb) == (preset.name, preset.memory_gb)
        assert made.cluster.gpu.peak_tflops == preset.peak(dtype)[0]
        assert made.cluster.nvlink_gb_per_s == preset.nvlink_gb_per_s


def test_the_seed_plan_keeps_its_own_numbers() -> None:
    plan = load_instance(REPO / "instances" / "h100-128.yaml")
    sections = plan.model_dump()
    sections["cluster"]["gpu"] = "h100-seed"
    named = make_instance(**sections)
    assert named.cluster.gpu.model_copy(update={"name": "H100"}) == plan.cluster.gpu
    assert named.cluster.nvlink_gb_per_s == plan.cluster.nvlink_gb_per_s


def test_an_unknown_gpu_is_told_the_known_ones() -> None:
    sections = tiny_instance().model_dump()
    sections["cluster"]["gpu"] = "h1000"
    with pytest.raises(InputError) as caught:
        make_instance(**sections)
    assert "cluster.gpu: found the text 'h1000'" in str(caught.value)
    assert "or one of h100-seed, a100" in str(caught.value)
