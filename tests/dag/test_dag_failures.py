"""GPUs that failed: who attends to their users' tokens, and that drawings of any such deployment are good."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from dag_examples import VARIANTS, example

import moe_placer
from moe_placer.dag import build_dag, write_dags
from moe_placer.dag.groups import find_tp_groups, lost_nodes
from moe_placer.errors import InfeasibleError, InputError, NothingFoundError
from moe_placer.instance import Instance, load_instance
from moe_placer.verifier.dags import verify_dags
from moe_placer.verifier.deployment import Deployment

CASES = Path(__file__).parents[1] / "cases"


def with_failures(nodes: int, gpus: int, tensor: int, failed: list[int], dp: int = 1) -> Instance:
    """Build the small instance of other sizes; 100 tokens start on each GPU."""
    instance, _, _ = example()
    return instance.model_copy(
        update={
            "cluster": instance.cluster.model_copy(update={"nodes": nodes, "gpus_per_node": gpus}),
            "parallelism": instance.parallelism.model_copy(update={"attention_tp": tensor, "dp": dp}),
            "placement": instance.placement.model_copy(update={"failed_gpus": tuple(failed)}),
        }
    )


def tp_groups_of(*sizes: Any) -> list[tuple[int, tuple[int, ...], dict[int, float]]]:
    return [(tp_group.index, tp_group.gpus, tp_group.tokens) for tp_group in find_tp_groups(with_failures(*sizes))]


def test_the_rest_of_a_group_does_its_part() -> None:
    assert tp_groups_of(1, 4, 2, [1]) == [(0, (0,), {0: 200.0}), (1, (2, 3), {0: 200.0})]


def test_a_group_that_is_gone_leaves_its_users_to_the_other_gpus_of_its_node() -> None:
    assert tp_groups_of(2, 4, 1, [1]) == [
        *[(gpu, (gpu,), {0: pytest.approx(400 / 3)}) for gpu in (0, 2, 3)],
        *[(gpu, (gpu,), {1: 100.0}) for gpu in (4, 5, 6, 7)],
    ]
    assert tp_groups_of(1, 6, 2, [2, 3, 5]) == [
        (0, (0, 1), {0: pytest.approx(200 + 200 * 2 / 3)}),
        (2, (4,), {0: pytest.approx(200 + 200 / 3)}),
    ]


def test_a_group_over_nodes_attends_only_where_it_has_a_gpu() -> None:
    # The group of GPUs 2 to 4 has lost what it had on node 0: GPUs 0 and 1 get the 100 tokens of GPU 2.
    assert tp_groups_of(2, 3, 3, []) == [(0, (0, 1, 2), {0: 300.0}), (1, (3, 4, 5), {1: 300.0})]
    assert tp_groups_of(2, 3, 2, [2]) == [(0, (0, 1), {0: 300.0}), (1, (3,), {1: 100.0}), (2, (4, 5), {1: 200.0})]


def test_a_lost_node_is_drawn_whole_since_its_links_carry_tokens() -> None:
    instance = with_failures(2, 2, 1, [2, 3])
    assert lost_nodes(instance) == [1]
    assert [tp_group.gpus for tp_group in find_tp_groups(instance)] == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize("seed", range(30))
def test_no_token_is_lost_whatever_fails(seed: int) -> None:
    rng = random.Random(seed)
    nodes, gpus, tensor = rng.randint(1, 5), rng.randint(1, 5), rng.randint(1, 7)
    failed = sorted(rng.sample(range(nodes * gpus), rng.randint(1, nodes * gpus)))
    instance = with_failures(nodes, gpus, tensor, failed)
    tp_groups, lost = find_tp_groups(instance), lost_nodes(instance)
    for node in range(nodes):
        assert sum(tp_group.tokens.get(node, 0.0) for tp_group in tp_groups) == pytest.approx(100.0 * gpus)
    for tp_group in tp_groups:
        assert {gpu // gpus for gpu in tp_group.gpus} == set(tp_group.tokens)
        assert {gpu // tensor for gpu in tp_group.gpus} == {tp_group.index}
        assert all(gpu not in failed or gpu // gpus in lost for gpu in tp_group.gpus)
    # The verifier finds the same without the code above.
    _, placement, traffic = example()
    found = Deployment(instance, placement, traffic)
    assert found.tensor_groups == {tp_group.index: frozenset(tp_group.gpus) for tp_group in tp_groups}
    assert found.group_tokens == {tp_group.index: pytest.approx(tp_group.total) for tp_group in tp_groups}


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("failed")])
def test_attention_runs_on_gpus_that_work(name: str) -> None:
    instance, placement, traffic = example(name)
    lost = lost_nodes(instance)
    for operation in build_dag(instance, placement, traffic).operations():
        for gpu in set(operation.gpus) & set(instance.placement.failed_gpus):
            assert gpu // instance.cluster.gpus_per_node in lost, operation.id


@pytest.mark.parametrize("name", ["dag-failed-gpus", "dag-simplified", "draw-skip"])
def test_what_was_drawn_wrong_is_drawn_right(name: str, tmp_path: Path) -> None:
    assert drawn(load_instance(CASES / f"{name}.yaml"), "greedy", tmp_path) == []


def drawn(instance: Instance, solver: str, folder: Path) -> list[str]:
    """Solve, write every drawing, and return what the verifier finds wrong with them."""
    limits = moe_placer.Limits(time_s=10)
    solution = moe_placer.solve(instance, solver=solver, limits=limits)
    write_dags(instance, solution.placement, solution.traffic, folder)
    checks = verify_dags(instance, solution.placement, folder, solution.traffic)
    assert len(checks) == 4
    return [str(violation) for check in checks for violation in check.violations]


def draw(rng: random.Random) -> dict[str, Any]:
    """Draw a small deployment, at least one GPU of which failed; now and then a whole node."""
    nodes, gpus = rng.choice([2, 3, 4, 6]), rng.choice([1, 2, 2, 3, 4])
    routing, every = rng.choice(["group", "even"]), range(nodes * gpus)
    failed = set(rng.sample(every, rng.randint(1, max(1, len(every) // 2))))
    if rng.random() < 0.25:
        failed |= set(every[gpus * (lost := rng.randrange(nodes)) : gpus * (lost + 1)])
    redundant = (
        {"replicas": {"redundant_slots": rng.choice([1, 2])}} if routing == "even" and rng.random() < 0.5 else {}
    )
    layers = rng.choice([1, 2, 3])
    fat_tree = {"kind": "fat-tree", "nodes_per_leaf": 2, "spines": 2, "oversubscription": 2.0}
    return {
        "name": "drawn",
        "model": {
            "layers": layers,
            "dense_layers": [0] if layers > 1 and rng.random() < 0.5 else [],
            "hidden_size": 64,
            "attention_heads": 4,
            "head_dim": 16,
            "experts": rng.choice([1, 3, 4, 6]),
            "top_k": 1,
            "expert_hidden_size": 32,
            "vocab_size": 100,
        },
        "cluster": {
            "nodes": nodes,
            "gpus_per_node": gpus,
            "gpu": {"memory_gb": 1.0},
            "fabric": rng.choice([{"kind": "full-mesh"}, fat_tree]),
        },
        "parallelism": {
            "dp": rng.choice([d for d in (1, 2, 3, 4) if routing == "even" or nodes % d == 0]),
            "attention_tp": rng.choice([1, 2, 2, 3, 4, 8]),
            "expert_tp": rng.choice([1, 1, 1, 2]) if gpus > 1 else 1,
        },
        "placement": {
            "slots_per_gpu": rng.choice([2, 4, 8]),
            "replica_routing": routing,
            "replicas_apart": rng.choice(["gpu", "node"]),
            "failed_gpus": sorted(failed),
            **redundant,
        },
        "traffic": {"kind": "synthetic", "tokens_per_gpu": rng.choice([0.5, 1, 100]), "seed": rng.randrange(100)},
    }


def find_flaws(seed: int, folder: Path) -> list[str] | None:
    """Return what is wrong with the drawings of a random deployment; None where nothing can be placed."""
    rng = random.Random(seed)
    try:
        return drawn(Instance.model_validate(draw(rng)), rng.choice(["greedy", "random", "eplb"]), folder)
    except (InfeasibleError, NothingFoundError, InputError):
        return None


@pytest.mark.parametrize(
    "block", [range(12), *(pytest.param(range(b, b + 50), marks=pytest.mark.slow) for b in range(12, 312, 50))]
)
def test_drawings_of_any_deployment_with_failed_gpus_are_good(block: range, tmp_path: Path) -> None:
    flaws = {seed: find_flaws(seed, tmp_path / str(seed)) for seed in block}
    assert {seed: found for seed, found in flaws.items() if found} == {}
    assert sum(found is not None for found in flaws.values()) > len(block) / 3
