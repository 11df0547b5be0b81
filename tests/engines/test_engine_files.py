"""Files that engines load: written, read back, refused where they are wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from engine_mutations import cuts, mutations_of, npy, omni_mutations, read, write
from engine_plans import drawn_plan, engine_instance, gpus_of, placed
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch_writer import View, save

from moe_placer.cli.export_command import FORMATS as OFFERED
from moe_placer.engines.layouts import LAYOUTS
from moe_placer.engines.plans.export import FORMATS, RANK_COSTS, check_file, export_plan
from moe_placer.engines.plans.forms import FORMS
from moe_placer.engines.plans.plan import Deployment, Plan, read_deployment
from moe_placer.engines.plans.rank_costs import check_rank_costs, encode_rank_costs, rank_costs
from moe_placer.engines.plans.to_placement import placement_from_plan
from moe_placer.errors import InputError, UsageError, VerificationError
from moe_placer.instance import Instance
from moe_placer.schedule.program import compile_program
from moe_placer.schedule.simulate import simulate
from moe_placer.schedule.workload import Workload
from moe_placer.traffic import Traffic
from moe_placer.verifier import verify

NAMES = {form: f"plan{FORMS[form].suffix or '.dat'}" for form in FORMS}


def exported(instance: Instance, plan: Plan, form: str, folder: Path, **options: Any) -> Path:
    file = folder / NAMES[form]
    file.write_bytes(export_plan(instance, placed(instance, plan)[0], form, file, **options).content)
    return file


def refusal(form: str, file: Path, instance: Instance | None) -> InputError | None:
    try:
        check_file(form, file, instance)
    except InputError as error:
        return error
    return None


def test_every_format_has_a_layout_and_is_offered() -> None:
    assert set(FORMS) == set(LAYOUTS)
    assert OFFERED == FORMATS


SIZES = st.tuples(
    st.integers(1, 4),  # nodes
    st.integers(1, 4),  # GPUs per node
    st.integers(1, 3),  # slots per GPU
    st.integers(0, 3),  # dense layers at the start
    st.integers(1, 3),  # MoE layers
    st.integers(0, 2**31),
)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, deadline=None)
@given(SIZES, st.data())
def test_a_plan_comes_back_slot_by_slot(form: str, size: tuple[int, ...], data: st.DataObject) -> None:
    nodes, per_node, each, dense, moe, seed = size
    ranks = nodes * per_node
    slots = ranks * each
    # At most half the slots are redundant, so that plans without an expert twice on a rank are quickly drawn.
    experts = data.draw(st.integers(max(each, (slots + 1) // 2) if ranks > 1 else slots, slots))
    assume(experts >= 2)  # top_k
    instance = engine_instance(nodes, per_node, experts, slots - experts, dense + moe, tuple(range(dense)))
    deployment = read_deployment(instance)
    plan = drawn_plan(deployment, seed)
    raw = FORMS[form].encode(plan, deployment)
    assert FORMS[form].decode(raw, deployment, Path("plan")) == plan
    assert FORMS[form].encode(FORMS[form].decode(raw, deployment, Path("plan")), deployment) == raw


@pytest.mark.parametrize("form", FORMS)
def test_a_placement_survives_the_way_there_and_back(form: str, tmp_path: Path) -> None:
    instance = engine_instance()
    deployment = read_deployment(instance)
    plan = drawn_plan(deployment, 5)
    placement, traffic = placed(instance, plan)
    file = exported(instance, plan, form, tmp_path)
    checked = check_file(form, file, instance)
    assert checked.plan == plan
    back, verification = placement_from_plan(instance, traffic, plan, deployment, form, checked.raw)
    assert back.gpu == placement.gpu
    assert verification.ok
    assert verify(instance, back, traffic).total_z == pytest.approx(sum(layer.z for layer in placement.layers))
    assert 0 < verification.total_bound <= verification.total_z


# The seven that SGLang accepts or dies of without a hint; test_engine_loaders.py shows which.
def seven(rows: list[list[int]], experts: int) -> dict[str, tuple[Any, str]]:
    key = "physical_to_logical_map"
    lost = next(e for e in range(experts) if rows[3].count(e) == 1)
    swapped = [(lost + 1) % experts if e == lost else e for e in rows[3]]
    more = next(i for i, e in enumerate(rows[4]) if rows[4].count(e) > 1)
    below = [*rows[4][:more], -1, *rows[4][more + 1 :]]
    return {
        "rows": ({key: rows[:3]}, "found 3 layers, expected 5, one for every decoder layer, dense ones included"),
        "-1": ({key: [*rows[:4], below]}, f"{key}[4][{more}]: found -1, expected an expert id from 0 to 11"),
        "missing": (
            {key: [*rows[:3], swapped, rows[4]]},
            f"{key}[3]: found no slot with expert {lost}, expected all 12",
        ),
        "short": ({key: [row[:-2] for row in rows]}, "found 14 slots (and the like in 4 more layers), expected 16 (12"),
        "E": ({key: [[12, *rows[0][1:]], *rows[1:]]}, f"{key}[0][0]: found 12, expected an expert id from 0 to 11"),
        "floats": (
            {key: [[float(e) for e in row] for row in rows]},
            "(a fraction) (and the like in 4 more layers), exp",
        ),
        "key": ({key: rows, "made_by": "x"}, "found also the key 'made_by', expected physical_to_logical_map alone"),
    }


@pytest.mark.parametrize("kind", ["rows", "-1", "missing", "short", "E", "floats", "key"])
def test_each_of_the_seven_broken_files_gets_one_clear_message(kind: str, tmp_path: Path) -> None:
    instance = engine_instance()
    plan = drawn_plan(read_deployment(instance), 2)
    file = exported(instance, plan, "sglang", tmp_path)
    content, message = seven(json.loads(file.read_text())["physical_to_logical_map"], 12)[kind]
    file.write_text(json.dumps(content))
    error = refusal("sglang", file, instance)
    assert error is not None
    assert len(error.mistakes) == 1
    assert message in str(error)
    assert "SGLang 0.5.23" in str(error)
    assert str(file) in str(error)


def broken_files(form: str, count: int, instance: Instance, plan: Plan, folder: Path) -> list[tuple[str, bytes]]:
    raw = exported(instance, plan, form, folder).read_bytes()
    rng = np.random.default_rng(len(form))
    found: list[tuple[str, bytes]] = list(cuts(raw, rng, count // 10))
    if form == "omni":
        pattern = FORMS["omni"].decode(raw, None, folder)  # the good one, which the mutations change
        assert pattern == plan
        array = np.load(folder / NAMES["omni"])
        changes = omni_mutations(array)
        for index in range(count - len(found)):
            name = list(changes)[index % len(changes)]
            found.append((name, npy(changes[name](array.copy(), rng))))
        return found
    mutations = mutations_of(form, plan.experts, dense=0)
    for index in range(count - len(found)):
        name = list(mutations)[index % len(mutations)]
        content = read(form, raw)
        mutations[name](content, rng)
        found.append((name, write(form, content)))
    return found


@pytest.mark.parametrize("form", FORMS)
def test_no_broken_file_passes(form: str, tmp_path: Path) -> None:
    """72 mutations of each of seven formats, 504 in all; none is accepted, and each gets a short list of mistakes."""
    instance = engine_instance()
    plan = drawn_plan(read_deployment(instance), 7)
    broken = broken_files(form, 72, instance, plan, tmp_path)
    assert len(broken) == 72
    file = tmp_path / NAMES[form]
    accepted = []
    for name, raw in broken:
        file.write_bytes(raw)
        error = refusal(form, file, instance)
        if error is None:
            accepted.append(name)
        else:
            assert 1 <= len(error.mistakes) <= 3, (name, str(error))
            assert all(FORMS[form].rules.title in str(mistake) for mistake in error.mistakes), str(error)
    assert accepted == []


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMATS), st.binary(max_size=300), st.booleans())
def test_garbage_is_refused_without_a_traceback(form: str, raw: bytes, fits: bool) -> None:
    deployment = read_deployment(engine_instance()) if fits else None
    decode = check_rank_costs if form == RANK_COSTS else FORMS[form].decode
    with pytest.raises(InputError):
        decode(raw, deployment, Path("garbage"))


GOLDEN_PLAN = Plan(4, (((0, 1), (1, 2), (2, 3), (0, 3)), ((0, 2), (1, 3), (0, 1), (2, 3))))
GOLDEN = {
    "trtllm": (
        "initial_global_assignments:\n  1: [0, 1, 1, 2, 2, 3, 0, 3]\n  2: [0, 2, 1, 3, 0, 1, 2, 3]\n"
        "num_slots: 8\nlayer_updates_per_iter: 0\n"
    ),
    "vllm-plan": "[\n[0, 1, 1, 2, 2, 3, 0, 3],\n[0, 2, 1, 3, 0, 1, 2, 3]\n]\n",
    "vllm-initial-map": "[\n[0, 1, 1, 2, 2, 3, 0, 3],\n[0, 2, 1, 3, 0, 1, 2, 3]\n]\n",
    "vllm-jsonl": (
        '{"record_type": "eplb_initial_mapping", "version": 1, "num_redundant_experts": 4, "num_slots": 8, '
        '"initial_global_assignments": {"0": [0, 1, 1, 2, 2, 3, 0, 3], "1": [0, 2, 1, 3, 0, 1, 2, 3]}}\n'
    ),
    "sglang": (
        '{"physical_to_logical_map": [\n[0, 1, 2, 3, 0, 1, 2, 3],\n[0, 1, 1, 2, 2, 3, 0, 3],\n'
        "[0, 2, 1, 3, 0, 1, 2, 3]\n]}\n"
    ),
}


def golden_case() -> tuple[Instance, Deployment]:
    instance = engine_instance(2, 2, experts=4, redundant=4, layers=3, dense=(0,))
    return instance, read_deployment(instance)


@pytest.mark.parametrize("form", GOLDEN)
def test_files_are_what_the_engines_documents_show(form: str) -> None:
    assert FORMS[form].encode(GOLDEN_PLAN, golden_case()[1]).decode() == GOLDEN[form]


def test_the_ascend_map_is_what_its_recorder_writes() -> None:
    content = json.loads(FORMS["vllm-ascend"].encode(GOLDEN_PLAN, golden_case()[1]))
    assert content["moe_layer_count"] == 2
    assert content["layer_list"][1] == {
        "layer_id": 1,
        "device_count": 4,
        "device_list": [
            {"device_id": 0, "device_expert": [0, 2]},
            {"device_id": 1, "device_expert": [1, 3]},
            {"device_id": 2, "device_expert": [0, 1]},
            {"device_id": 3, "device_expert": [2, 3]},
        ],
    }


def test_the_omni_pattern_gives_every_expert_its_position() -> None:
    """The engine's rule: an expert's local slot is the number of ones before it."""
    instance, deployment = golden_case()
    raw = FORMS["omni"].encode(GOLDEN_PLAN, deployment)
    file = Path("pattern.npy")
    pattern = np.load(io.BytesIO(raw))
    assert (pattern.dtype, pattern.shape) == (np.int32, (4, 2, 4))
    for layer, ranks in enumerate(GOLDEN_PLAN.slots):
        for rank, held in enumerate(ranks):
            assert [int(pattern[rank, layer, :expert].sum()) for expert in held] == list(range(len(held)))
    assert FORMS["omni"].decode(npy(pattern.astype(np.int64)), read_deployment(instance), file) == GOLDEN_PLAN


def test_trtllm_finds_what_it_looks_for_and_mtp_layers_on_request(tmp_path: Path) -> None:
    """TensorRT-LLM asks for every MoE layer by its index, wants num_slots entries, and cuts them into ranks."""
    instance = engine_instance()
    deployment = read_deployment(instance)
    plan = drawn_plan(deployment, 4)
    file = exported(instance, plan, "trtllm", tmp_path, mtp_layers=1)
    content = yaml.safe_load(file.read_text())
    assert set(content) == {"initial_global_assignments", "num_slots", "layer_updates_per_iter"}
    assert list(content["initial_global_assignments"]) == [*deployment.moe_layers, deployment.decoder_layers]
    each = content["num_slots"] // deployment.ranks
    for layer, row in content["initial_global_assignments"].items():
        assert len(row) == content["num_slots"]
        assert set(row) == set(range(plan.experts))
        for rank in range(deployment.ranks):
            held = row[rank * each : (rank + 1) * each]
            own = [(rank * plan.experts // deployment.ranks + slot) % plan.experts for slot in range(each)]
            index = deployment.moe_layers.index(layer) if layer in deployment.moe_layers else None
            assert held == (own if index is None else list(plan.slots[index][rank]))
    assert check_file("trtllm", file, instance).plan == plan


@pytest.mark.parametrize("form", [form for form in FORMS if form != "trtllm"])
def test_mtp_layers_are_refused_with_the_reason_elsewhere(form: str, tmp_path: Path) -> None:
    instance = engine_instance()
    with pytest.raises(UsageError, match="--mtp-layers does not go with"):
        exported(instance, drawn_plan(read_deployment(instance), 4), form, tmp_path, mtp_layers=1)


def test_dense_layers_of_sglang_hold_the_engines_own_map(tmp_path: Path) -> None:
    instance = engine_instance()
    rows = json.loads(exported(instance, drawn_plan(read_deployment(instance), 4), "sglang", tmp_path).read_text())
    assert rows["physical_to_logical_map"][:2] == [[slot % 12 for slot in range(16)]] * 2


def test_one_map_for_all_layers_is_read_as_such(tmp_path: Path) -> None:
    instance = engine_instance()
    plan = drawn_plan(read_deployment(instance), 4)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan.flat(0)))
    assert check_file("vllm-plan", file, instance).plan == Plan(12, (plan.slots[0],) * 3)


def refused(instance: Instance, form: str, plan: Plan | None = None) -> str:
    drawn = drawn_plan(read_deployment(instance), 1) if plan is None else plan
    with pytest.raises(InputError) as error:
        export_plan(instance, placed(instance, drawn)[0], form, Path("plan.json"))
    return str(error.value)


def spread(experts: int, extra: list[int], gpus: int, layers: int) -> Plan:
    """Deal experts and further replicas to GPUs in turn."""
    items = [*range(experts), *extra]
    return Plan(experts, (tuple(tuple(sorted(items[rank::gpus])) for rank in range(gpus)),) * layers)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "omni"])
def test_slots_that_are_no_multiple_of_the_ranks_are_refused_by_name(form: str) -> None:
    instance = engine_instance(redundant=5, placement={"slots_per_gpu": 3})
    message = refused(instance, form, spread(12, [0, 1, 2, 3, 4], 8, 3))
    assert "found 12 experts + 5 redundant slots = 17 slots on 8 GPUs" in message
    assert FORMS[form].rules.label in message


def test_uneven_gpus_are_refused_with_what_to_change() -> None:
    instance = engine_instance(placement={"slots_per_gpu": 3})
    plan = drawn_plan(read_deployment(engine_instance()), 1)
    ranks = [list(held) for held in plan.slots[1]]
    give = next(e for e in ranks[0] if e not in ranks[1])
    ranks[0].remove(give)
    ranks[1] = sorted([*ranks[1], give])
    uneven = Plan(12, (plan.slots[0], tuple(map(tuple, ranks)), plan.slots[2]))
    message = refused(instance, "sglang", uneven)
    assert "found 1 experts on GPU 0 in layer 3, expected 2 on every GPU (SGLang 0.5.23" in message
    file = Path("plan.npy")
    export = export_plan(instance, placed(instance, uneven)[0], "omni", file)
    assert FORMS["omni"].decode(export.content, read_deployment(instance), file) == uneven
    assert any("different numbers of experts" in warning for warning in export.warnings)


def test_unequal_layers_are_refused() -> None:
    instance = engine_instance(placement={"replicas": {"redundant_slots_in_all": 13}, "slots_per_gpu": 3})
    rows = [spread(12, [0, 1, 2, 3][:n], 8, 1).slots[0] for n in (4, 4, 3)]
    message = refused(instance, "vllm-plan", Plan(12, tuple(rows)))
    assert "16 slots in layer 2, 15 in layer 4" in message


def test_sharded_experts_and_halves_of_nodes_are_refused() -> None:
    sharded = engine_instance(redundant=0, experts=8)
    changed = sharded.model_copy(update={"parallelism": sharded.parallelism.model_copy(update={"expert_tp": 2})})
    with pytest.raises(InputError, match="whole experts to ranks"):
        read_deployment(changed)
    half = engine_instance(placement={"slots_per_gpu": 3, "failed_gpus": [3]})
    with pytest.raises(InputError, match="1 of the 2 GPUs of node 1"):
        read_deployment(half)


def test_a_failed_node_has_no_ranks(tmp_path: Path) -> None:
    instance = engine_instance(nodes=5, redundant=4, placement={"slots_per_gpu": 2, "failed_gpus": [2, 3]})
    deployment = read_deployment(instance)
    assert (deployment.ranks, deployment.nodes) == (8, (0, 2, 3, 4))
    assert [deployment.gpu_of(rank) for rank in (1, 2, 7)] == [1, 4, 9]
    plan = drawn_plan(deployment, 6)
    assert check_file("sglang", exported(instance, plan, "sglang", tmp_path), instance).plan == plan


def test_a_placement_that_breaks_a_constraint_is_not_exported() -> None:
    instance = engine_instance()
    plan = drawn_plan(read_deployment(instance), 1)
    placement, _ = placed(instance, plan)
    gpu = gpus_of(plan, read_deployment(instance))
    gpu[1][0][0] = 99
    content = placement.model_dump(by_alias=True)
    for changed, rule in ((gpu, "gpu-id"), (placement.gpu[:2], "shape")):
        broken = placement.model_validate({**content, "gpu": changed})
        with pytest.raises(VerificationError, match="not exported") as error:
            export_plan(instance, broken, "sglang", Path("p.json"))
        assert rule in error.value.rules
    other = engine_instance(placement={"kv_cache_gb": 0.001})
    with pytest.raises(VerificationError, match="or for other content"):
        export_plan(other, placement, "sglang", Path("p.json"))


@pytest.mark.parametrize("form", [form for form in FORMS if FORMS[form].suffix])
def test_names_that_the_engine_does_not_read_are_refused(form: str) -> None:
    instance = engine_instance()
    placement, _ = placed(instance, drawn_plan(read_deployment(instance), 1))
    with pytest.raises(UsageError, match=r"names end in \.json"):
        export_plan(instance, placement, form, Path("plan.txt"))


def test_the_routing_rule_is_warned_of_where_it_differs() -> None:
    instance = engine_instance()
    placement, _ = placed(instance, drawn_plan(read_deployment(instance), 1))
    warned = {
        form: any(
            "replica_routing: even" in one for one in export_plan(instance, placement, form, Path("p.json")).warnings
        )
        for form in FORMS
    }
    assert {form for form, said in warned.items() if said} == {"sglang", "vllm-ascend", "omni"}


def test_plans_that_repeat_experts_are_told_and_kept(tmp_path: Path) -> None:
    """What released planners make: a slot wasted on a second replica is loaded rightly by SGLang, wrongly by others."""
    instance = engine_instance(nodes=2, experts=8, redundant=8)
    ranks = ((0, 0, 1, 1), (2, 2, 3, 3), (4, 4, 5, 5), (6, 6, 7, 7))
    plan = Plan(8, (ranks,) * 3)
    deployment = read_deployment(instance)
    for form, loads in (("sglang", True), ("vllm-ascend", False)):
        file = tmp_path / "plan.json"
        file.write_bytes(FORMS[form].encode(plan, deployment))
        if loads:
            checked = check_file(form, file, instance)
            assert checked.plan == plan
            assert any(warning.startswith("24 slots repeat") for warning in checked.warnings)
        else:
            error = refusal(form, file, instance)
            assert error is not None
            assert "expert 0 twice on rank 0" in str(error)
            assert len(error.mistakes) == 1


def test_without_an_instance_what_the_file_shows_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text("[[0, 1, 2], [0, 2, 2]]")
    error = refusal("vllm-plan", file, None)
    assert error is not None
    assert "no slot with expert 1" in str(error)
    file.write_text("[[0, 1, 2], [0, 2, 1]]")
    checked = check_file("vllm-plan", file)
    assert (checked.plan is not None and checked.plan.experts, checked.ranks_known) == (3, False)


def test_read_back_figures_are_the_verifiers_own(tmp_path: Path) -> None:
    instance = engine_instance()
    deployment = read_deployment(instance)
    plan = drawn_plan(deployment, 9)
    _, traffic = placed(instance, plan)
    back, verification = placement_from_plan(instance, traffic, plan, deployment, "sglang", b"raw")
    assert [layer.z for layer in back.layers] == pytest.approx([check.z for check in verification.layers])
    assert all(0 < layer.bound <= layer.z for layer in back.layers)
    assert back.solver.name == "file:sglang"


def test_a_plan_that_breaks_the_instance_is_not_a_placement() -> None:
    tight = engine_instance(nodes=2, experts=8, redundant=8)
    deployment = read_deployment(tight)
    plan = Plan(8, (((0, 0, 1, 1), (2, 2, 3, 3), (4, 4, 5, 5), (6, 6, 7, 7)),) * 3)
    traffic: Traffic = placed(tight, drawn_plan(deployment, 1))[1]
    with pytest.raises(VerificationError, match="plan breaks rules of the instance") as error:
        placement_from_plan(tight, traffic, plan, deployment, "sglang", b"")
    assert set(error.value.rules) == {"apart"}


def test_plans_of_engines_own_planners_can_be_verified_and_simulated() -> None:
    """They leave replicas of an expert on one GPU; an instance that lets them gets figures that count both."""
    lenient = engine_instance(nodes=2, experts=8, redundant=8, placement={"replicas_apart": "none"})
    deployment = read_deployment(lenient)
    plan = Plan(8, (((0, 0, 1, 1), (2, 2, 3, 3), (4, 4, 5, 5), (6, 6, 7, 7)),) * 3)
    traffic = placed(lenient, drawn_plan(deployment, 1))[1]
    back, verification = placement_from_plan(lenient, traffic, plan, deployment, "sglang", b"")
    assert verification.ok
    assert back.gpu[0][:3] == ((0, 0), (0, 0), (1, 1))
    # Every replica is on one node: what comes in from the other is all that it sends to these four experts.
    choices = traffic.recordings
    other = sum(
        traffic.mix[1, index] * recording.load[0, :4].sum() / recording.tokens[0]
        for index, recording in enumerate(choices)
    )
    into_first = list(verification.links).index("leaf0->node0")
    tokens = lenient.traffic.tokens_per_gpu * deployment.gpus_per_node
    assert verification.load[0, into_first] == pytest.approx(other * tokens)
    step = simulate(compile_program(lenient, back, traffic), Workload("decode", 16.0, 64.0, 1))
    assert step.end.max() > 0


def sglang_pt(content: Any, folder: Path) -> Path:
    file = folder / "plan.pt"
    save(content, file)
    return file


def test_sglangs_maps_are_read_from_pt_files_too(tmp_path: Path) -> None:
    instance = engine_instance()
    plan = drawn_plan(read_deployment(instance), 8)
    rows = json.loads(exported(instance, plan, "sglang", tmp_path).read_text())["physical_to_logical_map"]
    for value in (np.array(rows), np.array(rows, dtype=np.int32), rows, [np.array(row) for row in rows]):
        checked = check_file("sglang", sglang_pt({"physical_to_logical_map": value}, tmp_path), instance)
        assert (checked.plan, checked.warnings) == (plan, ())
    wrong = {
        "fraction": {"physical_to_logical_map": np.array(rows, dtype=np.float64)},
        "no such key": [np.array(rows)],
        "load recording": {"logical_count": np.array(rows)},
        "shape": {"physical_to_logical_map": View(np.zeros(4, np.int64), 0, (10**5, 10**5), (0, 0))},
        "no list of slots": {"physical_to_logical_map": np.array(rows[0])},
    }
    for name, content in wrong.items():
        error = refusal("sglang", sglang_pt(content, tmp_path), instance)
        assert error is not None, name
        assert len(error.mistakes) == 1
        assert name in str(error) or "no object" in str(error), str(error)


def test_costs_between_ranks_grow_with_the_way_and_with_who_shares_it() -> None:
    # 4 nodes of 2 GPUs, two on each leaf; uplinks of a leaf have half the bandwidth of its nodes together.
    costs = rank_costs(engine_instance())
    assert costs.shape == (8, 8)
    assert (np.diag(costs) == 0).all()
    assert costs[0, 1] == 1.0
    # Up and down a node link of 400 GB/s that two GPUs share, against NVLink's 450 GB/s.
    assert costs[0, 2] == pytest.approx(2 * 2 / 400 * 450)
    # Two uplinks of 200 GB/s and two downlinks, each crossed by half of what 4 GPUs send, 2/3 of it to the other leaf.
    across = 2 * (4 * 2 / 3 / 2) / 200 * 450
    assert costs[0, 4] == pytest.approx(costs[0, 2] + across)
    assert (costs == costs.T).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.data())
def test_any_matrix_of_costs_comes_back(ranks: int, data: st.DataObject) -> None:
    cost = st.integers(0, 10**9).map(lambda millionths: millionths / 1e6)
    rows = data.draw(st.lists(st.lists(cost, min_size=ranks, max_size=ranks), min_size=ranks, max_size=ranks))
    costs = np.array(rows)
    np.fill_diagonal(costs, 0.0)
    assert np.array_equal(check_rank_costs(encode_rank_costs(costs), None, Path("costs.json")), costs)


def test_a_matrix_of_costs_comes_back_and_broken_ones_do_not(tmp_path: Path) -> None:
    instance = engine_instance()
    file = tmp_path / "costs.json"
    export = export_plan(instance, None, RANK_COSTS, file)
    file.write_bytes(export.content)
    assert check_file(RANK_COSTS, file, instance).ranks == 8
    good = json.loads(export.content)["rank_cost_matrix"]
    for name, rows in {
        "row lost": good[1:],
        "column lost": [row[1:] for row in good],
        "negative": [[-1.0 if cost == 1.0 else cost for cost in row] for row in good],
        "diagonal": [[cost + 1 for cost in row] for row in good],
        "infinite": [[float("inf") if cost == 1.0 else cost for cost in row] for row in good],
        "text": [[str(cost) for cost in row] for row in good],
        "truth": [[bool(cost) for cost in row] for row in good],
    }.items():
        file.write_text(json.dumps({"rank_cost_matrix": rows}))
        assert refusal(RANK_COSTS, file, instance) is not None, name


def test_what_is_needed_is_asked_for() -> None:
    instance = engine_instance()
    with pytest.raises(UsageError, match="needs a PLACEMENT"):
        export_plan(instance, None, "sglang", Path("p.json"))
    with pytest.raises(UsageError, match="no meaning"):
        export_plan(instance, None, RANK_COSTS, Path("p.json"), mtp_layers=1)
