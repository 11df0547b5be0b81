"""What a run notes of its speed: from events to figures."""

from __future__ import annotations

import pytest

from moe_placer.experiments.compare.progress_figures import Event, figures, primal_integral
from moe_placer.experiments.report.growth import fitted_exponent

# Two layers; the second is placed late, and proved by the solver's word alone.
EVENTS: list[Event] = [
    (1.0, 0, 120.0, 0.0, 0.0),
    (2.0, 1, 300.0, 0.0, 0.0),
    (3.0, 0, 100.5, 100.0, 100.0),
    (4.0, 1, 300.0, 200.0, 200.0),
    (5.0, 1, 201.0, 200.0, 200.0),
    (6.0, 0, 100.05, 100.0, 100.05),
    (6.0, 1, 200.1, 200.0, 200.0),
    (8.0, 1, 200.1, 200.0, 200.1),
]


def test_when_a_run_reached_what() -> None:
    found = figures(EVENTS, layers=2, bound=300.0, until=10.0)
    assert found["first_s"] == 2.0
    assert found["bounded_s"] == 4.0
    assert (found["bounded_layers"], found["seconds_per_bounded_layer"]) == (2, 1.0)
    assert found["within_1_percent_s"] == 5.0
    assert found["within_0_1_percent_s"] == 6.0
    assert found["proved_s"] == 8.0


def test_what_is_never_reached_has_no_time() -> None:
    found = figures(EVENTS[:4], layers=2, bound=300.0, until=10.0)
    assert found["bounded_s"] == 4.0
    assert found["within_1_percent_s"] is found["within_0_1_percent_s"] is found["proved_s"] is None
    nothing = figures(EVENTS[:1], layers=2, bound=300.0, until=10.0)
    assert nothing.pop("primal_integral") == 10.0
    assert nothing.pop("bounded_layers") == 0
    assert set(nothing.values()) == {None}


def test_nothing_to_carry_is_optimal_at_once() -> None:
    found = figures([(0.5, 0, 0.0, 0.0, 0.0)], layers=1, bound=0.0, until=10.0)
    assert found["first_s"] == found["bounded_s"] == found["proved_s"] == 0.5
    assert found["primal_integral"] == 0.5


@pytest.mark.parametrize(
    ("sums", "expected"),
    [
        ([], 10.0),  # never a placement: gap 1 throughout
        ([(4.0, 100.0)], 4.0),  # optimal at once: only the wait counts
        ([(2.0, 200.0)], 2.0 + 8 * 0.5),
        ([(2.0, 200.0), (6.0, 125.0)], 2.0 + 4 * 0.5 + 4 * 0.2),
        ([(2.0, 200.0), (12.0, 100.0)], 2.0 + 8 * 0.5),  # too late to count
    ],
)
def test_primal_integral_by_hand(sums: list[tuple[float, float]], expected: float) -> None:
    assert primal_integral(sums, bound=100.0, until=10.0) == pytest.approx(expected)


def test_the_primal_integral_of_events_sums_the_layers() -> None:
    # Complete from 2 s on, with sums of z of 420, 400.5, 400.5, 301.5 and 300.15 against 300.
    gaps = [(1, 120 / 420), (1, 100.5 / 400.5), (1, 100.5 / 400.5), (1, 1.5 / 301.5), (4, 0.15 / 300.15)]
    expected = 2.0 + sum(seconds * gap for seconds, gap in gaps)
    assert figures(EVENTS, 2, 300.0, 10.0)["primal_integral"] == pytest.approx(expected)


def test_a_power_law_is_fitted_exactly() -> None:
    sizes = [10.0, 100.0, 400.0]
    assert fitted_exponent(sizes, [3 * size**1.3 for size in sizes]) == pytest.approx(1.3)
    assert fitted_exponent([10.0, 10.0, 100.0], [1.0, 1.0, 2.0]) is None
