"""What engines demand of slots and GPUs."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_placer.engines.layouts import ENGINES, LAYOUTS, EngineName, slots_mistake


def test_every_engine_has_rules_and_a_layout() -> None:
    assert set(ENGINES) == set(get_args(EngineName)) == {layout.engine for layout in LAYOUTS.values()}
    assert all(name == rules.name for name, rules in ENGINES.items())


def test_160_slots_on_64_gpus_are_refused_with_the_counts_that_fit() -> None:
    mistake = slots_mistake(ENGINES["sglang"], 128, 160, 64)
    assert mistake is not None
    found, expected = mistake
    assert found == "128 experts + 32 redundant slots = 160 slots on 64 GPUs, 2.5 each"
    assert expected == (
        "0 (2 slots on each GPU) or 64 (3 slots on each GPU) redundant slots: SGLang 0.5.23 gives every GPU as many "
        "slots (num_physical_experts % ep_size == 0), and asserts it at start"
    )


@pytest.mark.parametrize("name", ENGINES)
@given(experts=st.integers(1, 512), redundant=st.integers(0, 512), gpus=st.integers(1, 512))
def test_only_multiples_of_the_gpus_pass(name: str, experts: int, redundant: int, gpus: int) -> None:
    mistake = slots_mistake(ENGINES[name], experts, experts + redundant, gpus)
    fits = (experts + redundant) % gpus == 0 or not ENGINES[name].equal_slots
    assert (mistake is None) == fits
    if mistake:
        counts = [int(word) for word in re.findall(r"(\d+) \(", mistake[1].split(":")[0])]
        assert counts
        assert all((experts + count) % gpus == 0 for count in counts)
