"""The plug-in as it behaves without vLLM: idle, light, and never in the way. test_engine_loaders.py has vLLM's side."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import pickle
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from engine_plans import engine_instance
from hypothesis import given
from hypothesis import strategies as st

from moe_placer.engines.old_slots import in_old_slots
from moe_placer.engines.slot_rows import mismatch, plan_rows
from moe_placer.engines.vllm_plugin import INSTANCE, PREFIX, VARIABLE, register
from moe_placer.engines.vllm_replanning import Asked, Replanner, Settings, first_map
from moe_placer.instance.writer import dump_instance

ROWS = [[0, 1, 2, 0], [2, 1, 0, 1]]


def test_vllm_finds_it_by_its_entry_point() -> None:
    (found,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="moe_placer")
    assert found.load() is register


def test_without_a_plan_nothing_is_imported() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "from moe_placer.engines.vllm_plugin import register\n"
        "register()\n"
        "added = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(added - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={})
    assert done.stdout.strip() == "['moe_placer']", done.stderr


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", "[[0, 1], [0]]", "[[0, 1.5]]", '{"a": 1}', "[true]", "[" * 10**5]
)
def test_a_plan_that_cannot_be_read_is_logged_and_vllm_goes_on(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "plan.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv(VARIABLE, str(file))
    with caplog.at_level(logging.INFO, "vllm.moe_placer"):
        register()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "vLLM's own policy stays" in record.message


def test_a_vllm_without_policies_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "plan.json"
    file.write_text("[[0, 1]]")
    monkeypatch.setenv(VARIABLE, str(file))
    monkeypatch.setitem(sys.modules, "vllm", None)  # import vllm fails
    register()
    assert "has no EPLB policies" in caplog.text


def test_rows_are_one_for_all_layers_or_one_for_each() -> None:
    assert plan_rows(b"[0, 1, 2]") == [[0, 1, 2]]
    assert plan_rows(b"[[0, 1], [1, 0]]") == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ((2, 3, 4, 2), ""),
        ((3, 3, 4, 2), "2 rows, and the model 3 MoE layers"),
        ((2, 3, 6, 2), "4 slots in a layer, and vLLM 6 physical experts"),
        ((2, 3, 4, 3), "no multiple of 3 ranks"),
        ((2, 2, 4, 2), "row 0 names an expert that is not among 0 to 1"),
        ((2, 4, 4, 2), "row 0 lacks 1 of 4 experts"),
    ],
)
def test_what_does_not_fit_is_named(asked: tuple[int, int, int, int], reason: str) -> None:
    assert reason in mismatch(ROWS, *asked)
    assert bool(mismatch(ROWS, *asked)) == bool(reason)
    assert mismatch([[-1, 1, 2, 0]], 1, 3, 4, 2).startswith("row 0 names")


class Tensor:
    """As much of a tensor as the plug-in touches."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape = np.asarray(array), np.asarray(array).shape

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> Any:
        return self.array


class Own:
    """The engine's own policy: it answers with its first map, backwards."""

    @classmethod
    def rebalance_experts(cls, weight: Tensor, num_replicas: int, *_others: Any) -> Tensor:
        return Tensor(first_map(*weight.shape, num_replicas)[:, ::-1])


class Rank(SimpleNamespace):
    """A rank's place in the engine's group; what the first one says is heard by all."""

    said: ClassVar[list[Any]] = []

    def broadcast_object(self, content: Any, src: int) -> Any:
        assert src == 0
        if self.rank_in_group == 0:
            self.said.append(pickle.dumps(content))
        return pickle.loads(self.said[-1])


