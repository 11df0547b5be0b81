"""What kernels charge: presets, what an instance sets itself, and every parameter by hand."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from builders import tiny_instance
from dag_examples import REFERENCE, example, reference
from dag_examples import contiguous as in_order

from benchmarks.fidelity.deployments import balanced, contiguous, deployment
from moe_placer.errors import InputError
from moe_placer.instance import load_instance
from moe_placer.schedule.durations import Durations, find_durations
from moe_placer.schedule.program import Program, compile_program
from moe_placer.schedule.simulate import Timeline, simulate
from moe_placer.schedule.step_figures import find_figures
from moe_placer.schedule.timing import PRESETS, Timing, timing_of
from moe_placer.schedule.workload import Condition, Workload
from moe_placer.traffic import load_traffic

DECODE = Workload("decode", 64, 4096, 1)


@pytest.fixture(scope="module")
def deepseek() -> Program:
    """One MoE layer of DeepSeek-V3 on two nodes: 16 experts on each GPU."""
    instance = deployment("deepseek", nodes=2, gpu="H800", tokens_per_gpu=64, layers=1)
    return compile_program(instance, contiguous(instance), balanced(instance))


def durations(program: Program, workload: Workload = DECODE, **changes: Any) -> Durations:
    timing = replace(timing_of(program.instance, workload.phase), **changes)
    return find_durations(program, workload, timing, Condition())


def first(program: Program, kind: str) -> int:
    return program.kinds.index(kind)  # type: ignore[arg-type]


def test_instances_that_say_nothing_have_plain_kernels() -> None:
    reference = load_instance(REFERENCE)
    assert timing_of(reference, "prefill") == timing_of(reference, "decode") == Timing()
    deepep = reference.with_kernels("deepep")
    assert deepep.sha256 == reference.sha256
    assert timing_of(deepep, "decode") == Timing(**PRESETS["deepep"]["decode"])  # type: ignore[arg-type]
    assert timing_of(deepep.with_kernels(None), "prefill").communication_sms == 24
    assert timing_of(deepep.with_kernels("plain"), "prefill") == Timing()


# What nothing charges unless an instance names a preset or sets it.
OFF = {
    "all_to_all_us": None, "all_to_all_nvlink": None, "all_to_all_slowdown": 1.0, "all_to_all_compute_us": 0.0,
    "communication_sms": 0.0, "attention_launches": 1.0, "mlp_launches": 1.0, "gate_launches": 1.0,
    "expert_launches": 0.0, "expert_passes": 0.0, "attention_passes": 0.0, "separate_scores": False,
    "last_logits": False, "head_once": False, "staged": False,
}  # fmt: skip


def test_what_a_preset_switches_on_is_off_by_default() -> None:
    switched = {name for phase in PRESETS["deepep"].values() for name in phase}
    assert switched == set(OFF)
    assert {name: getattr(Timing(), name) for name in OFF} == OFF
    always = ("kernel_us", "collective_us", "nvlink_step_us", "network_step_us", "nvlink_utilization", "gpu_sms")
    assert [getattr(Timing(), name) for name in always] == [2.0, 6.6, 0.6, 2.7, 0.8, 132.0]
    assert {one.name for one in fields(Timing)} == {*OFF, *always}


def test_the_seed_plans_figures_stay() -> None:
    """Two of its MoE layers: times change only where a named parameter is switched on."""
    instance = load_instance(REFERENCE)
    cut = instance.model_copy(update={"model": instance.model.model_copy(update={"layers": 5})})
    program = compile_program(cut, in_order(cut), load_traffic(cut))
    assert simulate(program, Workload()).makespan == pytest.approx(45_826.756961, rel=1e-9)
    assert simulate(program, Workload("decode", 64, 2048)).makespan == pytest.approx(32_229.680830, rel=1e-9)


@pytest.mark.slow
def test_the_whole_seed_plans_figures_stay() -> None:
    """All 61 layers with skewed loads, and the plan's own tokens (its row in the report of the seed plan)."""
    program = compile_program(*reference())
    assert simulate(program, Workload()).makespan == pytest.approx(713_998.6813, rel=1e-9)
    assert simulate(program, Workload("decode", 64, 2048, 1)).makespan == pytest.approx(428_258.7615, rel=1e-9)
    instance = load_instance(REFERENCE)
    own = compile_program(instance, in_order(instance), load_traffic(instance))
    assert simulate(own, Workload()).makespan == pytest.approx(550_516.5435, rel=1e-9)


