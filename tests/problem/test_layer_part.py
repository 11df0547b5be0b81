"""What travels to the worker that places a layer: as much as its law says, and all that the layer needs."""

from __future__ import annotations

import pickle
from concurrent.futures import Executor, Future
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import VARIANTS, merged, tiny_instance, tiny_tokens, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer import Limits, load_instance
from moe_placer.bounds.bounds import Bound
from moe_placer.instance import Instance
from moe_placer.limits import Deadline
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.problem.demand import Demand, demand, demand_of
from moe_placer.problem.layer_part import part_of, with_part, without_layers
from moe_placer.result import LayerResult, Stop
from moe_placer.solve import layerwise
from moe_placer.solve.layerwise import LayerSolver, LayerTask
from moe_placer.workers import Engine

REPO = Path(__file__).parents[2]
NICS = {"nics": {"per_node": 2, "gb_per_s": 200.0, "receive": "destination-gpu"}}
CASES: dict[str, dict[str, Any]] = {
    **VARIANTS,
    "per node": {"placement": {"dispatch": "per-node"}},
    "per GPU, NICs": {"placement": {"dispatch": "per-gpu", "slots_per_gpu": 2}, "cluster": NICS},
    "NICs": {"cluster": NICS},
    "scenarios": {"objective": {"scenarios": "recordings"}},
    "by hash": {"placement": {"replica_routing": "vllm-hash", "replicas": {"redundant_slots": 3}}},
    "by rank": {"placement": {"replica_routing": "vllm-ascend", "replicas": {"redundant_slots": 3}}},
}


def compiled(case: str, seed: int = 0, recordings: int = 2) -> Problem:
    instance = tiny_instance(**CASES[case])
    if instance.placement.counts_tokens_once:
        return compile_problem(instance, tiny_tokens(instance, seed))
    return compile_problem(instance, tiny_traffic(instance, seed, recordings))


@pytest.mark.parametrize("case", CASES)
def test_a_worker_compiles_the_layer_that_the_coordinator_has(case: str) -> None:
    problem = compiled(case)
    assert problem.links_of_nodes  # what is worked out beside the fields does not travel
    common = pickle.loads(pickle.dumps(without_layers(problem)))
    for index in range(len(problem)):
        part = pickle.loads(pickle.dumps(part_of(problem, index)))
        there, here = with_part(common, index, part).layer(index), problem.layer(index)
        for field in fields(here):
            one, other = getattr(there, field.name), getattr(here, field.name)
            if field.name == "coverage" and other is not None:
                (one, other), one_sending, its = (one.sets, other.sets), one.sending, other.sending
                assert (one_sending.shares != its.shares).nnz == 0
                assert (one_sending.source == its.source).all()
                assert all((getattr(one, name) == getattr(other, name)).all() for name in ("choice", "file", "count"))
                assert (one.file.dtype, one.count.dtype) == (np.int64, np.int64)
            elif isinstance(other, np.ndarray):
                assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes()), field.name
            else:
                assert one == other, field.name


@settings(max_examples=25)
@given(case=st.sampled_from(sorted(VARIANTS)), seed=st.integers(0, 10**6), recordings=st.integers(1, 9))
def test_costs_are_sums_over_nodes_however_many_recordings_these_mix(case: str, seed: int, recordings: int) -> None:
    problem = compiled(case, seed, recordings)
    layer = problem.layer(0)
    tokens = problem.item_demand(0, layer.expert, layer.replica)
    _, change = problem.links_of_nodes
    assert layer.delta == pytest.approx(np.einsum("mns,si->inm", change, tokens), rel=1e-12, abs=1e-9)
    assert layer.base == pytest.approx(problem.reference @ tokens.sum(axis=1), rel=1e-12)
    assert layer.load == pytest.approx(tokens.sum(axis=0), rel=1e-12)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), recordings=st.integers(1, 9))
def test_demand_follows_the_definition(seed: int, recordings: int) -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance, seed, recordings)
    share = np.stack([one.load / one.tokens[:, None] for one in traffic.recordings])
    expected = 200.0 * np.einsum("sf,fle->lse", traffic.mix, share)
    assert demand(instance, traffic) == pytest.approx(expected, rel=1e-12)
    found = demand_of(instance, traffic)
    assert found.load == pytest.approx(expected.sum(axis=1), rel=1e-12)
    assert found.per_recording.shape == (4, min(4, recordings))
    by_gpu: Demand = found.split(np.arange(8) // 2)
    assert by_gpu.of(range(2)) == pytest.approx(np.repeat(expected, 2, axis=1) / 2, rel=1e-12)


class Here(Executor):
    """Runs what is submitted in this process, and keeps how many bytes it was."""

    def __init__(self) -> None:
        self.tasks: list[int] = []

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        self.tasks.append(len(arguments[-1]))
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **named))
        return future


class Keeps(LayerSolver):
    """Keeps its start, and weighs every link."""

    name, summary, source = "keeps", "keeps its start", "this test"

    def solve_layer(self, task: LayerTask) -> LayerResult:
        layer = task.layer
        node = np.repeat(np.arange(layer.nodes), layer.slots)[: layer.items]
        weights = np.full(layer.links, 1 / layer.links)
        return LayerResult(node, layer.z(node), Bound(0.0, "dual", weights), Stop.WORK, work=task.work)


def sized(gpus: int, redundant: bool) -> Instance:
    """Return `scale-1024` in another size, with recorded loads; 512 experts at most, and as many redundant slots."""
    content = load_instance(REPO / "instances" / "scale-1024.yaml").model_dump(mode="json", exclude={"folder"})
    experts = min(512, gpus // 2)
    changes: dict[str, Any] = {"model": {"layers": 2, "experts": experts}, "cluster": {"nodes": gpus // 8}}
    if redundant:
        changes |= {"parallelism": {"dp": 1}}
        changes |= {"placement": {"replicas": {"redundant_slots": gpus - experts}, "replica_routing": "even"}}
    return Instance.model_validate(merged(content, changes) | {"traffic": {"kind": "load"}})


@pytest.mark.parametrize("redundant", [False, True])
@pytest.mark.parametrize("gpus", [64, 1024])
def test_a_task_takes_as_many_bytes_as_its_law_says(
    monkeypatch: pytest.MonkeyPatch, gpus: int, redundant: bool
) -> None:
    """8 bytes for each expert of each recording, each replica of the start, and each link that it weighs."""
    recordings, instance, executor = 4, sized(gpus, redundant), Here()
    problem = compile_problem(instance, tiny_traffic(instance, 0, recordings))
    monkeypatch.setattr(layerwise, "engine_for_layers", lambda *_: Engine(lambda: executor, lambda _: 1))
    limits = Limits(work=1.0, deadline=Deadline())
    layerwise.solve_layers(Keeps(), problem, limits, 0, None, lambda *_: None)
    numbers = recordings * instance.model.experts + len(problem.items(0)[0]) + len(problem.links)
    assert len(executor.tasks) >= 4  # of both layers, in two rounds: the second has the result of the first
    assert 8 * recordings * instance.model.experts < max(executor.tasks) <= 8 * numbers + 4_000