SIZES = {"nodes": 4, "per_node": 2, "experts": 12, "redundant": 4, "layers": 3, "dense": (0,)}
LAYERS, EXPERTS, SLOTS, RANKS = 2, 12, 16, 8
Ask = Callable[..., Any]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Let a stand-in of the engine load the plug-in, and return a function that rebalances on some rank of it."""
    file = tmp_path / "instance.yaml"
    file.write_text(dump_instance(engine_instance(**SIZES)))
    settings = {INSTANCE: str(file), f"{PREFIX}DEADLINE_S": "600", f"{PREFIX}MAX_MOVES": "3", f"{PREFIX}WORK": "0.01"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    policy = SimpleNamespace(EPLB_POLICIES={"default": Own})
    state = SimpleNamespace(get_eplb_group=lambda: Rank(world_size=RANKS, rank_in_group=0))
    names = ("vllm", "vllm.distributed", "vllm.distributed.eplb")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[names[1]], "parallel_state", state, raising=False)
    monkeypatch.setattr(sys.modules[names[2]], "policy", policy, raising=False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(from_numpy=Tensor))
    Rank.said.clear()

    def rebalance(load: Any, running: Any, rank: int = 0, world: int = RANKS, slots: int = SLOTS) -> Any:
        register()
        register()
        state.get_eplb_group = lambda: Rank(world_size=world, rank_in_group=rank)
        old = None if running is None else Tensor(running)
        return policy.EPLB_POLICIES["default"].rebalance_experts(Tensor(load), slots, 1, 4, RANKS, old).numpy()

    return rebalance


def drawn_load(seed: int) -> Any:
    return np.random.default_rng(seed).integers(1, 1000, (LAYERS, EXPERTS))


def busiest(rows: Any, load: Any) -> float:
    """Sum over layers of the tokens of the busiest rank, with those of an expert spread evenly over its replicas."""
    each = [load[i] / np.bincount(row, minlength=EXPERTS) for i, row in enumerate(rows)]
    return float(sum(own[row].reshape(RANKS, -1).sum(axis=1).max() for own, row in zip(each, rows, strict=True)))


def moves(rows: Any, before: Any) -> int:
    """Experts that ranks must load."""
    pairs = zip(rows.reshape(LAYERS * RANKS, -1).tolist(), before.reshape(LAYERS * RANKS, -1).tolist(), strict=True)
    return sum((Counter(now) - Counter(then)).total() for now, then in pairs)


def test_it_plans_from_scratch_then_replans_within_the_budget_on_all_ranks_alike(ask: Ask) -> None:
    load, start = drawn_load(0), first_map(LAYERS, EXPERTS, SLOTS)
    first = ask(load, start)
    assert busiest(first, load) < busiest(start, load)
    assert moves(first, start) > 3
    assert (ask(load, start, rank=5) == first).all()
    drifted = drawn_load(1)
    second = ask(drifted, first)
    assert busiest(second, drifted) < busiest(first, drifted)
    assert 0 < moves(second, first) <= 3
    assert (second != first).sum() == moves(second, first)  # what stays on a rank keeps its slot
    assert (ask(drawn_load(7), first, rank=7) == second).all()  # whatever it would have planned
    assert (ask(drifted, second) == second).all() or busiest(ask(drifted, second), drifted) < busiest(second, drifted)


def test_what_the_engine_left_with_an_expert_twice_on_a_rank_is_planned_anew(ask: Ask) -> None:
    running = first_map(LAYERS, EXPERTS, SLOTS)
    running[:, 13], running[:, 14] = 0, 0
    running[:, 1], running[:, 12] = 0, 1  # rank 0 has expert 0 twice
    rows = ask(drawn_load(2), running)
    assert (np.diff(np.sort(rows.reshape(-1, SLOTS // RANKS)), axis=1) > 0).all()
    assert (ask(np.zeros((LAYERS, EXPERTS)), None) >= 0).all()  # the engine's trial run


def test_the_first_plan_may_come_from_a_file(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "plan.json"
    row = [*range(8, 12), *range(8), *range(4)]
    given.write_text(json.dumps(row))
    monkeypatch.setenv(VARIABLE, str(given))
    start = first_map(LAYERS, EXPERTS, SLOTS)
    first = ask(drawn_load(3), start)
    assert [sorted(own) for own in first[0].reshape(RANKS, -1).tolist()] == np.sort(
        np.reshape(row, (RANKS, -1))
    ).tolist()
    assert moves(ask(drawn_load(3), first), first) <= 3
    given.write_text("[0, 1]")
    assert (ask(drawn_load(3), start) == start[:, ::-1]).all()
    given.write_text("[")
    assert (ask(drawn_load(3), start) == start[:, ::-1]).all()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MAX_MOVES", "many", "expected numbers"),
        ("MAX_MOVES", "-1", "expected 0 or more"),
        ("DEADLINE_S", "-1", "expected 0 or more"),
        ("INSTANCE", "nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_settings_that_are_wrong_leave_the_engine_its_own_policy(
    name: str, value: str, said: str, ask: Ask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(f"{PREFIX}{name}", value)
    start = first_map(LAYERS, EXPERTS, SLOTS)
    for rank in (0, 1, 0):
        assert (ask(drawn_load(0), start, rank) == start[:, ::-1]).all()
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert said in record.message
    assert "vLLM's own policy decides" in record.message


def test_an_engine_of_other_sizes_keeps_its_own_policy(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    start = first_map(LAYERS, EXPERTS, 24)
    assert (ask(drawn_load(0), start, slots=24) == start[:, ::-1]).all()
    assert "set placement.replicas to {redundant_slots: 12}" in caplog.text
    assert (ask(np.ones((3, EXPERTS)), first_map(3, EXPERTS, SLOTS)) == first_map(3, EXPERTS, SLOTS)[:, ::-1]).all()
    assert "has 2 MoE layers of 12 experts on 8 GPUs, and vLLM 3 of 12 on 8 ranks" in caplog.text
    Rank.said.clear()
    assert (ask(drawn_load(0), first_map(LAYERS, EXPERTS, SLOTS), world=4)[:, ::-1] == np.arange(SLOTS) % EXPERTS).all()
    assert "a group of 4 ranks for EPLB, expected one of 8" in caplog.text
    assert Rank.said == []  # nobody waits


def test_where_time_runs_out_what_runs_stays(tmp_path: Path) -> None:
    file = tmp_path / "instance.yaml"
    file.write_text(dump_instance(engine_instance(**SIZES)))
    start, ready, deadline = first_map(LAYERS, EXPERTS, SLOTS), threading.Event(), [0.0]

    def plan(_instance: Any, asked: Asked, _settings: Settings, _seconds: float) -> Any:
        ready.wait()
        if asked.load[0, 0] < 0:
            raise ZeroDivisionError("by hand")
        return asked.running

    replanner = Replanner(lambda: Settings(file, deadline[0]), plan)
    asked = Asked(drawn_load(0).astype(float), SLOTS, RANKS, start)
    assert replanner.answer(asked) == ("keep", "no plan within 0 s", None)
    deadline[0] = 600.0
    assert replanner.answer(asked) == ("keep", "the plan of the rebalance before is still being made", None)
    ready.set()
    for thread in threading.enumerate():
        if thread.name == "moe-placer-replan":
            thread.join()
    assert replanner.answer(asked) == ("plan", "", start)
    kind, reason, _ = replanner.answer(asked._replace(load=-asked.load))
    assert (kind, reason) == ("keep", "a defect of moe-placer: ZeroDivisionError: by hand")


@given(st.integers(0, 10**6))
def test_in_old_slots_ranks_hold_the_plan_and_write_no_more_than_they_must(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (LAYERS, SLOTS)
    plan, old = rng.integers(0, 5, shape), rng.integers(0, 5, shape)
    found = in_old_slots(plan, RANKS, old)
    assert moves(found, plan) == 0
    assert (found != old).sum() == moves(plan, old)
