"""Exported files in the engines' own loaders, released and previous version: ``make engines``.

Run: SGLang's ``compute_initial_expert_location_metadata`` on every rank, with stubs for settings; vLLM's EPLB policies,
plug-in loader, migration scheduler and ``compute_logical_maps``; vllm-ascend's ``expert_file_to_tensor`` and
``generate_log2phy_map``, taken out of a module that asks for NPUs. What cannot be had (TensorRT-LLM, whose package
only downloads another one, OmniPlacement, and open pull requests) is held to golden files in test_engine_files.py.
"""

from __future__ import annotations

import ast
import json
import logging
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_traffic
from engine_plans import drawn_plan, engine_instance, placed
from engine_sources import ascend, load_file, modules, sglang, source_of, stub, versions_of, vllm
from fetch_engines import VERSIONS

from moe_placer.engines import vllm_plugin
from moe_placer.engines.plans.export import check_file, export_plan
from moe_placer.engines.plans.plan import Deployment, Plan, read_deployment
from moe_placer.engines.plans.to_placement import placement_from_plan
from moe_placer.errors import InputError
from moe_placer.instance import Instance
from moe_placer.instance.writer import dump_instance

pytestmark = pytest.mark.engines

# Nodes, GPUs per node, experts, redundant slots, layers, dense layers.
SIZES: dict[str, tuple[int, int, int, int, int, tuple[int, ...]]] = {
    "small": (4, 2, 12, 4, 5, (0, 1)),
    "no redundancy": (2, 4, 16, 0, 3, ()),
    "one node": (1, 8, 12, 4, 4, (2,)),
    "dsv3": (4, 8, 256, 32, 61, (0, 1, 2)),
}


@pytest.fixture(autouse=True)
def _fetched() -> None:
    """Skip every test, with the reason, where the engines' modules or torch are not there."""
    for package in VERSIONS:
        for version in versions_of(package):
            source_of(package, version)


@pytest.fixture(params=SIZES)
def case(request: pytest.FixtureRequest) -> tuple[Instance, Plan, Deployment]:
    instance = engine_instance(*SIZES[request.param])
    deployment = read_deployment(instance)
    return instance, drawn_plan(deployment, seed=len(request.param)), deployment


def written(case: tuple[Instance, Plan, Deployment], form: str, folder: Path, name: str = "plan.json") -> Path:
    instance, plan, _ = case
    file = folder / name
    file.write_bytes(export_plan(instance, placed(instance, plan)[0], form, file).content)
    return file


def slots_of(flat: list[int], expert: int) -> list[int]:
    return [slot for slot, held in enumerate(flat) if held == expert]