def test_an_instance_sets_single_parameters_of_a_phase() -> None:
    kernels = {"preset": "deepep", "decode": {"all_to_all_us": 30.0, "separate_scores": False}}
    instance = tiny_instance(schedule={"kernels": kernels})
    decode = timing_of(instance, "decode")
    assert (decode.all_to_all_start_us, decode.separate_scores, decode.expert_launches) == (30, False, 10)
    assert timing_of(instance, "prefill").all_to_all_start_us == 60


def test_too_few_multiprocessors_are_refused() -> None:
    instance = tiny_instance(schedule={"kernels": {"preset": "deepep", "prefill": {"gpu_sms": 20.0}}})
    with pytest.raises(InputError, match=r"schedule\.kernels\.prefill: found communication_sms is 24 of 20"):
        timing_of(instance, "prefill")


def test_experts_of_a_gpu_are_started_together(deepseek: Program) -> None:
    expert = first(deepseek, "expert")
    assert durations(deepseek).overhead[expert] == pytest.approx((10 * 2.0 + 60.0) / 16)
    assert durations(deepseek, expert_launches=0.0, all_to_all_compute_us=0.0).overhead[expert] == 2
    assert durations(deepseek).overhead[first(deepseek, "attention")] == 20 * 2
    assert durations(deepseek).overhead[first(deepseek, "mlp")] == 8 * 2


def test_projections_and_scores_each_take_what_takes_longer(deepseek: Program) -> None:
    attention, weights, kept = first(deepseek, "attention"), 187_105_280, 64 * 4096 * 576 * 2
    fed = 64 * 7168 * 2  # hidden states in bf16
    bandwidth, scores = 3.35e6 * 0.8, 64 * 4096 * 2 * 128 * 1088 / (989e6 * 0.6)  # bytes/µs, µs
    found = durations(deepseek)
    assert kept / bandwidth < scores
    passes = 64 * 128 * 1088 * 4 / bandwidth
    assert found.busy[attention] == pytest.approx((weights + fed) / bandwidth + scores + passes)
    together = durations(deepseek, separate_scores=False)
    products = 2 * 64 * weights / (1979e6 * 0.6)
    longer = max(products + scores, (weights + fed + kept) / bandwidth)
    assert together.busy[attention] == pytest.approx(longer + passes)


def test_all_to_alls_take_multiprocessors_from_products_in_two_micro_batches(deepseek: Program) -> None:
    workload = Workload("prefill", 16384, 4096, 2)
    attention = first(deepseek, "attention")
    taken, free = durations(deepseek, workload), durations(deepseek, workload, communication_sms=0.0)
    assert taken.busy[attention] == pytest.approx(free.busy[attention] * 132 / 108)
    alone = Workload("prefill", 8192, 4096, 1)
    assert durations(deepseek, alone).busy[attention] == pytest.approx(free.busy[attention])


def test_joined_micro_batches_read_the_head_once(deepseek: Program) -> None:
    workload, head = Workload("decode", 64, 4096, 2), first(deepseek, "head")
    weights, tokens, bandwidth = 129_280 * 7168 * 2, 7168 * 2, 3.35e6 * 0.8  # bytes, bytes of a token, bytes/µs
    joined, apart = (durations(deepseek, workload, head_once=once) for once in (True, False))
    assert joined.busy[head] == pytest.approx((weights + 64 * tokens) / bandwidth)
    assert apart.busy[head] == pytest.approx((weights + 32 * tokens) / bandwidth)
    assert (joined.times[head], apart.times[head]) == (1, 2)
    assert joined.times @ joined.flops == pytest.approx(apart.times @ apart.flops)
    steps = [
        simulate(deepseek, workload, replace(timing_of(deepseek.instance, "decode"), head_once=once))
        for once in (True, False)
    ]
    names = [
        [steps[i].program.kinds[steps[i].operation(t)] for t in steps[i].tasks().tolist()].count("head") for i in (0, 1)
    ]
    assert names == [16, 32]
    # Both micro-batches' hidden states are there before it begins.
    size = len(deepseek)
    summed = [
        p for p, kind in enumerate(deepseek.kinds) if kind == "aggregate" and deepseek.gpus[p] == deepseek.gpus[head]
    ]
    assert steps[0].start[head] >= max(steps[0].end[b * size + p] for b in (0, 1) for p in summed)
    assert find_figures(steps[0]).mfu * steps[0].makespan == pytest.approx(
        find_figures(steps[1]).mfu * steps[1].makespan
    )


