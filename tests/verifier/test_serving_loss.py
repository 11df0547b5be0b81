"""What serving loses while weights travel: by hand, by its limits, and no lie about it passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import merged, tiny_instance, tiny_traffic

from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.replan.budget import Budget
from moe_placer.replan.change import Change
from moe_placer.replan.migration import count_serving, migrate
from moe_placer.replan.replan import Replanned, replan
from moe_placer.solve.solve import solve
from moe_placer.traffic import make_traffic
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier import verify
from moe_placer.verifier.serving import serving_loss_us
from moe_placer.verifier.transfer_file import TransferRecord

FOUR: dict[str, Any] = {
    "model": {"layers": 1, "dense_layers": []},
    "parallelism": {"dp": 1},
    "cluster": {"gpus_per_node": 1},
    "placement": {"slots_per_gpu": 2},
}
EFFORT = Limits(time_s=600.0, work=0.01)


def placed(rows: list[list[list[int]]]) -> Placement:
    """Build a placement of which only the GPUs count."""
    key = {"name": "tiny", "sha256": "", "traffic_sha256": ""}
    solver = {"name": "none", "version": "0", "seed": 0}
    content = {"schema": "moe-placer/placement/1", "instance": key, "solver": solver, "layers": ()}
    return Placement.model_validate({**content, "gpu": rows})


def transfer(source: int, target: int, start_us: float, end_us: float) -> TransferRecord:
    return TransferRecord(layer=0, expert=0, source=source, target=target, start_us=start_us, end_us=end_us)


def alone_us(instance: Instance) -> float:
    """Microseconds of one expert by a GPU's share of 400 GB/s at 80%."""
    return 1e6 * 2 * 64 * 32 * 2 * instance.cluster.gpus_per_node / (400e9 * 0.8)


def test_by_hand_of_three_batches() -> None:
    """Experts 0 to 3 on nodes 0 to 3, each chosen by half of 400 tokens: a node sends 150 tokens, and receives 150.

    Its link needs a = 150 * 128 B / (400 GB/s * 0.8) each way for them, both ways 2a; the leaf's two uplinks (800 / 2
    / 2 = 200 GB/s each) carry 2 * 100 tokens to the other leaf, 100 each: as 200 tokens of a node's link. So a layer
    takes 200/150 * 2a. An expert that goes to the other leaf takes its NIC's whole time, and half of the time of each
    uplink at half speed: all of it twice over; one inside the leaf leaves uplinks alone.
    """
    instance = tiny_instance(**FOUR)
    traffic, current = make_traffic(instance, load=[np.ones((1, 4))]), placed([[[0], [1], [2], [3]]])
    node_us = 2 * 150 * 128 / (400e3 * 0.8)
    spine_us = 200 / 150 * node_us
    gpu_us = 200 * 2 * (2 * 64 * 32) / (400e6 * 0.6)
    step_us = spine_us + gpu_us
    alone = 1e6 * 2 * 64 * 32 * 2 / (400e9 * 0.8)
    inside = transfer(0, 1, 0.0, alone)
    across = transfer(0, 2, alone, 2 * alone)

    def lost(*some: TransferRecord) -> float:
        return serving_loss_us(instance, traffic, current, current, some)

    near = max(spine_us, 2 * node_us) - spine_us  # the NIC of node 0 is shared evenly by tokens and weights
    assert lost(inside) == pytest.approx(alone * near / (step_us + near))
    shared = 1 + 400 / 2 / 200  # of each uplink, at half of its bandwidth, half of the weights
    far = max(shared * spine_us, 2 * node_us) - spine_us
    assert lost(across) == pytest.approx(alone * far / (step_us + far))
    assert lost(inside, across) == pytest.approx(lost(inside) + lost(across))
    slow = transfer(0, 1, 0.0, 4 * alone)  # a quarter of its speed: 1.25 * 150 < 200
    assert lost(slow) == 0.0
    assert lost() == 0.0


def two_nodes(**changes: Any) -> tuple[Instance, Traffic, float, float]:
    """Two nodes on one leaf, of which the first sends all of its tokens to the second and the second sends none.

    Returns beside them the microseconds of a dispatch over the node's link, and those of expert 0, which all choose.
    """
    instance = tiny_instance(**merged(FOUR, {"cluster": {"nodes": 2}, **changes}))
    traffic = make_traffic(instance, load=[np.array([[1.0, 0.0, 0.0, 0.0]])])
    sent = 2 * 100 * instance.cluster.gpus_per_node  # top-2, both the same expert
    return instance, traffic, sent * 128 / (400e3 * 0.8), 2 * sent * 2 * (2 * 64 * 32) / (400e6 * 0.6)