def nearest(slots: list[int], rank: int, each: int, per_node: int) -> list[int]:
    """Return the replicas that SGLang leaves a rank: its GPU's, else the first of its own node if others are not."""
    if len(slots) == 1:
        return slots
    own = [slot for slot in slots if slot // each == rank]
    if own:
        return own[:1]
    near = [slot for slot in slots if slot // (each * per_node) == rank // per_node]
    return near[:1] if 0 < len(near) < len(slots) else slots


def static_choice(candidates: list[list[list[int]]], rank: int, ranks: int, each: int, per_node: int) -> np.ndarray:
    """Return the slot [layers, experts] that a rank sends to: of several the draw that all ranks share the seed of."""
    draw = random.Random(42)
    choice = np.empty((len(candidates), len(candidates[0])), dtype=np.int64)
    for layer, experts in enumerate(candidates):
        for expert, slots in enumerate(experts):
            left = [r for r in range(ranks) if len(nearest(slots, r, each, per_node)) > 1]
            drawn = slots * (len(left) // len(slots)) + draw.sample(slots, len(left) % len(slots)) if left else []
            if left:
                draw.shuffle(drawn)
            found = nearest(slots, rank, each, per_node)
            choice[layer, expert] = found[0] if len(found) == 1 else drawn[left.index(rank)]
    return choice


@pytest.mark.parametrize("version", versions_of("sglang"))
def test_sglang_derives_our_maps(case: tuple[Instance, Plan, Deployment], version: str, tmp_path: Path) -> None:
    _instance, plan, deployment = case
    each = plan.slots_by_layer[0] // deployment.ranks
    nodes, per_node = len(deployment.nodes), deployment.gpus_per_node
    file = written(case, "sglang", tmp_path)
    with sglang(version, deployment.decoder_layers, deployment.experts) as engine:
        for rank in sorted({0, 1, deployment.ranks - 1, deployment.ranks // 2}):
            loaded = engine.load(file, redundant=plan.redundant, ranks=deployment.ranks, nodes=nodes, rank=rank)
            rows = loaded.physical_to_logical_map.tolist()
            assert [rows[layer] for layer in deployment.moe_layers] == [plan.flat(i) for i in range(plan.layers)]
            candidates = [
                [nearest(slots_of(row, expert), rank, each, per_node) for expert in range(plan.experts)] for row in rows
            ]
            theirs = loaded.logical_to_all_physical_map.tolist()
            assert [[[slot for slot in slots if slot != -1] for slots in row] for row in theirs] == candidates
            dispatch = loaded.logical_to_rank_dispatch_physical_map.numpy()
            assert (dispatch == static_choice(candidates, rank, deployment.ranks, each, per_node)).all()


def test_sglang_accepts_or_dies_of_what_check_file_refuses(tmp_path: Path) -> None:
    instance = engine_instance()
    deployment = read_deployment(instance)
    plan = drawn_plan(deployment, 3)
    good = json.loads(written((instance, plan, deployment), "sglang", tmp_path).read_text())
    rows = good["physical_to_logical_map"]
    key = "physical_to_logical_map"
    lost = next(expert for expert in range(12) if rows[2].count(expert) == 1)
    missing = [(lost + 1) % 12 if expert == lost else expert for expert in rows[2]]
    twice = next(at for at, expert in enumerate(rows[4]) if rows[4].count(expert) > 1)
    below = [*rows[4][:twice], -1, *rows[4][twice + 1 :]]
    broken: dict[str, tuple[Any, type[Exception] | None]] = {  # None: accepted in silence
        "too few layers": ({key: rows[:3]}, None),
        "id -1": ({key: [*rows[:4], below]}, None),
        "missing expert": ({key: [*rows[:2], missing, *rows[3:]]}, ZeroDivisionError),
        "two slots short": ({key: [row[:-2] for row in rows]}, ZeroDivisionError),
        "id E": ({key: [[12, *rows[0][1:]], *rows[1:]]}, IndexError),
        "fractions": ({key: [[float(expert) for expert in row] for row in rows]}, TypeError),
        "further key": ({**good, "made_by": "someone"}, TypeError),
    }
    with sglang(versions_of("sglang")[0], deployment.decoder_layers, deployment.experts) as engine:
        for name, (content, expected) in broken.items():
            file = tmp_path / "broken.json"
            file.write_text(json.dumps(content))
            settings: dict[str, Any] = {"redundant": plan.redundant, "ranks": deployment.ranks, "nodes": 4}
            if expected is None:
                engine.load(file, **settings)  # accepted in silence
            else:
                with pytest.raises(expected):
                    engine.load(file, **settings)
            with pytest.raises(InputError) as refusal:
                check_file("sglang", file, instance)
            assert len(refusal.value.mistakes) == 1, name


@pytest.mark.parametrize("version", versions_of("vllm"))
def test_vllm_serves_the_plan_through_the_plug_in(
    case: tuple[Instance, Plan, Deployment], version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    _instance, plan, deployment = case
    monkeypatch.setenv(vllm_plugin.VARIABLE, str(written(case, "vllm-plan", tmp_path)))
    ranks, slots = deployment.ranks, plan.slots_by_layer[0]
    ours = torch.tensor([plan.flat(layer) for layer in range(plan.layers)])
    with vllm(version) as engine:
        load_through_vllm(engine, monkeypatch)
        policy = engine.policy.EPLB_POLICIES["default"]
        assert policy is not engine.policy.DefaultEplbPolicy
        old = torch.tensor([[slot % plan.experts for slot in range(slots)]] * plan.layers)
        weight = torch.randint(1, 1000, (plan.layers, plan.experts))
        asked = {"num_replicas": slots, "num_groups": 1, "num_nodes": 1, "num_ranks": ranks}
        assert (policy.rebalance_experts(weight, **asked) == ours).all()
        first = policy.rebalance_experts(weight, **asked, old_global_expert_indices=old)
        assert held(first, ranks) == held(ours, ranks)
        again = policy.rebalance_experts(weight, **asked, old_global_expert_indices=first)
        assert (again == first).all()
        assert moved(engine, first, again, ranks) == 0
        if version == versions_of("vllm")[0]:
            arriving = sum(
                max(0, new.count(e) - was.count(e))
                for now, then in zip(held(first, ranks), held(old, ranks), strict=True)
                for new, was in zip(now, then, strict=True)
                for e in set(new)
            )
            assert moved(engine, old, first, ranks) == arriving
        to_physical, replicas = engine.compute_logical_maps(first, plan.experts)
        for layer, row in enumerate(first.tolist()):
            for expert in range(plan.experts):
                mine = slots_of(row, expert)
                assert to_physical[layer, expert, : len(mine)].tolist() == mine
                assert replicas[layer, expert] == len(mine)


def load_through_vllm(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let vLLM's own plug-in loader find and call the entry point."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "vllm.envs", stub(VLLM_PLUGINS=["moe_placer"]))
        patch.setattr(sys.modules["vllm"], "envs", sys.modules["vllm.envs"], raising=False)
        plugins = load_file("vllm.plugins", engine.folder / "plugins" / "__init__.py")
        plugins.load_general_plugins()


def held(plan: Any, ranks: int) -> list[list[list[int]]]:
    return [[sorted(rank.tolist()) for rank in row.reshape(ranks, -1)] for row in plan]


def moved(engine: Any, old: Any, new: Any, ranks: int) -> int:
    batches = engine.scheduler.schedule_migration_batches_for_layers(old.shape[1] // ranks, old.numpy(), new.numpy())
    return sum(len(flow.expert_ids) for layer in batches for batch in layer for flow in batch)


@pytest.mark.parametrize("version", versions_of("vllm"))
def test_vllm_moves_what_we_replan_and_no_more(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own scheduler counts the experts that it moves between our plans; the group of ranks is a stand-in."""
    torch = pytest.importorskip("torch")
    instance = engine_instance()
    layers, experts, slots, ranks = 3, 12, 16, 8
    file = tmp_path / "instance.yaml"
    file.write_text(dump_instance(instance))
    for name, value in {"INSTANCE": str(file), "DEADLINE_S": "600", "MAX_MOVES": "4", "WORK": "0.01"}.items():
        monkeypatch.setenv(f"{vllm_plugin.PREFIX}{name}", value)
    heard: list[Any] = []
    group = stub(
        world_size=ranks, rank_in_group=0, broadcast_object=lambda said, src: heard.append((said, src)) or said
    )
    with vllm(version) as engine, caplog.at_level(logging.INFO, "vllm.moe_placer"):
        monkeypatch.setattr(
            sys.modules["vllm.distributed"], "parallel_state", stub(get_eplb_group=lambda: group), raising=False
        )
        load_through_vllm(engine, monkeypatch)
        policy = engine.policy.EPLB_POLICIES["default"]
        assert issubclass(policy, engine.policy.DefaultEplbPolicy)
        start = torch.tensor([[slot % experts for slot in range(slots)]] * layers)
        torch.manual_seed(0)
        asked = {"num_replicas": slots, "num_groups": 1, "num_nodes": 4, "num_ranks": ranks}
        first = policy.rebalance_experts(
            torch.randint(1, 1000, (layers, experts)), **asked, old_global_expert_indices=start
        )
        assert (first.dtype, first.device.type) == (torch.int64, "cpu")
        second = policy.rebalance_experts(
            torch.randint(1, 1000, (layers, experts)), **asked, old_global_expert_indices=first
        )
        assert 0 < moved(engine, first, second, ranks) <= 4
        assert (first != second).sum() == moved(engine, first, second, ranks)
        _, replicas = engine.compute_logical_maps(second, experts)
        assert (replicas >= 1).all()
    assert [(said[0], src) for said, src in heard] == [("plan", 0)] * 2
    assert caplog.text.count("EPLB replanned") == 2


@pytest.mark.parametrize("version", versions_of("vllm"))
@pytest.mark.parametrize("wrong", ["layers", "slots", "experts"])
def test_a_plan_of_the_wrong_shape_leaves_vllm_its_own_policy(
    version: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch = pytest.importorskip("torch")
    instance = engine_instance()
    deployment = read_deployment(instance)
    plan = drawn_plan(deployment, 1)
    monkeypatch.setenv(vllm_plugin.VARIABLE, str(written((instance, plan, deployment), "vllm-plan", tmp_path)))
    layers, experts, slots = plan.layers, plan.experts, plan.slots_by_layer[0]
    layers += wrong == "layers"
    slots += 8 * (wrong == "slots")
    experts += 2 * (wrong == "experts")
    with vllm(version) as engine, caplog.at_level(logging.INFO, "vllm.moe_placer"):
        default = engine.policy.DefaultEplbPolicy
        vllm_plugin.register()
        policy = engine.policy.EPLB_POLICIES["default"]
        old = torch.tensor([[slot % experts for slot in range(slots)]] * layers)
        weight = torch.randint(1, 1000, (layers, experts))
        for _ in range(2):
            theirs = default.rebalance_experts(weight, slots, 1, 1, 8, old)
            assert (policy.rebalance_experts(weight, slots, 1, 1, 8, old) == theirs).all()
    said = [record.message for record in caplog.records if "not used" in record.message]
    assert len(said) == 1  # not at every rebalance


@pytest.mark.parametrize("version", versions_of("vllm-ascend"))
def test_vllm_ascend_derives_our_maps(case: tuple[Instance, Plan, Deployment], version: str, tmp_path: Path) -> None:
    _instance, plan, deployment = case
    engine = ascend(version)
    torch = pytest.importorskip("torch")
    file = written(case, "vllm-ascend", tmp_path)
    each = plan.slots_by_layer[0] // deployment.ranks
    for layer in range(plan.layers):
        placement, slots = engine.expert_file_to_tensor(str(file), layer)
        assert slots == plan.slots_by_layer[0]
        assert placement.tolist() == [list(held) for held in plan.slots[layer]]
        maps = []
        for row in placement:
            own = torch.full((plan.experts,), -1, dtype=torch.int32)
            own[row] = torch.arange(each, dtype=torch.int32)
            maps.append(own)
        for rank in (0, deployment.ranks - 1):
            theirs = engine.generate_log2phy_map(maps, rank).tolist()
            flat = plan.flat(layer)
            replicas = [slots_of(flat, expert) for expert in range(plan.experts)]
            assert theirs == [slots[rank % len(slots)] for slots in replicas]
    # One layer for multi-token prediction gets the engine's own map, a second one stops it: so export adds none.
    placement, slots = engine.expert_file_to_tensor(str(file), plan.layers)
    assert (placement, slots) == (None, plan.slots_by_layer[0])
    with pytest.raises(ValueError, match="Invalid EPLB Table"):
        engine.expert_file_to_tensor(str(file), plan.layers + 1)


def test_what_vllm_plans_itself_can_be_read_and_costed(tmp_path: Path) -> None:
    """Skewed loads make vLLM's own planner put replicas of an expert on one GPU; each of them is still a slot."""
    torch = pytest.importorskip("torch")
    sizes = SIZES["dsv3"]
    lenient = engine_instance(*sizes, placement={"replicas_apart": "none"})
    deployment = read_deployment(lenient)
    with vllm(versions_of("vllm")[0]) as engine:
        torch.manual_seed(0)
        load = torch.distributions.Pareto(1.0, 1.2).sample((len(deployment.moe_layers), deployment.experts))
        rows = engine.policy.DefaultEplbPolicy.rebalance_experts(load.mul(100).long(), 288, 8, 4, 32)
    file = tmp_path / "own.json"
    file.write_text(json.dumps(rows.tolist()))
    checked = check_file("vllm-plan", file, lenient)
    assert checked.plan is not None
    assert [checked.plan.flat(layer) for layer in range(checked.plan.layers)] == rows.tolist()
    assert any("repeat an expert of their own rank" in warning for warning in checked.warnings)
    traffic = tiny_traffic(lenient)
    _, verification = placement_from_plan(lenient, traffic, checked.plan, deployment, "vllm-plan", checked.raw)
    assert verification.ok
    assert verification.total_z > verification.total_bound > 0


@pytest.mark.parametrize("version", versions_of("sglang"))
def test_sglang_knows_the_flags(version: str) -> None:
    """Its flags are the fields of its settings, and what they name as aliases."""
    folder = source_of("sglang", version) / "sglang" / "srt" / "arg_groups" / "fields"
    trees = [ast.parse(path.read_text()) for path in folder.glob("*.py")]
    fields = [node.target for tree in trees for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    known = {f"--{field.id.replace('_', '-')}" for field in fields if isinstance(field, ast.Name)}
    assert {"--tp-size", "--attn-dp-size"} <= flags_of("sglang") <= known


@pytest.mark.parametrize("version", versions_of("vllm"))
def test_vllm_knows_the_flags(version: str) -> None:
    text = (source_of("vllm", version) / "vllm" / "engine" / "arg_utils.py").read_text()
    found = flags_of("vllm-plan") - {"--headless"}  # of `vllm serve`, which is elsewhere
    assert "--all2all-backend" in found
    assert {flag for flag in found if f'"{flag}"' not in text} == set()


def flags_of(form: str) -> set[str]:
    """Return the flags that we print, for one group of attention on each node."""
    instance = engine_instance(4, 2)
    shared = instance.model_copy(update={"parallelism": instance.parallelism.model_copy(update={"attention_tp": 2})})
    exported = export_plan(shared, placed(shared, drawn_plan(read_deployment(shared), 1))[0], form, Path("plan.json"))
    return set(re.findall(r"--[a-z0-9-]+", " ".join(exported.start.flags)))


def test_stubs_leave_nothing_behind() -> None:
    with modules(sglang=stub(), sglang__srt=stub()):
        assert "sglang.srt" in sys.modules
    assert "sglang" not in sys.modules
    assert source_of("vllm", versions_of("vllm")[0]).exists()
