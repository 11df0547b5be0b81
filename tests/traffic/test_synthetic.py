"""The generator: calibrated to the figures its docstring names, deterministic, and at home at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from builders import tiny_instance
from routing_measures import correlation, layer_information, pair_excess, pair_lift

from moe_placer.errors import InputError
from moe_placer.traffic import synthetic
from moe_placer.traffic.statistics import log_spread, skew


def domains(experts: int, top_k: int) -> list[np.ndarray]:
    """Generate 20,000 tokens of 12 layers in every domain."""
    rng = np.random.default_rng(1)
    steep = synthetic.steepness(experts, top_k)
    common = rng.standard_normal((12, experts))
    sigma = steep * synthetic.SIGMA * np.exp(synthetic.SIGMA_SPREAD * rng.standard_normal(12))
    return [
        synthetic.sample_domain(
            synthetic.make_domain(rng, common, sigma, synthetic.TOPIC_SIGMA * steep), 20_000, top_k, rng
        )
        for _ in range(synthetic.DOMAINS)
    ]


@pytest.mark.parametrize(("experts", "top_k"), [(64, 8), pytest.param(256, 8, marks=pytest.mark.slow)])
def test_it_is_calibrated_to_real_routing(experts: int, top_k: int) -> None:
    topk = domains(experts, top_k)
    loads = [
        np.stack([np.bincount(t[:, layer].ravel(), minlength=experts) for layer in range(12)]).astype(float)
        for t in topk
    ]
    assert 2.2 <= np.median(np.concatenate([skew(load) for load in loads])) <= 6.1
    assert 0.21 <= np.median(np.concatenate([log_spread(load) for load in loads])) <= 1.21
    assert 0.05 <= correlation(loads) <= 0.21
    assert 0.35 <= np.mean([pair_excess(t[:, 0], experts) for t in topk]) <= 0.46
    assert 5 <= np.mean([pair_lift(t[:, 0], experts) for t in topk]) <= 9
    assert 0.5 <= np.mean([layer_information(t[:, 0], t[:, 1], experts) for t in topk]) <= 0.9


def test_the_same_seed_gives_the_same_traffic() -> None:
    instance = tiny_instance(traffic={"kind": "synthetic"})
    assert synthetic.synthesize(instance, 3).sha256 == synthetic.synthesize(instance, 3).sha256
    assert synthetic.synthesize(instance, 3).sha256 != synthetic.synthesize(instance, 4).sha256


def test_tokens_choose_from_few_groups_where_the_model_has_them() -> None:
    model = {"experts": 32, "top_k": 4}
    free = tiny_instance(model=model, traffic={"kind": "synthetic"}, placement={"slots_per_gpu": 8})
    bound = {**model, "expert_groups": 8, "top_groups": 2}
    limited = tiny_instance(model=bound, traffic={"kind": "synthetic"}, placement={"slots_per_gpu": 8})
    groups = [
        np.mean([len(set(choice // 4)) for choice in recording.topk[:, 0]])
        for traffic in (synthetic.synthesize(free, 0), synthetic.synthesize(limited, 0))
        for recording in traffic.recordings
        if recording.topk is not None
    ]
    assert len(groups) == 2 * synthetic.DOMAINS
    assert min(groups[: synthetic.DOMAINS]) > 2.3
    assert max(groups[synthetic.DOMAINS :]) <= 2


def test_the_groups_with_the_best_pair_of_experts_stay() -> None:
    keys = np.array([[0.1, 9.0, 0.5, 0.6, 5.0, 7.0]], dtype=np.float32)  # products 0.9, 0.3, 35
    synthetic._forbid_groups(keys, 3, 1)
    assert np.isfinite(keys).tolist() == [[False, False, True, True, False, False]]


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({"expert_groups": 2}, "top_groups: found nothing, expected both"),
        ({"expert_groups": 3, "top_groups": 1}, "expert_groups: found 3, expected a divisor"),
        ({"expert_groups": 2, "top_groups": 3}, "top_groups: found 3, expected at most"),
        ({"expert_groups": 4, "top_groups": 1}, "top_groups: found 1 groups of 1 experts, expected at least"),
    ],
)
def test_groups_that_make_no_sense_are_refused(groups: dict[str, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        tiny_instance(model=groups)


@pytest.mark.parametrize(("experts", "top_k", "nodes"), [(1, 1, 4), (4, 4, 4), (5, 4, 1), (40, 3, 7)])
def test_it_serves_at_the_edges(experts: int, top_k: int, nodes: int) -> None:
    instance = tiny_instance(
        model={"experts": experts, "top_k": top_k}, cluster={"nodes": nodes}, parallelism={"dp": 1}
    )
    traffic = synthetic.synthesize(instance, 0)
    assert traffic.mix.sum(axis=1) == pytest.approx(np.ones(nodes))
    for recording in traffic.recordings:
        assert recording.topk is not None
        assert recording.topk.shape == (synthetic.TOKENS, 2, top_k)
        ordered = np.sort(recording.topk, axis=2)
        assert (ordered[:, :, 1:] > ordered[:, :, :-1]).all()
        assert ordered.max() < experts
        assert (recording.load.sum(axis=1) == synthetic.TOKENS * top_k).all()


def test_measures_by_hand() -> None:
    assert skew(np.array([[1.0, 3.0]])).tolist() == [1.5]
    assert log_spread(np.array([[1.0, np.e**2]])) == pytest.approx([1.0])
    together = np.array([[0, 1], [2, 3]] * 50)
    # Only 4 of the 12 ordered pairs occur, each 3 times as often as if experts were independent.
    assert pair_excess(together, 4) == pytest.approx(2 / 3)
    assert pair_lift(together, 4, 100) == pytest.approx(3.0)
    one = np.array([[0], [1]] * 50)
    assert layer_information(one, one, 2) == pytest.approx(1.0)
    assert layer_information(one, one * 0, 2) == pytest.approx(0.0)


def test_windows_differ_in_tokens_alone() -> None:
    instance = tiny_instance()
    first, same, later, last = (synthetic.synthesize(instance, 1, window=window) for window in (0, 0, 1, 2))
    assert first.sha256 == same.sha256
    assert len({first.sha256, later.sha256, last.sha256}) == 3
    assert (first.mix == later.mix).all()
    for now, after in zip(first.recordings, later.recordings, strict=True):
        # Shares of experts are those of the same domain, up to the noise of 1,024 tokens.
        assert np.abs(now.load - after.load).max() / now.tokens.max() < 0.08
        assert not (now.load == after.load).all()
