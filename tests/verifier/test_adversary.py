"""Whatever certificates somebody forges, no derived bound is above a placement that exists."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from adversary import KINDS, MOST_WAYS, ONCE, Forger, draw_instance
from brute_force import BruteForce
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from moe_placer.errors import InputError
from moe_placer.verifier import Verification
from moe_placer.verifier.proofs import replicas_are_free
from moe_placer.verifier.verification import CONSTRAINTS

OFTEN = (0.25, 0.35, 0.3, 0.1)  # how often which of ONCE is drawn
STATED = 1e-8  # a stated bound that is so much above the best, relative, and by the next in tokens, must be refused
TOKENS = 2e-9


def drawn(seed: int) -> tuple[np.random.Generator, BruteForce] | None:
    """Draw an instance that has a placement, and list all of its placements."""
    rng = np.random.default_rng(seed)
    try:
        instance, traffic = draw_instance(rng)
    except (ValidationError, InputError):  # fields that contradict each other
        return None
    brute = BruteForce(instance, traffic, MOST_WAYS)
    return (rng, brute) if brute.possible else None


def check(rng: np.random.Generator, brute: BruteForce) -> Counter[str]:
    """Forge, verify, and hold every derived figure against all placements; count what was proved how well."""
    total, aggregate = brute.best_total(), brute.best_aggregate()
    assert total is not None
    assert aggregate is not None
    ways = [total.ways, aggregate.ways, brute.any_ways(rng)][int(rng.integers(3))]
    forger = Forger(rng, brute, ways)
    free = replicas_are_free(brute.instance)
    usual = [*KINDS, *["any replicas"] * (5 if free else 0)]
    kinds = [str(rng.choice(usual) if brute.every_choice else rng.choice(ONCE, p=OFTEN)) for _ in ways]
    with_memory = brute.every_choice and not free and rng.random() < 0.6
    if with_memory:
        kinds = [str(rng.choice(["dual", "threshold"])) for _ in kinds]
    with_aggregate = (
        brute.every_choice and rng.random() < 0.6 and (not free or brute.instance.placement.replica_routing == "even")
    )
    placement = forger.placement(kinds, with_aggregate, with_memory)
    found = forger.verified(placement)

    rules = {violation.rule for violation in found.violations}
    assert not rules & (CONSTRAINTS | {"contradiction", "z", "worst-link", "aggregate", "bound"}), found.violations
    assert not (forger.in_range and rules), found.violations
    proofs: Counter[str] = Counter()
    for row, (layer, way) in enumerate(zip(found.layers, ways, strict=True)):
        best, given = brute.best_of_layer(row), brute.best_of_layer(row, way.replicas)
        assert Fraction(layer.bound) <= best
        assert Fraction(layer.bound_given_replicas or 0.0) <= given
        assert layer.z == pytest.approx(forger.z[row], rel=1e-12)
        _count(proofs, kinds[row], layer.bound, best)
        _count(proofs, f"{kinds[row]}, given", layer.bound_given_replicas or 0.0, given)
    assert Fraction(found.total_bound) <= total.value
    assert Fraction(found.memory_bound) <= total.value
    assert Fraction(found.aggregate_bound) <= aggregate.value
    _count(proofs, "memory", found.memory_bound, total.value)
    _count(proofs, "aggregate", found.aggregate_bound, aggregate.value)
    _refused_if_stated_too_high(rng, forger, placement, found)
    return proofs


def _count(proofs: Counter[str], kind: str, derived: float, best: Fraction) -> None:
    proofs[kind] += derived > 0.5 * float(best) > 0
    proofs[f"{kind}, tight"] += derived > (1 - 1e-6) * float(best) > 0


def _refused_if_stated_too_high(rng: np.random.Generator, forger: Forger, placement: Any, found: Verification) -> None:
    """State of one layer more than any placement has: above the best z, and above what its proof gives."""
    row = int(rng.integers(len(placement.layers)))
    best = float(forger.brute.best_of_layer(row))
    if best <= 1e-3:  # what is below a token may be wrong by 1e-9 of all that is sent
        return
    records = list(placement.layers)
    figure = "bound" if rng.random() < 0.7 or records[row].proof == "solver" else "bound_given_replicas"
    lie = best * (1 + 10.0 ** rng.uniform(np.log10(STATED), 3))
    if records[row].proof == "solver":
        lie = max(lie, forger.z[row] * (1 + STATED))
    if figure == "bound_given_replicas":
        lie = max(lie, float(forger.brute.best_of_layer(row, forger.ways[row].replicas)) * (1 + STATED))
    records[row] = records[row].model_copy(update={figure: lie + TOKENS})
    again = forger.verified(placement.model_copy(update={"layers": tuple(records)}))
    assert not again.ok
    assert again.total_bound <= found.total_bound


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
def test_no_forged_certificate_proves_more_than_there_is(seed: int) -> None:
    found = drawn(seed)
    assume(found is not None)
    assert found is not None
    check(*found)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**63 - 1))
def test_no_forged_certificate_of_ten_thousand_proves_more_than_there_is(seed: int) -> None:
    found = drawn(seed)
    assume(found is not None)
    assert found is not None
    check(*found)


def test_a_bound_far_below_a_token_may_be_wrong_by_the_rounding_of_a_token() -> None:
    found = drawn(13_326_183_065)  # the best placement has 0.0044 tokens on its busiest link
    assert found is not None
    check(*found)


def test_the_adversary_proves_something_of_every_kind() -> None:
    # Else the tests above would hold for a verifier that derives nothing.
    proofs: Counter[str] = Counter()
    features: Counter[str] = Counter()
    for seed in range(250):
        found = drawn(seed)
        if found is not None:
            proofs += check(*found)
            placement, parallelism = found[1].instance.placement, found[1].instance.parallelism
            features.update(
                {
                    "failed": bool(placement.failed_gpus),
                    "pinned": bool(placement.pinned),
                    "sharded": parallelism.expert_tp > 1,
                    "apart": placement.replicas_apart == "node",
                    "free": replicas_are_free(found[1].instance),
                    "tight": found[1].tight,
                    "once": not found[1].every_choice,
                    "groups": placement.replica_routing == "group" and parallelism.dp > 1,
                }
            )
    expected = {"dual", "any replicas", "hot-experts", "threshold", "memory", "aggregate", *ONCE[:3]}
    assert {kind for kind in expected if proofs[kind] > 2} == expected, proofs
    assert {kind for kind in expected if proofs[f"{kind}, tight"]} >= {"dual", "threshold", "companions"}, proofs
    assert proofs["hot-experts, given"], proofs
    assert min(features.values()) > 3, features
