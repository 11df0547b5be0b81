"""Metrics of placements, against hand counts and the verifier, and what a run's row says of time and moves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import VARIANTS, in_order, level_traffic, placement_data, recomputed, tiny_instance, tiny_traffic

from moe_placer.errors import InputError, UsageError
from moe_placer.experiments.compare import Folder
from moe_placer.experiments.compare.current_plan import contiguous_plan, count_moves
from moe_placer.experiments.compare.matrix import instance_row
from moe_placer.experiments.compare.metrics import find_flows, metrics, rounded
from moe_placer.experiments.compare.trajectory import find_seconds, trajectory
from moe_placer.fabric import build_fabric, compile_routes
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic import Traffic

ONE_NODE_EACH = {"cluster": {"nodes": 2, "gpus_per_node": 1, "fabric": {"kind": "full-mesh"}}, "parallelism": {"dp": 1}}


def placed(instance: Instance, gpu: Any, traffic: Traffic) -> Placement:
    records = [{"layer": layer, "z": 0.0, "bound": 0.0, "proof": "solver"} for layer in instance.moe_layers]
    return Placement.model_validate(placement_data(instance, gpu, traffic, records))


def test_by_hand() -> None:
    # Two nodes of one GPU with two slots; each starts 100 tokens. Experts 0 and 1 are on GPU 0, 2 and 3 on GPU 1.
    changes = {**ONE_NODE_EACH, "placement": {"slots_per_gpu": 2}}
    instance = tiny_instance(**changes)
    traffic = level_traffic(instance, [[4, 3, 2, 1], [1, 1, 1, 1]], tokens=10)
    found = metrics(instance, placed(instance, [[[0], [0], [1], [1]]] * 2, traffic), traffic)
    # Layer 1: each node sends 70 tokens to GPU 0 and 30 to GPU 1; layer 2 (each expert 10): 20 and 20.
    assert found["gpu_load"] == [[140.0, 60.0], [40.0, 40.0]]
    assert found["z"] == pytest.approx([70, 20])
    assert (found["z_total"], found["z_largest"]) == pytest.approx((90, 70))
    assert found["worst_link"][0] == "node1->node0"
    assert (found["pair_total"], found["pair_largest"]) == pytest.approx((90, 70))
    assert found["inter_node_tokens"] == found["token_hops"] == pytest.approx(70 + 30 + 20 + 20)
    assert found["gpu_balancedness"] == found["node_balancedness"] == pytest.approx((100 / 140 + 1) / 2)
    assert found["busiest_gpu_tokens"] == found["busiest_node_tokens"] == pytest.approx(180)
    # 64 values of 2 bytes over 400 GB/s, of which 80% are reached.
    assert found["communication_us"] == pytest.approx(90 * 128 / (400e9 * 0.8) * 1e6)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("metric", ["time", "tokens"])
def test_the_verifier_says_the_same(name: str, metric: str) -> None:
    instance = tiny_instance(**{**VARIANTS[name], "objective": {"metric": metric}})
    traffic, gpu = tiny_traffic(instance), in_order(instance)
    placement = placed(instance, gpu, traffic)
    found, checked = metrics(instance, placement, traffic), recomputed(instance, gpu, traffic)
    assert found["z"] == pytest.approx([check.z for check in checked.layers])
    assert found["worst_link"] == [check.worst_link for check in checked.layers]
    assert found["pair_total"] == pytest.approx(checked.worst_pair.sum())
    assert found["link_cost"] == rounded(checked.cost)
    flows = find_flows(instance, placement, traffic)
    routes = compile_routes(build_fabric(instance), instance.cluster.nodes)
    assert found["token_hops"] == pytest.approx(float((flows.between * routes.hops).sum()))
    tokens = instance.traffic.tokens_per_gpu * instance.gpus * instance.model.top_k
    assert flows.gpu.sum(axis=1) == pytest.approx(np.full(len(instance.moe_layers), tokens))
    assert 0 < found["gpu_balancedness"] <= 1
    slowest = max(1.0, *(instance.cluster.fabric.node_gb_per_s / routes.bandwidth).tolist())
    least = found["z_total"] * 128 / (instance.cluster.fabric.node_gb_per_s * 1e9 * 0.8) * 1e6
    if metric == "time":
        assert found["communication_us"] == pytest.approx(least)
    else:  # costs in tokens know nothing of slow links; time does
        assert least * (1 - 1e-9) <= found["communication_us"] <= least * slowest * (1 + 1e-9)


def test_moves_are_counted_against_the_contiguous_plan() -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    plan = contiguous_plan(instance, traffic)
    gpu = in_order(instance)
    assert count_moves(placed(instance, gpu, traffic), plan) == 0
    gpu[0][0], gpu[0][1] = gpu[0][1], gpu[0][0]  # both replicas of two experts trade places
    assert count_moves(placed(instance, gpu, traffic), plan) == 4
    gpu[1][2] = gpu[1][2][::-1]  # the same GPUs hold the same expert
    assert count_moves(placed(instance, gpu, traffic), plan) == 4
    assert count_moves(placed(instance, gpu, traffic), None) is None


def checked(*layers: tuple[float, float]) -> Any:
    checks = [SimpleNamespace(z=z, bound=bound) for z, bound in layers]
    return SimpleNamespace(layers=checks, total_z=sum(z for z, _ in layers), total_bound=sum(b for _, b in layers))


def noted(events: Any) -> Any:
    return SimpleNamespace(events=events, better_s=2.5)


def test_a_trajectory_begins_when_every_layer_is_placed_and_ends_as_verified() -> None:
    events = [
        (1.0, 0, 120.0, 0.0, 0.0),
        (2.0, 1, 300.0, 0.0, 0.0),
        (3.0, 0, 100.0, 99.5, 99.5),
        (4.0, 1, 201.0, 200, 200),
    ]
    end = checked((100.0, 99.5), (201.0, 200.0))
    points = trajectory(events, end, 5.0)
    assert points == [[2.0, 420.0, 0.0], [3.0, 400.0, 99.5], [4.0, 301.0, 299.5]]
    assert find_seconds(noted(events), points, end, 5.0) == {
        "total": 5.0,
        "first": 2.0,
        "better": 2.5,
        "bounded": 4.0,
        "within_1_percent": 4.0,
        "within_0_1_percent": None,
        "proved": None,
        "final": 4.0,
    }


def test_what_the_end_contradicts_was_a_lie() -> None:
    events = [(1.0, 0, 50.0, 0.0, 0.0), (2.0, 0, 110.0, 500.0, 500.0)]
    end = checked((100.0, 90.0))
    points = trajectory(events, end, 3.0)
    assert points == [[2.0, 110.0, 90.0], [3.0, 100.0, 90.0]]
    assert find_seconds(noted(events), points, end, 3.0)["within_1_percent"] is None
    assert trajectory([], end, 3.0) == [[3.0, 100.0, 90.0]]


def folder(path: Path, **environment: Any) -> Folder:
    return Folder(path, {"question": None}, {"date": "2026-11-24", "commit": "a", **environment})


def test_a_folder_of_another_machine_or_commit_is_not_continued(tmp_path: Path) -> None:
    folder(tmp_path)
    folder(tmp_path, date="2026-11-25")
    with pytest.raises(UsageError, match="another machine, version or commit \\(commit differ\\)"):
        folder(tmp_path, commit="b")


def test_a_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    with folder(tmp_path), pytest.raises(UsageError, match="another comparison is writing"), folder(tmp_path):
        pass
    with folder(tmp_path) as again:
        assert again.rows == []


def test_a_damaged_row_is_named_and_an_instance_that_changed_refused(tmp_path: Path) -> None:
    with folder(tmp_path) as first:
        first.add_instance({"kind": "instance", "name": "x", "sha256": "1"})
    with folder(tmp_path) as again:
        again.add_instance({"kind": "instance", "name": "x", "sha256": "1"})
        assert len(again.rows) == 1
        with pytest.raises(UsageError, match="another x \\(sha256 differ\\)"):
            again.add_instance({"kind": "instance", "name": "x", "sha256": "2"})
    file = tmp_path / "results.jsonl"
    file.write_bytes(file.read_bytes() + b"rubbish\n")
    with pytest.raises(InputError, match=r"results\.jsonl:2: found what is no row"), folder(tmp_path):
        pass


def test_nics_are_told_apart_from_other_links() -> None:
    # Two nodes of two GPUs, a NIC each; all of a node's 200 tokens want expert 0, on GPU 0: the other node sends 200.
    nics = {"per_node": 2, "gb_per_s": 200.0, "receive": "destination-gpu"}
    instance = tiny_instance(
        model={"layers": 1, "dense_layers": [], "top_k": 1},
        cluster={"nodes": 2, "fabric": {"kind": "full-mesh"}, "nics": nics},
        parallelism={"dp": 1},
    )
    traffic = level_traffic(instance, [[1.0, 0.0, 0.0, 0.0]], 1.0)
    found = metrics(instance, placed(instance, [[[0], [1], [2], [3]]], traffic), traffic)
    assert (found["nic_total"], found["other_links_total"]) == (400, 200)
    row = instance_row(instance, traffic, None, None)
    assert [link["name"] for link in row["links"]][-1] == "node1/nic1->node1"
    assert "hottest replica costs its NIC at least 400" in row["nics"][1]
    plain, loads = tiny_instance(), tiny_traffic(tiny_instance())
    assert metrics(plain, placed(plain, in_order(plain), loads), loads)["nic_total"] is None
