"""Sweeps: who is faster from which batch on, what memory holds, and what the command writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import honest, tiny_instance
from click.testing import CliRunner
from dag_examples import example
from hypothesis import given
from hypothesis import strategies as st

from moe_placer.cli.commands import cli
from moe_placer.errors import InputError, MoePlacerError, NothingFoundError, UsageError
from moe_placer.experiments.sweep.__main__ import main as study_command
from moe_placer.experiments.sweep.crossing import find_crossings
from moe_placer.experiments.sweep.findings import answers
from moe_placer.experiments.sweep.study import read_study
from moe_placer.experiments.sweep.sweep import (
    Grid,
    Plan,
    expert_parallelism,
    list_points,
    make_plan,
    run_points,
)
from moe_placer.experiments.sweep.sweep_page import build_page
from moe_placer.instance import Instance, load_instance
from moe_placer.placement import Placement
from moe_placer.schedule.memory_limits import longest_context, most_tokens
from moe_placer.schedule.program import compile_program
from moe_placer.schedule.simulate import simulate
from moe_placer.schedule.step_figures import SHARES, find_figures
from moe_placer.schedule.workload import Workload
from moe_placer.traffic import load_traffic
from moe_placer.workers import run_each, usable_cores

Row = dict[str, Any]
ENVIRONMENT: Row = {
    "points": 2, "seconds": 1.0, "workers": 1, "cpu": "c", "cores": 2, "memory_gb": 1.0, "system": "s", "python": "3",
    "versions": {}, "commit": None, "date": "2026-11-24",
}  # fmt: skip


def plan(name: str = "small", label: str | None = None) -> Plan:
    return make_plan(*example(name), label)


def swept(plans: list[Plan], grid: Grid, workers: int = 1) -> list[Row]:
    rows = dict(run_points(plans, list_points(plans, grid), workers))
    return [{"sweep": "Sweep", **rows[index]} for index in sorted(rows)]


BUSY = (0.9, 0.1, 0.0, 0.0)
AS_PLANNED = (0.44, 0.31, 0.15, 0.10)


def curve(
    label: str,
    latency: list[float],
    most: float = 1e9,
    shares: Sequence[tuple[float, ...]] = (BUSY,),
    planned: tuple[float, ...] | None = None,
) -> list[Row]:
    """Rows of a plan whose steps take so many µs at 1, 10, 100, ... tokens per GPU."""
    return [
        {
            "sweep": "Made up", "plan": label, "phase": "prefill", "context": 1.0, "oversubscription": None,
            "tokens_per_gpu": 10.0**index, "latency_us": us, "fits": 10**index <= most,
            "most_tokens_per_gpu": most, "tokens_per_s_per_gpu": 10.0**index / us * 1e6,
            "shares": dict(zip(SHARES, shares[index % len(shares)], strict=True)),
            **({} if planned is None else {"planned_shares": dict(zip(SHARES, planned, strict=True))}),
        }
        for index, us in enumerate(latency)
    ]  # fmt: skip


def test_a_crossing_by_hand() -> None:
    # Ratios 1/4 and 4: equal in the middle of the logarithmic axis.
    (found,) = find_crossings([1, 100], [1, 8], [4, 2])
    assert (found.low, found.high, found.at) == (1, 100, pytest.approx(10))
    assert not found.first_wins_after
    assert find_crossings([1, 2, 3], [1, 2, 3], [2, 3, 4]) == []


def test_equal_values_are_where_curves_cross_or_touch() -> None:
    (found,) = find_crossings([1, 2, 4], [2, 3, 1], [1, 3, 5])
    assert (found.low, found.at, found.high, found.first_wins_after) == (1, 2, 4, True)
    assert find_crossings([1, 2, 4], [2, 3, 6], [1, 3, 5]) == []


@given(a=st.floats(0.1, 10), b=st.floats(0.1, 10), p=st.floats(0.2, 0.9), q=st.floats(1.1, 2))
def test_power_laws_cross_where_they_are_equal(a: float, b: float, p: float, q: float) -> None:
    at = (a / b) ** (1 / (q - p))  # a x^p = b x^q
    x = [at / 7, at / 3, at * 2, at * 5]
    (found,) = find_crossings(x, [a * v**p for v in x], [b * v**q for v in x])
    assert found.at == pytest.approx(at)
    assert found.first_wins_after


@pytest.mark.parametrize("x", [[2, 1], [1, 1], [0, 1]])
def test_crossings_need_ascending_positive_batches(x: list[float]) -> None:
    with pytest.raises(ValueError, match=r"ascend|positive"):
        find_crossings(x, [1, 1], [1, 1])


def test_answers_name_the_crossing_and_what_fits() -> None:
    first, best, *_, held = answers(curve("A", [1, 2, 40], 50) + curve("B", [4, 8, 10], 5))
    assert (
        "from about 31.6 tokens per GPU on (between the swept 10 and 100, more than memory holds with one of them) B"
        in first
    )
    assert "-75.0% at 1, +300.0% at 100" in first
    assert held == "memory holds, in tokens per GPU, up to 50 with A, 5 with B."
    assert "A 5,000,000 tokens/s per GPU at 10" in best
    assert "B 250,000 tokens/s per GPU at 1 " in best


def test_answers_say_where_the_plans_shares_hold() -> None:
    shares = (BUSY, AS_PLANNED, (0.8, 0.2, 0.0, 0.0))
    plan = (0.40, 0.35, 0.15, 0.10)
    (line,) = (line for line in answers(curve("A", [1, 2, 4], 1e9, shares, plan)) if "deployment plan" in line)
    assert line.endswith("hold with A at 10 tokens per GPU.")
    (line,) = (line for line in answers(curve("A", [1, 2, 4], 1e9, shares[::2], plan)) if "deployment plan" in line)
    assert line.endswith("hold with A at no swept batch; nearest are 80/20/0/0 % at 10 tokens per GPU.")
    assert not [line for line in answers(curve("A", [1, 2, 4], 1e9, shares)) if "deployment plan" in line]


def test_steps_within_two_percent_are_called_equal() -> None:
    same = answers(curve("A", [100, 200]) + curve("B", [101, 197]))[0]
    every = "at every swept batch, 1 to 10 tokens per GPU"
    assert same == f"A and B have equally long steps {every}, within 2% (-1.0% to +1.5%)."
    mixed = answers(curve("A", [101, 300]) + curve("B", [100, 200]))[0]
    assert mixed.startswith(f"B has the shorter step {every}, but for equal ones at 1 (")
    # 1.9% at 10 tokens decides nothing: the plans cross once, where the curves do, between 1 and 100.
    crossed = answers(curve("A", [90, 101.9, 120]) + curve("B", [100, 100, 100]))[0]
    assert crossed.startswith("from about 7.05 tokens per GPU on (between the swept 1 and 100) B has the shorter step")
    rows = [{**row, "phase": phase} for phase, us in (("prefill", 99.0), ("decode", 90.0)) for row in
            curve("A", [us]) + curve("B", [100.0])]  # fmt: skip
    assert answers(rows)[0] == "step of A against B: prefill -1.0% (equal), decode -10.0%."


def test_answers_say_where_nothing_crosses_and_nothing_fits() -> None:
    first, best, *_, held = answers(curve("A", [2, 4, 8], 0) + curve("B", [1, 2, 2], 0))
    assert first.startswith("B has the shorter step at every swept batch, 1 to 100 tokens per GPU ")
    assert "(step of A against B: +100.0% to +300.0%)" in first
    assert held == "memory holds, in tokens per GPU, up to 0 with every plan."
    assert "A none" in best
    same = answers(curve("A", [1, 2]) + curve("B", [1, 2]))[0]
    assert same.startswith("A and B have equally long steps at every swept batch")


def test_a_constructed_crossing_is_found_in_simulated_steps() -> None:
    # One plan starts kernels for experts of four nodes and pays for slow links; the other reads four times the weights
    # but sends nothing between nodes: for few tokens the first is faster, for many the second.
    slow = {
        "cluster": {
            "fabric": {"kind": "full-mesh", "node_gb_per_s": 0.05},
            "gpu": {"memory_gb": 1.0, "memory_bandwidth_tb_per_s": 0.0002},
        }
    }
    spread = tiny_instance(**slow, parallelism={"dp": 1}, placement={"slots_per_gpu": 1}, model={"experts": 8})
    own = tiny_instance(**slow, parallelism={"dp": 4}, placement={"slots_per_gpu": 4}, model={"experts": 8})
    plans = []
    for instance, label in ((spread, "spread"), (own, "own")):
        gpu = [
            [
                [(r * 8 + e) // instance.placement.slots_per_gpu for r in range(instance.parallelism.dp)]
                for e in range(8)
            ]
            for _ in instance.moe_layers
        ]
        plans.append(made(instance, gpu, label))
    rows = swept(plans, Grid(tokens_per_gpu=(1.0, 10.0, 100.0, 1000.0), contexts=(1.0,)))
    by_plan = [[row["latency_us"] for row in rows if row["plan"] == one.label] for one in plans]
    assert by_plan[0][0] < by_plan[1][0]
    assert by_plan[0][-1] > by_plan[1][-1]
    (crossing,) = find_crossings([1, 10, 100, 1000], *by_plan)
    assert not crossing.first_wins_after
    # Simulated there, both steps take about as long.
    there = swept(plans, Grid(tokens_per_gpu=(crossing.at,), contexts=(1.0,)))
    assert there[0]["latency_us"] == pytest.approx(there[1]["latency_us"], rel=0.25)


def made(instance: Instance, gpu: Any, label: str) -> Plan:
    from builders import level_traffic

    layers = len(instance.moe_layers)
    traffic = level_traffic(instance, [[1.0] * instance.model.experts] * layers, instance.model.experts / 2)
    return make_plan(instance, Placement.model_validate(honest(instance, traffic, gpu)), traffic, label)


def test_points_are_every_combination_in_order() -> None:
    points = list_points([plan()], Grid(("prefill", "decode"), (1.0, 2.0), (8.0, 16.0), (1.0, 2.0, 4.0)))
    assert len(points) == 2 * 2 * 2 * 3
    assert [(p.workload.tokens_per_gpu, p.oversubscription) for p in points[:3]] == [(1, 1), (2, 1), (1, 2)]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(tokens_per_gpu=(1.0, 1.0)), "1.0 is given twice"),
        (Grid(contexts=()), "no value"),
        (
            Grid(contexts=tuple(map(float, range(1, 200))), tokens_per_gpu=tuple(map(float, range(1, 200)))),
            "39,601 points",
        ),
        (Grid(tokens_per_gpu=(-1.0,)), "-1 tokens per GPU"),
        (Grid(contexts=(float("nan"),)), "context is nan"),
        (Grid(oversubscriptions=(0.0,)), "oversubscription is 0"),
        (Grid(oversubscriptions=(float("nan"),)), "oversubscription is nan"),
        (Grid(micro_batches=7), "7 micro-batches"),
    ],
)
def test_grids_that_make_no_sense_are_refused(grid: Grid, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list_points([plan()], grid)


def test_only_fat_trees_are_oversubscribed() -> None:
    with pytest.raises(UsageError, match="full-mesh"):
        list_points([plan("full-mesh")], Grid(oversubscriptions=(2.0,)))


def test_a_program_on_another_fabric_is_that_compiled_for_it() -> None:
    instance, placement, traffic = example()
    (row,) = swept([plan()], Grid(oversubscriptions=(8.0,), tokens_per_gpu=(1e5,)))
    fabric = instance.cluster.fabric.model_copy(update={"oversubscription": 8.0})
    other = instance.model_copy(update={"cluster": instance.cluster.model_copy(update={"fabric": fabric})})
    timeline = simulate(compile_program(other, placement, traffic), Workload(tokens_per_gpu=1e5))
    assert row["latency_us"] == timeline.makespan
    assert row["oversubscription"] == 8.0


def test_a_plan_under_another_kernel_is_that_of_an_instance_with_it() -> None:
    instance, placement, traffic = example()
    grid = Grid(tokens_per_gpu=(1e5,), receives=(None, "destination-gpu"))
    own, other = swept([make_plan(instance, placement, traffic, kernels=grid.kernels)], grid)
    assert (own["receive"], other["receive"]) == ("shared", "destination-gpu")
    nodes, cluster = instance.cluster.gpus_per_node, instance.model_dump(mode="json")
    each = instance.cluster.fabric.node_gb_per_s / nodes
    cluster["cluster"]["nics"] = {"per_node": nodes, "gb_per_s": each, "receive": "destination-gpu"}
    direct = compile_program(Instance.model_validate(cluster), placement, traffic)
    assert other["latency_us"] == simulate(direct, Workload(tokens_per_gpu=1e5)).makespan
    assert (
        own["latency_us"] == simulate(compile_program(instance, placement, traffic), Workload("prefill", 1e5)).makespan
    )
    assert other["latency_us"] > own["latency_us"]
    with pytest.raises(UsageError, match="was not compiled for"):
        list_points([plan()], grid)


def test_answers_are_given_kernel_by_kernel() -> None:
    rows = [{**row, "dispatch": unit, "receive": "shared"} for unit, factor in (("per-expert", 1), ("per-node", 3))
            for row in curve("A", [1 * factor, 8]) + curve("B", [2, 2])]  # fmt: skip
    first, _, second, *_ = answers(rows)
    assert first.startswith("dispatch per-expert: from about ")
    assert second.startswith("dispatch per-node: B has the shorter step at every swept batch")


def test_steps_grow_with_batch_context_and_oversubscription() -> None:
    # Large amounts, one micro-batch: no anomalies of the order (Graham, 1969) hide what is longer by the formulas.
    for grid in (
        Grid(tokens_per_gpu=(1e4, 2e4, 4e4), micro_batches=1),
        Grid(("decode",), (1e3,), (1e3, 4e3, 2e4), micro_batches=1),
        Grid(tokens_per_gpu=(1e5,), oversubscriptions=(1.0, 2.0, 8.0), micro_batches=1, contexts=(1.0,)),
    ):
        steps = [row["latency_us"] for row in swept([plan("redundant")], grid)]
        assert steps == sorted(steps)
        assert steps[0] < steps[-1]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("reserved_gb", [0.0, 0.1, 0.9])
def test_the_most_tokens_just_fit(phase: Any, reserved_gb: float) -> None:
    program = plan().program
    asked = program.instance.placement.model_copy(update={"kv_cache_gb": reserved_gb})
    program = replace(program, instance=program.instance.model_copy(update={"placement": asked}))
    memory = find_figures(simulate(program, Workload(phase, 7.0, 100.0))).memory
    most = most_tokens(memory, 7.0)
    assert find_figures(simulate(program, Workload(phase, most * 0.9999, 100.0))).memory.fits
    assert not find_figures(simulate(program, Workload(phase, most * 1.0001, 100.0))).memory.fits


def test_the_longest_context_just_fits() -> None:
    program = plan().program
    memory = find_figures(simulate(program, Workload("decode", 7.0, 100.0))).memory
    longest = longest_context(memory, 100.0)
    assert find_figures(simulate(program, Workload("decode", 7.0, longest * 0.9999))).memory.fits
    assert not find_figures(simulate(program, Workload("decode", 7.0, longest * 1.0001))).memory.fits
    assert longest_context(replace(memory, size=memory.weights), 100.0) == 0


def test_the_degree_of_expert_parallelism() -> None:
    assert expert_parallelism(tiny_instance()) == 4
    assert expert_parallelism(tiny_instance(parallelism={"dp": 1}, placement={"slots_per_gpu": 2})) == 8
    budget = {"replicas": {"redundant_slots": 2}, "replica_routing": "even"}
    assert expert_parallelism(tiny_instance(placement=budget)) == 8


def test_worker_processes_change_nothing() -> None:
    grid = Grid(tokens_per_gpu=(10.0, 20.0), phases=("prefill", "decode"))
    plans = [plan(), plan("redundant", "other")]
    assert swept(plans, grid, workers=2) == swept(plans, grid)
    with pytest.raises(UsageError, match="0 workers"):
        swept(plans, grid, workers=0)


def test_the_page_shows_every_point_and_is_the_same_again() -> None:
    rows = swept([plan("small", "a|b <i>"), plan("redundant", "other")], Grid(tokens_per_gpu=(10.0, 1e6)))
    files = build_page(rows, ENVIRONMENT, "A *title*")
    page = files["README.md"]
    assert "# A \\*title\\*" in page
    assert "a\\|b &lt;i&gt; (EP=4)" in page
    for row in rows:
        assert f"{row['latency_us'] / 1e3:,.2f}" in page
    assert "does not fit" in page
    assert files == build_page(rows, ENVIRONMENT, "A *title*")
    assert files["sweep-1.svg"].startswith("<svg")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    content = tiny_instance().model_dump(mode="json", exclude_none=True) | {"traffic": {"kind": "synthetic", "seed": 1}}
    (tmp_path / "tiny.yaml").write_text(json.dumps(content))
    opened = load_instance(tmp_path / "tiny.yaml")
    (tmp_path / "placement.json").write_text(json.dumps(honest(opened, load_traffic(opened))))
    return [str(tmp_path / "tiny.yaml"), str(tmp_path / "placement.json")]


def sweep(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["sweep", *arguments, "--workers", "1"])


def test_the_command_writes_rows_page_and_plot(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(Path(files[1]).read_text())
    pairs = [*files, files[0], str(tmp_path / "other.json")]
    done = sweep(*pairs, "--tokens-per-gpu", "64,128", "--oversubscription", "1,2", "-o", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(row["tokens_per_gpu"], row["oversubscription"]) for row in rows[:4]] == [
        (64, 1),
        (128, 1),
        (64, 2),
        (128, 2),
    ]
    assert len({row["plan"] for row in rows}) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "environment.json", "results.jsonl", "sweep-1.svg",
    ]  # fmt: skip
    assert "8/8" in done.stderr
    assert "Memory holds" in done.stdout
    twice = sweep(*files, *files)
    assert "is given twice" in str(twice.exception)


def test_json_is_all_that_a_pipeline_reads(files: list[str], tmp_path: Path) -> None:
    done = sweep(*files, "--tokens-per-gpu", "64,128", "--json", "-o", str(tmp_path / "out"))
    content = json.loads(done.stdout)
    assert content["schema"] == "moe-placer/sweep/1"
    assert content["complete"]
    assert [point["tokens_per_gpu"] for point in content["points"]] == [64, 128]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tokens-per-gpu", "64,x"], "expected numbers"),
        (["--tokens-per-gpu", ""], "expected numbers"),
        (["--tokens-per-gpu", "1e400"], "inf tokens per GPU"),
        (["--context", "nan"], "context is nan"),
        (["--phase", "train"], "--phase is 'train'"),
        (["--phase", ","], "--phase"),
        (["--oversubscription", "-1"], "oversubscription is -1"),
        (["--dispatch", "per-expert,per-expert"], "per-expert is given twice"),
        (["--micro-batches", "3"], "3 micro-batches"),
        (["another.yaml"], "3 files are given"),
    ],
)
def test_hostile_arguments_are_refused(files: list[str], more: list[str], message: str, tmp_path: Path) -> None:
    done = sweep(*files, *more, "-o", str(tmp_path / "out"))
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_kernels_that_there_are_not_are_refused(files: list[str]) -> None:
    for more, message in (("--dispatch", "placement.dispatch"), ("--receive", "cluster.nics.receive")):
        done = sweep(*files, more, "nothing")
        assert isinstance(done.exception, InputError)
        assert message in str(done.exception)


def test_an_interrupted_sweep_keeps_what_it_has(files: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    def stops(plans: Any, points: Any, workers: int, stopped: Any, executor: Any = None) -> Any:
        for found in run_points(plans, points, workers, stopped, executor):
            stopped.number = signal.SIGTERM  # as the handler notes it
            yield found

    monkeypatch.setattr("moe_placer.experiments.sweep.sweep.run_points", stops)
    out = ["-o", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, ["sweep", *files, "--tokens-per-gpu", "1,2,3", *out], standalone_mode=False)
    assert done.return_value == 143
    rows = len((tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert rows in {1, 2}  # two workers may have ended at once
    assert f"interrupted; {rows} of 3 points" in done.stderr


def test_a_worker_that_is_killed_is_said() -> None:
    if usable_cores() == 1:
        pytest.skip("one core runs everything here")
    with pytest.raises(NothingFoundError, match="fewer --workers"):
        list(run_each(lambda _shared, _task: os._exit(9), None, [1, 2], 2))


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    done = sweep(str(tmp_path / "no.yaml"), "no.json")
    assert isinstance(done.exception, InputError)
    assert "no.yaml" in str(done.exception)


def test_a_study_solves_sweeps_and_reports(files: list[str], tmp_path: Path) -> None:
    study = {
        "title": "T", "workers": 1,
        "plans": {name: {"instance": "tiny.yaml", "solver": by} for name, by in (("a", "contiguous"), ("b", "lpt"))},
        "sweeps": [
            {"title": "Batches", "plans": ["a", "b"], "tokens_per_gpu": [8, 16]},
            {"title": "Fabrics", "plans": ["b"], "oversubscriptions": [1, 4], "phases": ["decode"], "contexts": [100]},
        ],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(study))
    done = CliRunner().invoke(study_command, [str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "README.md").read_text()
    assert "## Batches" in page
    assert "## Fabrics" in page
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(row["sweep"], row["plan"][0]) for row in rows] == [("Batches", "a")] * 2 + [("Batches", "b")] * 2 + [
        ("Fabrics", "b")
    ] * 2
    again = CliRunner().invoke(study_command, [str(tmp_path), "--page"], catch_exceptions=False)
    assert again.exit_code == 0
    assert (tmp_path / "README.md").read_text() == page
    study["sweeps"][0]["plans"] = ["c"]  # type: ignore[index]
    (tmp_path / "config.json").write_text(json.dumps(study))
    with pytest.raises(MoePlacerError, match="the plan c"):
        read_study(tmp_path / "config.json")
    (tmp_path / "results.jsonl").write_text("{}\n")
    (tmp_path / "config.json").write_text("{")
    assert CliRunner().invoke(study_command, [str(tmp_path)]).exit_code == 1


def test_the_committed_study_is_what_its_rows_give(tmp_path: Path) -> None:
    (folder,) = Path(__file__).parents[2].glob("reports/*-schedule")
    made = shutil.copytree(folder, tmp_path / folder.name)
    assert CliRunner().invoke(study_command, [str(made), "--page"], catch_exceptions=False).exit_code == 0
    assert [file.name for file in folder.iterdir() if file.read_bytes() != (made / file.name).read_bytes()] == []
