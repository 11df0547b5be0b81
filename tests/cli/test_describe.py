"""What `moe-placer inspect` says, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_placer.cli.describe import describe
from moe_placer.instance import load_instance
from moe_placer.traffic import load_traffic

INSTANCES = Path(__file__).parents[2] / "instances"


def test_tiny_by_hand() -> None:
    instance = load_instance(INSTANCES / "tiny.yaml")
    told = describe(instance, load_traffic(instance))
    assert (told.moe_layers, told.experts, told.top_k, told.nodes, told.gpus) == (2, 4, 2, 4, 4)
    assert told.slots_per_layer == told.replicas_per_layer == 4
    assert told.expert_mb == pytest.approx(2 * 64 * 128 * 2 / 1e6)  # up and down, 2 bytes a value
    assert told.token_bytes == 64 * 2
    assert told.memory_gb["experts"] == pytest.approx(2 * 32_768 / 1e9)  # one expert in each of two layers
    assert told.memory_gb["attention"] == pytest.approx(3 * 4 * 64 * (4 * 16) * 2 / 1e9)  # four projections, 3 layers
    assert told.memory_gb["dense"] == pytest.approx(1 * 2 * 64 * (2 * 128) * 2 / 1e9)  # as wide as top-k experts
    assert told.memory_gb["embeddings"] == pytest.approx(2 * 1000 * 64 * 2 / 1e9)
    left = 1e9 - 65_536 - 98_304 - 65_536 - 256_000
    assert told.memory_gb["left"] == pytest.approx(left / 1e9)
    assert told.kv_cache_tokens == left // (3 * 2 * 4 * 16 * 2)  # keys and values of 3 layers
    # Leaf up: 2 nodes of 100 GB/s, half of that because of 2:1, over 2 spines.
    assert told.links == {
        "node->leaf": {"links": 4, "gb_per_s": 100},
        "leaf->node": {"links": 4, "gb_per_s": 100},
        "leaf->spine": {"links": 4, "gb_per_s": 50},
        "spine->leaf": {"links": 4, "gb_per_s": 50},
    }
    assert told.gpu == "small"
    assert "on 4 GPUs (small) in 4 nodes" in told.to_text()
    assert told.us_per_1000_tokens == pytest.approx(1000 * 128 / (100e9 * 0.8) * 1e6)
    assert told.wire_us == pytest.approx(100 * 2 * 3 / 4 * 1.6 / 1000)  # 3 of 4 choices leave their node
    assert told.infeasible is None
    assert "Cost of a link: tokens at node-link speed (a token on a link of half" in told.to_text()
    tokens = instance.model_copy(update={"objective": instance.objective.model_copy(update={"metric": "tokens"})})
    assert "Cost of a link: plain tokens, whatever the link's bandwidth" in describe(tokens, None).to_text()


def test_the_seed_plan_by_hand() -> None:
    instance = load_instance(INSTANCES / "h100-128.yaml")
    told = describe(instance, load_traffic(instance))
    assert told.expert_mb == pytest.approx(2 * 7168 * 2048 * 2 / 1e6)
    assert told.memory_gb["experts"] == pytest.approx(58 * 58.720256e6 / 1e9)
    assert told.memory_gb["attention"] == pytest.approx(61 * 4 * 7168 * 16384 * 2 / 8 / 1e9)
    assert told.us_per_1000_tokens == pytest.approx(1000 * 14336 / (400e9 * 0.8) * 1e6)
    assert told.wire_us == pytest.approx(8192 * 8 * 15 / 16 * 44.8 / 1000)
    assert told.skew is not None
    flops = 2 * 2 * 7168 * 2048 * told.skew.busiest_gpu_tokens
    assert told.hottest_compute_us == pytest.approx(flops / (400e12 * 0.6) * 1e6)
    assert "hot experts rather than links are the bottleneck" in told.to_text()


def test_what_cannot_be_is_said() -> None:
    text = (INSTANCES / "tiny.yaml").read_text()
    assert "\n  experts: 4\n" in text
    instance = load_instance(INSTANCES / "tiny.yaml")
    crowded = instance.model_copy(update={"model": instance.model.model_copy(update={"experts": 5})})
    assert "only 4" in str(describe(crowded, None).infeasible)