def test_results_go_back_the_other_way_round() -> None:
    """Weights that leave a node wait with what it sends: tokens of the first node, results of the second."""
    instance, traffic, out_us, gpu_us = two_nodes(placement={"slots_per_gpu": 2, "combine_dtype": "fp32"})
    current = placed([[[1], [0], [0], [1]]])
    back_us = 2 * out_us  # fp32 back
    step_us = out_us + back_us + gpu_us
    for source, target, later in ((0, 1, out_us), (1, 0, back_us)):
        lost = serving_loss_us(instance, traffic, current, current, [transfer(source, target, 0.0, alone_us(instance))])
        assert lost == pytest.approx(alone_us(instance) * later / (step_us + later)), (source, target)


@pytest.mark.parametrize(("per_node", "used"), [(1, 0.5), (2, 1.0), (4, 1.0)])
def test_gpus_that_share_a_nic_use_a_part_of_it(per_node: int, used: float) -> None:
    nics = {"per_node": per_node, "gb_per_s": 400.0 / per_node}
    instance, traffic, out_us, gpu_us = two_nodes(cluster={"nodes": 2, "gpus_per_node": 2, "nics": nics})
    current, alone = placed([[[2], [0], [1], [3]]]), alone_us(instance)
    step_us = 2 * out_us + gpu_us
    one = transfer(0, 3, 0.0, alone)
    lost = serving_loss_us(instance, traffic, current, current, [one])
    assert lost == pytest.approx(alone * used * out_us / (step_us + used * out_us))
    both = [one, transfer(1, 2, 0.0, alone)]
    lost = serving_loss_us(instance, traffic, current, current, both)
    assert lost == pytest.approx(alone * out_us / (step_us + out_us))


def test_a_nic_of_its_own_waits_for_its_own_weights_only() -> None:
    nics = {"per_node": 2, "gb_per_s": 200.0, "receive": "destination-gpu"}
    instance, traffic, out_us, gpu_us = two_nodes(cluster={"nodes": 2, "gpus_per_node": 2, "nics": nics})
    current, alone = placed([[[2], [0], [1], [3]]]), alone_us(instance)
    step_us = 2 * 2 * out_us + gpu_us  # all tokens arrive by one of two NICs
    hot, other = transfer(0, 2, 0.0, alone), transfer(0, 3, 0.0, alone)
    later = 2 * out_us  # dispatch alone: weights arrive where tokens do
    lost = serving_loss_us(instance, traffic, current, current, [hot])
    assert lost == pytest.approx(alone * later / (step_us + later))
    assert serving_loss_us(instance, traffic, current, current, [other]) == pytest.approx(0.0)


def gained(instance: Instance, traffic: Traffic, current: Placement, after: Placement) -> float:
    """Microseconds of all layers before, less those after."""
    before, now = (verify(instance, one, traffic).total_layer_us for one in (current, after))
    return before - now


def plain(instance: Instance, traffic: Traffic, current: Placement, found: Replanned) -> float:
    """Tokens of the busiest GPUs before, less those after, where none is slow."""
    before, now = (verify(instance, one, traffic).busiest_gpu.sum() for one in (current, found.placement))
    return float(before - now)


def test_it_is_never_more_than_the_time_of_the_transfers_and_nothing_inside_nodes() -> None:
    changes: dict[str, Any] = {"placement": {"slots_per_gpu": 2}, "parallelism": {"dp": 1}}
    instance = tiny_instance(**changes)
    traffic = tiny_traffic(instance, 3)
    current, after = placed([[[1], [0], [2], [3]], [[4], [1], [6], [3]]]), placed([[[0], [1], [2], [3]]] * 2)
    file = migrate(instance, current, after).to_file(instance, current, after, 2.0)
    counted = count_serving(instance, traffic, current, after, file)
    assert counted.serving_loss_us is not None
    assert 0 < counted.serving_loss_us < file.us
    gain = gained(instance, traffic, current, after)
    assert counted.gain_us == pytest.approx(gain if gain > 0 else None)
    if gain > 0:
        assert counted.break_even_steps == np.ceil(counted.serving_loss_us / gain)
        assert counted.break_even_paused_steps == np.ceil(file.us / gain)
    inside = placed([[[1], [0], [2], [3]]] * 2)
    assert serving_loss_us(instance, traffic, current, inside, [transfer(0, 1, 0.0, 9.0)]) == 0.0


