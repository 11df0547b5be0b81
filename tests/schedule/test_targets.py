"""Targets of a step: what was asked, what came out, what limits it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from builders import honest, tiny_instance
from command_line import fails, run
from dag_examples import example

from moe_placer.cli.results import result_schema
from moe_placer.errors import UsageError
from moe_placer.schedule.program import compile_program
from moe_placer.schedule.simulate import Timeline, simulate
from moe_placer.schedule.step_figures import SHARES, find_figures
from moe_placer.schedule.targets import TARGETS, answer_target, link_use, read_target, time_use
from moe_placer.schedule.workload import Condition, Workload


@pytest.fixture(scope="module", params=["one batch", "two batches", "decode, one GPU slow"])
def timeline(request: pytest.FixtureRequest) -> Timeline:
    program = compile_program(*example("small"))
    if request.param == "decode, one GPU slow":
        return simulate(program, Workload("decode", 30.0, 500.0), condition=Condition({1: 2.0}))
    return simulate(program, Workload(micro_batches=1 if request.param == "one batch" else 2))


def test_what_is_used_and_what_is_lost_make_the_whole(timeline: Timeline) -> None:
    figures = find_figures(timeline)
    for use in (time_use(timeline, figures, of="flops"), time_use(timeline, figures, of="bytes")):
        # The gate has a stream of its own, so that it can be computed while something else is.
        assert 1 - 1e-9 <= use.used + sum(use.lost.values()) <= 1.01
    links = link_use(timeline, figures)
    assert links.used + sum(links.lost.values()) == pytest.approx(1)
    assert all(size >= 0 for use in (links,) for size in use.lost.values())
    assert time_use(timeline, figures, of="flops").used == pytest.approx(figures.mfu)


@pytest.mark.parametrize("name", ["mfu", "bandwidth", "links", "latency", "throughput", "memory"])
def test_a_target_holds_on_one_side_of_what_comes_out(timeline: Timeline, name: str) -> None:
    figures = find_figures(timeline)
    got = answer_target(read_target(f"{name}={TARGETS[name][0]}"), timeline, figures).got[0]  # type: ignore[index]
    for factor in (0.999, 1.001):
        answer = answer_target(read_target(f"{name}={got * factor!r}"), timeline, figures)
        assert answer.ok == ((factor > 1) == (name in {"latency", "memory"}))
        assert answer.got == (got,)
        assert list(answer.limits.values()) == sorted(answer.limits.values(), reverse=True)
        assert answer.limiter


def test_shares_hold_within_five_points(timeline: Timeline) -> None:
    figures = find_figures(timeline)
    shares = [figures.shares[name] for name in SHARES]
    order = sorted(range(4), key=shares.__getitem__)
    for off, ok in ((0.04, True), (0.06, False)):
        moved = list(shares)
        moved[order[-1]] -= off
        moved[order[0]] += off
        text = "/".join(repr(100 * share) for share in moved)
        assert answer_target(read_target(f"shares={text}"), timeline, figures).ok is ok


def test_what_the_instance_forbids_is_named_as_the_limit(timeline: Timeline) -> None:
    figures = find_figures(timeline)
    beyond = answer_target(read_target("mfu=61%"), timeline, figures)
    assert beyond.limiter == "gpu.mfu of 60%: no step of this instance reaches more"
    assert "gpu.mfu" not in answer_target(read_target("mfu=60%"), timeline, figures).limiter
    assert "link_utilization of 80%" in answer_target(read_target("links=81%"), timeline, figures).limiter


def test_one_node_has_no_links_to_use() -> None:
    timeline = simulate(compile_program(*example("one-node")), Workload())
    answer = answer_target(read_target("links=1%"), timeline, find_figures(timeline))
    assert (answer.got, answer.ok, answer.limiter) == ((0.0,), False, "no tokens between nodes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=3", "no target, expected one of mfu=60%"),
        ("mfu", "does not say how much, expected a value such as mfu=60%"),
        ("mfu=fast", "does not say how much"),
        ("mfu=140%", "more than all"),
        ("latency=-5ms", "does not say how much"),
        ("shares=40/35/25", "does not say how much"),
        ("shares=40/35/15/20", "makes 110%"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_target(text)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    from moe_placer.instance import load_instance
    from moe_placer.traffic import load_traffic

    folder = tmp_path_factory.mktemp("targets")
    content = tiny_instance().model_dump(mode="json", exclude_none=True)
    (folder / "tiny.yaml").write_text(json.dumps(content | {"traffic": {"kind": "synthetic", "seed": 1}}))
    opened = load_instance(folder / "tiny.yaml")
    (folder / "placement.json").write_text(json.dumps(honest(opened, load_traffic(opened))))
    return [str(folder / "tiny.yaml"), str(folder / "placement.json")]


def test_the_command_says_what_was_asked_and_ends_with_6(files: list[str], tmp_path: Path) -> None:
    held = run("schedule", *files, "--require", "latency=1000ms", "--require", "memory=100%")
    assert held.returncode == 0, held.stderr
    assert held.stdout.count("holds") == 2
    trace = tmp_path / "step.json"
    missed = run(
        "schedule", *files, "--require", "mfu=60%", "--require", "memory=100%", "--json", "--chrome-trace", trace
    )
    assert missed.returncode == 6
    assert "the step misses a target: mfu is" in missed.stderr
    assert trace.exists()  # what was asked for is there all the same
    answers = json.loads(missed.stdout)["required"]
    assert [(one["target"], one["ok"]) for one in answers] == [("mfu", False), ("memory", True)]
    assert answers[0]["got"] == [pytest.approx(json.loads(missed.stdout)["mfu"])]
    jsonschema.validate(json.loads(missed.stdout), result_schema("schedule"))


def test_a_wrong_target_is_refused_before_anything_is_simulated(files: list[str]) -> None:
    fails(2, "schedule", *files, "--require", "mfu=a lot", says="does not say how much")