def test_passes_around_experts_move_bytes_of_their_own(deepseek: Program) -> None:
    expert, workload = first(deepseek, "expert"), Workload("prefill", 16384, 4096, 1)
    passing, free = durations(deepseek, workload), durations(deepseek, workload, expert_passes=0.0)
    tokens = 16 * 16384 * 8 / 256
    assert passing.busy[expert] - free.busy[expert] == pytest.approx(tokens * 7168 * 11 / (3.35e6 * 0.8))


def test_all_to_alls_beside_computation_carry_the_same_bytes_more_slowly() -> None:
    program, workload = compile_program(*example("small")), Workload(context=10.0)
    plain, slow = simulate(program, workload), simulate(program, workload, Timing(all_to_all_slowdown=1.5))
    assert slow.network.carried == pytest.approx(plain.network.carried)
    assert slow.network.capacity == pytest.approx(plain.network.capacity / 1.5)
    alone = replace(workload, micro_batches=1)
    assert simulate(program, alone, Timing(all_to_all_slowdown=1.5)).makespan == simulate(program, alone).makespan


def test_a_dispatch_starts_when_its_kernel_does(deepseek: Program) -> None:
    send = first(deepseek, "dispatch_send")
    found = durations(deepseek)
    assert (found.overhead[send], found.latency[send]) == (22, 2.7)
    # Of 8 copies 4 stay in the node, of which 1/8 is for the same GPU; in fp8 with scales, at 0.7 of 200 GB/s.
    assert found.busy[send] == pytest.approx(64 * 4 * 7392 * 7 / 8 / (200e3 * 0.7))


@pytest.mark.parametrize(
    "wrong", [{"all_to_all_slowdown": 0.5}, {"all_to_all_nvlink": 0.0}, {"mlp_launches": -1.0}, {"expert_passes": 1e9}]
)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(Exception, match=f"{next(iter(wrong))} is"):
        Timing(**wrong)  # type: ignore[arg-type]


def test_stages_keep_experts_and_all_to_alls_of_two_micro_batches_apart() -> None:
    instance = deployment("stages", nodes=2, gpu="H800", tokens_per_gpu=64, layers=6)
    program = compile_program(instance, contiguous(instance), balanced(instance))
    free, staged = (
        simulate(program, Workload("decode", 64, 4096, 2), replace(timing_of(instance, "decode"), staged=staged))
        for staged in (False, True)
    )
    assert together(free) > 0
    assert together(staged) == 0
    assert staged.makespan > free.makespan
    # The first micro-batch is ahead in every layer, and the second is in the same layer before it goes on.
    ends = {(staged.batch(t), int(program.layer[staged.operation(t)])): staged.end[t] for t in staged.tasks().tolist()}
    order = [ends[batch, layer] for layer in (3, 4, 5) for batch in (0, 1)]
    assert order == sorted(order)
    # With one micro-batch there is nothing to keep apart.
    one = Workload("decode", 64, 4096, 1)
    alone = [simulate(program, one, replace(timing_of(instance, "decode"), staged=s)).makespan for s in (False, True)]
    assert alone[0] == alone[1]


def together(timeline: Timeline) -> float:
    """µs that experts of one micro-batch and an all-to-all of the other are beside each other, over all pairs."""
    program, total = timeline.program, 0.0
    experts = [t for t in timeline.tasks().tolist() if program.kinds[timeline.operation(t)] == "expert"]
    sends = [t for t in timeline.tasks().tolist() if timeline.operation(t) in program.sent]
    gpus = [set(program.gpus[p]) for p in range(len(program))]
    for expert in experts:
        for send in sends:
            if (
                timeline.batch(expert) != timeline.batch(send)
                and gpus[timeline.operation(expert)] & gpus[timeline.operation(send)]
            ):
                both = min(timeline.end[expert], timeline.end[send]) - max(timeline.start[expert], timeline.start[send])
                total += max(0.0, both - 1e-6)
    return total