@pytest.fixture(scope="module")
def planned() -> tuple[Instance, Placement]:
    instance = tiny_instance(placement={"slots_per_gpu": 2}, parallelism={"dp": 2})
    return instance, solve(instance, tiny_traffic(instance, 4), solver="greedy", limits=Limits(time_s=60.0)).placement


def test_replan_states_it_and_no_lie_about_it_passes(planned: tuple[Instance, Placement]) -> None:
    instance, current = planned
    traffic = tiny_traffic(instance, 9)
    found = replan(instance, current, traffic, limits=EFFORT, budget=Budget(moves=3))
    file = found.transfers
    assert found.verification is not None
    assert found.verification.ok
    assert file.serving_loss_us is not None
    assert file.gain_us is not None
    assert file.break_even_steps is not None
    assert file.break_even_steps <= (file.break_even_paused_steps or 0)
    for lie, said in (
        ({"serving_loss_us": 1.01 * file.serving_loss_us + 1e-3}, "serving loses"),
        ({"gain_us": 1.01 * file.gain_us + 1e-3, "break_even_steps": None, "break_even_paused_steps": None}, "gains"),
        ({"gain_us": 0.0, "break_even_steps": None, "break_even_paused_steps": None}, "a step gains 0 us"),
        ({"break_even_steps": file.break_even_steps + 1}, "win it back"),
        ({"break_even_paused_steps": 0.0}, "win it back"),
        ({"break_even_steps": None, "gain_us": None}, "no gain"),
        ({"break_even_steps": 0.0, "break_even_paused_steps": None, "serving_loss_us": None}, "win it back"),
    ):
        forged = verify(instance, found.placement, traffic, current, file.model_copy(update=lie))
        assert [said in str(one) for one in forged.violations] == [True], lie
    silent = file.model_copy(update={"serving_loss_us": None, "break_even_steps": None})
    assert verify(instance, found.placement, traffic, current, silent).ok  # of older versions
    quick = replan(instance, current, traffic, limits=EFFORT, budget=Budget(moves=3), check=False)
    assert quick.transfers.serving_loss_us is None


@pytest.mark.parametrize("metric", ["time", "tokens"])
def test_what_a_step_gains_is_time_whatever_the_metric_counts(metric: str) -> None:
    """With plain tokens as the metric, 4:1 uplinks still take four times as long."""
    fabric = {"nodes_per_leaf": 1, "spines": 1, "oversubscription": 4.0}
    instance = tiny_instance(**merged(FOUR, {"objective": {"metric": metric}, "cluster": {"fabric": fabric}}))
    traffic, current = tiny_traffic(instance, 5), placed([[[0], [0], [1], [1]]])
    found = replan(instance, current, traffic, limits=EFFORT, budget=Budget(moves=2))
    assert found.transfers.gain_us == pytest.approx(gained(instance, traffic, current, found.placement))
    assert found.transfers.gain_us > 0


def test_a_slow_gpu_counts_in_what_a_step_gains(planned: tuple[Instance, Placement]) -> None:
    instance, current = planned
    traffic = tiny_traffic(instance, 9)
    found = replan(instance, current, traffic, limits=EFFORT, minimise="gpus", change=Change(slow={0: 50.0}))
    file = found.transfers
    assert file.slow_gpus == {"0": 50.0}
    token_us = 2 * (2 * 64 * 32) / (400e6 * 0.6)
    links_us = gained(instance, traffic, current, found.placement) - token_us * plain(instance, traffic, current, found)
    slow_us = token_us * (found.before.busiest_gpu - found.after.busiest_gpu)
    assert file.gain_us == pytest.approx(links_us + slow_us)
    assert verify(instance, found.placement, traffic, current, file).ok
    forgotten = verify(instance, found.placement, traffic, current, file.model_copy(update={"slow_gpus": {}}))
    assert any("a step gains" in str(one) for one in forgotten.violations)


def test_after_failures_the_new_placement_serves_meanwhile(planned: tuple[Instance, Placement]) -> None:
    instance, current = planned
    traffic = tiny_traffic(instance, 9)
    found = replan(instance, current, traffic, limits=EFFORT, change=Change(failed=(3,)))
    assert found.verification is not None
    assert found.verification.ok
    after = found.placement
    counted = serving_loss_us(found.instance, traffic, after, after, found.transfers.transfers)
    assert found.transfers.serving_loss_us == pytest.approx(counted)
