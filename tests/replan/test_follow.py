"""Ways to follow traffic over windows: a drift known by hand, windows of a recording, and what the command says."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from builders import honest, tiny_instance, tiny_tokens, tiny_traffic
from command_line import fails, run

from moe_placer.cli.results import result_schema
from moe_placer.errors import InputError, UsageError
from moe_placer.instance import Instance
from moe_placer.instance.writer import dump_instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.replan.budget import Budget
from moe_placer.replan.follow import WAYS, Followed, follow
from moe_placer.solve.solve import solve
from moe_placer.traffic import cut_in_windows, make_traffic
from moe_placer.workers import Engine
from moe_placer.workers.engines import ENGINES

PLACEMENT = {"slots_per_gpu": 2, "replica_routing": "even", "replicas": {"redundant_slots": 8}}
FOLLOWED: dict[str, Any] = {"model": {"experts": 8, "top_k": 2}, "placement": PLACEMENT}
EFFORT = Limits(time_s=60.0, work=0.005)


@pytest.fixture(scope="module")
def planned() -> tuple[Instance, Placement]:
    instance = tiny_instance(**FOLLOWED)
    return instance, solve(instance, tiny_traffic(instance, 0), solver="greedy", limits=Limits(time_s=5.0)).placement


def test_what_stays_hot_is_followed_and_moves_keep_to_the_budget(planned: tuple[Instance, Placement]) -> None:
    """Experts 0 and 1 become hot in every window: one replan is enough, and a second finds nothing to gain."""
    load = np.ones((2, 8)) + 20 * (np.arange(8) < 2)
    instance, current = planned
    windows = [make_traffic(instance, load=[load * 1000])] * 4
    rows = follow(instance, current, windows, budget=Budget(moves=5), minimise="gpus", limits=EFFORT)
    assert [(row.way, row.window) for row in rows] == [(way, window) for way in WAYS for window in (1, 2, 3)]
    of: dict[str, list[Followed]] = {way: [row for row in rows if row.way == way] for way in WAYS}
    assert [row.figures.moves for row in of["never"]] == [0, 0, 0]
    assert 0 < of["once"][0].figures.moves <= 5
    assert [row.figures.moves for row in of["once"][1:]] == [0, 0]
    assert all(row.figures.moves <= 5 for way in ("replan", "history") for row in of[way])
    for row in rows:
        assert (row.transfers_us > 0) == (row.figures.moves > 0)
    assert of["once"][2].figures.value < of["never"][2].figures.value
    assert of["replan"][2].figures.value <= of["once"][2].figures.value
    assert of["history"][0].figures == of["replan"][0].figures
    assert of["eplb"][1].figures.moves == of["eplb"][1].slots == 0  # the same traffic, the same plan
    assert [row.figures for row in of["vllm"]] == [row.figures for row in of["eplb"]]
    assert of["eplb"][0].slots >= of["vllm"][0].slots == of["vllm"][0].figures.moves
    assert of["flashlb"][1].figures.moves == 0  # nothing is more balanced than what it has
    assert of["flashlb"][1].figures.busiest_gpu <= of["never"][1].figures.busiest_gpu


def test_flashlb_does_not_know_gpus_with_unequal_numbers_of_experts() -> None:
    """8 GPUs of two slots share 6 experts and 2 more replicas: one each, but the first has two and the last none."""
    placement = {**PLACEMENT, "replicas": {"redundant_slots": 2}}
    instance = tiny_instance(model={"experts": 6, "top_k": 2}, placement=placement)
    traffic = tiny_traffic(instance, 0)
    even = [[[0, 6], [1, 7], *([gpu] for gpu in range(2, 6))]] * 2
    uneven = [[[0, 6], [1, 0], *([gpu] for gpu in range(2, 6))]] * 2
    told = []
    for gpu in (even, uneven):
        current = Placement.model_validate(honest(instance, traffic, gpu, proof="solver"))
        told.append({row.way for row in follow(instance, current, [traffic] * 2, limits=EFFORT)})
    assert told == [set(WAYS), set(WAYS) - {"flashlb"}]
    with pytest.raises(UsageError, match="what runs has not in layer 1"):
        follow(instance, current, [traffic] * 2, ways=["flashlb"], limits=EFFORT)


def test_a_current_placement_of_another_cluster_is_bad_input(planned: tuple[Instance, Placement]) -> None:
    instance, current = planned
    windows = [tiny_traffic(instance, 0)] * 2
    fewer = tiny_instance(
        model=FOLLOWED["model"],
        cluster={"nodes": 3},
        parallelism={"dp": 1},
        placement={**PLACEMENT, "slots_per_gpu": 3},
    )
    for ways in (["eplb"], None):
        with pytest.raises(InputError, match="found GPU 7 in layer 1, expected GPUs 0 to 5"):
            follow(fewer, current, [tiny_traffic(fewer, 0)] * 2, ways=ways, limits=EFFORT)
    with pytest.raises(InputError, match="found 1 MoE layers, expected 2"):
        follow(instance, current.model_copy(update={"gpu": current.gpu[:1]}), windows, limits=EFFORT)


def test_windows_have_all_tokens_once_and_in_order() -> None:
    instance = tiny_instance()
    traffic = tiny_tokens(instance, 0)
    parts = cut_in_windows(traffic, 3)
    for at, recording in enumerate(traffic.recordings):
        own = [part.recordings[at] for part in parts]
        assert np.array_equal(np.concatenate([one.topk for one in own]), recording.topk)
        assert np.array_equal(sum(one.load for one in own), recording.load)
    with pytest.raises(UsageError, match="expected 2 or more"):
        cut_in_windows(traffic, 1)
    with pytest.raises(InputError, match="no token choices"):
        cut_in_windows(tiny_traffic(instance, 0), 2)


def test_the_command_adds_up_what_its_rows_say(tmp_path: Path, planned: tuple[Instance, Placement]) -> None:
    file, plan = tmp_path / "instance.yaml", tmp_path / "plan.json"
    file.write_text(dump_instance(planned[0]).replace("kind: load", "kind: synthetic"))
    planned[1].write(plan)
    given = ("follow", file, plan, "--windows", 3, "--work", 0.005, "--max-moves", 4)
    done = run(*given, "--way", "never", "--way", "once", "--way", "replan")
    assert done.returncode == 0, done.stderr
    content = json.loads(run(*given, "--way", "replan", "--json").stdout)
    jsonschema.validate(content, result_schema("follow"))
    moves = sum(row["moves"] for row in content["rows"])
    (line,) = [line for line in done.stdout.splitlines() if line.split()[:1] == ["replan"]]
    assert line.split()[1] == f"{moves:,}"
    assert "after 2 windows" in done.stdout
    fails(2, "follow", file, plan, says="either --windows N or a --window FILE")
    fails(2, *given, "--executor", "slurm:4", says="there is no executor 'slurm'")


@pytest.mark.parametrize(
    "executor", ["threads:2", pytest.param("processes:2", marks=pytest.mark.slow),
                 pytest.param("dask:local:2", marks=pytest.mark.slow)]
)  # fmt: skip
def test_every_executor_follows_to_the_same_rows(
    executor: str, planned: tuple[Instance, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    if executor.startswith("dask"):
        pytest.importorskip("distributed")
    threads = Engine(lambda: ThreadPoolExecutor(2), lambda _: 2)
    monkeypatch.setitem(ENGINES, "threads", lambda _: threads)
    instance, current = planned
    windows = [tiny_traffic(instance, seed) for seed in range(3)]
    given: dict[str, Any] = {"ways": ["never", "eplb", "replan", "vllm"], "budget": Budget(moves=4), "limits": EFFORT}
    here = follow(instance, current, windows, **given)
    elsewhere = follow(instance, current, windows, **given, executor=executor)
    assert [row.plain() for row in here] == [row.plain() for row in elsewhere]


def test_parts_of_a_replay_are_its_ways(planned: tuple[Instance, Placement]) -> None:
    windows = [tiny_traffic(planned[0], seed) for seed in range(2)]
    with pytest.raises(UsageError, match="give each command some of the --way instead"):
        follow(*planned, windows, executor="shard:1/2", limits=EFFORT)
