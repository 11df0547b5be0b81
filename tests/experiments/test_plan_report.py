"""The page of a plan: made from rows alone, every statement judged, and the committed one as it is rebuilt."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import TINY, merged
from command_line import REPO, SEED_PLAN, fails, run

from moe_placer.cli.commands import cli
from moe_placer.dag import VIEWS
from moe_placer.errors import InputError
from moe_placer.experiments.environment import describe_environment
from moe_placer.experiments.plan.blocks import Heading, Items, Picture, Table, Text, to_html, to_markdown
from moe_placer.experiments.plan.figures import cross, read_figures
from moe_placer.experiments.plan.measure import measure_plan
from moe_placer.experiments.plan.page import judge
from moe_placer.experiments.plan.plan_folder import build_page, read_rows
from moe_placer.experiments.plan.statements import STATEMENTS, VERDICTS
from moe_placer.instance import load_instance
from moe_placer.solve.solve import solve
from moe_placer.traffic import load_traffic
from moe_placer.verifier import verify

(COMMITTED,) = (REPO / "reports").glob("*-reference-plan")
SMALL: dict[str, Any] = {
    "traffic": {"kind": "synthetic", "tokens_per_gpu": 64.0, "seed": 3},
    "schedule": {
        "planned_shares": {"computation": 0.4, "communication": 0.35, "synchronization": 0.15, "overhead": 0.1}
    },
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measure a small plan, with another beside it; return its folder."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(merged(TINY, SMALL)))
    assert run("solve", folder / "tiny.yaml", "-o", folder, "--solver", "greedy", "--no-dag").returncode == 0
    files = folder / "tiny.yaml", folder / "placement.json"
    done = run("plan-report", *files, "-o", folder / "report", "--beside", "the same again", *files)
    assert done.returncode == 0, done.stderr
    return folder


def test_everything_is_on_the_page(plan: Path) -> None:
    report = plan / "report"
    names = {"index.html", "README.md", "results.jsonl", "environment.json"}
    assert {path.name for path in report.iterdir()} == names | {"placement.svg", "layers.svg", "memory.svg", "dags"}
    page, text = (report / "index.html").read_text(), (report / "README.md").read_text()
    for heading in ("Assumptions", "Placement", "Memory", "DAGs", "Targets", "conditions", "slow GPU", "Kernels"):
        assert heading in page
        assert heading in text
    for statement in STATEMENTS:
        assert f"| {statement.number} | {statement.text} |" in text
    assert page.count("<svg") == 3
    for view in VIEWS:
        assert (report / "dags" / f"{view}.svg").exists()
        assert f'<a href="dags/{view}.svg"><img src="dags/{view}.svg"' in page  # small enough to be its own thumbnail
        assert f"](dags/{view}.svg)](dags/{view}.svg)" in text
    assert "<script" not in page
    assert "http-equiv" in page
    assert "the same again" in text


def test_the_same_rows_give_the_same_bytes(plan: Path, tmp_path: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    before = files(plan / "report")
    shutil.copytree(plan / "report" / "dags", tmp_path / "dags")
    for name in ("results.jsonl", "environment.json"):
        shutil.copy(plan / "report" / name, tmp_path)
    done = run("plan-report", "--rebuild", "-o", tmp_path, "--json")
    assert done.returncode == 0
    assert {Path(file).name for file in json.loads(done.stdout)["files"]} == before.keys() - {
        "results.jsonl",
        "environment.json",
    }
    assert files(tmp_path) == before


def test_what_needs_other_rows_says_so(plan: Path) -> None:
    verdicts = {n: verdict for n, verdict, _ in judge(read_figures(read_rows(plan / "report" / "results.jsonl")))}
    assert [n for n, verdict in verdicts.items() if verdict == "not measured"] == [3, 33, 35, 36, 37]
    assert verdicts[1] == "fails"  # EP 4 is not large
    assert verdicts[9] == "given"
    assert verdicts[40] == "out of scope"


def test_every_statement_of_the_plan_is_there_once() -> None:
    assert [statement.number for statement in STATEMENTS] == list(range(1, 45))
    for statement in STATEMENTS:
        assert re.match(r"moe-placer (\w|-)+ I", statement.command), statement.number
        _, name, *arguments = shlex.split(statement.command)
        cli.commands[name].make_context(name, arguments)  # every option is one that there is


def test_one_node_has_no_network_to_judge(tmp_path: Path) -> None:
    alone = {"cluster": {"nodes": 1, "gpus_per_node": 8}, "parallelism": {"dp": 1}, "traffic": SMALL["traffic"]}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(merged(TINY, alone)))
    instance = load_instance(tmp_path / "one.yaml")
    traffic = load_traffic(instance)
    placement = solve(instance, traffic, solver="contiguous").placement
    rows = [*measure_plan(instance, placement, traffic, verify(instance, placement, traffic), lambda _line: None)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "environment.json").write_text(json.dumps(describe_environment()))
    assert "no tokens cross a link" in build_page(tmp_path)["README.md"]


def test_damaged_rows_are_told(plan: Path, tmp_path: Path) -> None:
    fails(2, "plan-report", "-o", tmp_path, says="give INSTANCE and PLACEMENT, or --rebuild")
    fails(2, "plan-report", plan / "tiny.yaml", "-o", tmp_path, says="PLACEMENT is missing")
    shutil.copy(plan / "report" / "environment.json", tmp_path)
    (tmp_path / "results.jsonl").write_text('{"schema":"other"}\n')
    fails(1, "plan-report", "--rebuild", "-o", tmp_path, says="results.jsonl:1")
    lines = (plan / "report" / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(InputError, match="what is no plan"):
        build_page(tmp_path)


def test_blocks_read_alike_in_both_forms() -> None:
    blocks = [
        Heading("A & <b>", 1),
        Heading("Part", 2),
        Text("see `x < y` and **this**"),
        Items(("one", "two")),
        Table(("name", "n"), (("a|b", "**holds**"),), 1),
        Picture("p.svg", "a picture", "<svg></svg>"),
    ]
    html, text = to_html(blocks, "t"), to_markdown(blocks)
    assert '<h1 id="a-b">A &amp; &lt;b&gt;</h1>' in html
    assert '<a href="#part">Part</a>' in html
    assert "<code>x &lt; y</code> and <b>this</b>" in html
    assert '<td class="n"><b class="holds">holds</b></td>' in html
    assert "| a\\|b | **holds** |" in text
    assert "![a picture](p.svg)" in text


def test_the_committed_page_is_what_its_rows_give() -> None:
    """The sentences of the reference plan hold: README and pictures are those that the committed rows give."""
    for name, content in build_page(COMMITTED).items():
        if name != "index.html":
            assert (COMMITTED / name).read_text() == content, name


def test_what_is_said_of_the_reference_plan_holds() -> None:
    figures = read_figures(read_rows(COMMITTED / "results.jsonl"))
    judged = {n: (verdict, sentence) for n, verdict, sentence in judge(figures)}
    assert "not measured" not in {verdict for verdict, _ in judged.values()}
    assert set(VERDICTS) >= {verdict for verdict, _ in judged.values()}
    assert judged[1][0] == judged[6][0] == "holds"
    assert judged[29][0] == judged[36][0] == judged[37][0] == "fails"
    small = figures.step(small=True, micro_batches=1)
    assert small["mfu"] == pytest.approx(0.4 * 0.6, abs=0.01)  # 40% computation with 60% MFU in it
    assert figures.target("shares", small=True, micro_batches=1)["ok"]
    assert not figures.target("mfu")["ok"]
    crossing = figures.crossing("Batches, prefill")
    assert crossing is not None
    assert 128 < crossing.at < 256
    assert not figures.step(phase="decode")["fits"]


def test_the_batch_of_equal_steps_depends_on_context_network_and_kernel() -> None:
    figures = read_figures(read_rows(COMMITTED / "results.jsonl"))
    curves, own = figures.curves(), figures.own_state
    assert {state.context for state in curves} == {1024.0, 4096.0, 16384.0}
    assert {state.oversubscription for state in curves} == {2.0, 4.0, 8.0}
    assert {(state.dispatch, state.receive) for state in curves} == {
        ("per-expert", "shared"), ("per-node", "shared"), ("per-expert", "destination-gpu"),
    }  # fmt: skip
    at = {state: cross(curve.ratios)[0].at for state, curve in curves.items()}
    crossing = figures.crossing("Batches, prefill")
    assert crossing is not None
    assert at[own] == pytest.approx(crossing.at)
    assert at[own._replace(oversubscription=8.0)] < at[own._replace(oversubscription=4.0)] < at[own]
    assert at[own._replace(receive="destination-gpu")] < at[own] < at[own._replace(dispatch="per-node")]
    # A curve is of one placement, though those of the sweep of batches have been swept on other networks too.
    assert curves[own].total_z != curves[own._replace(oversubscription=8.0)].total_z
    assert set(curves[own._replace(oversubscription=8.0)].ratios) == {24.0, 64.0}
    # What the README says in one sentence.
    said = " ".join((REPO / "README.md").read_text().split())
    assert f"equal at about {at[own]:.0f} (from {min(at.values()):.0f} to {max(at.values()):.0f} over contexts" in said


def test_expert_parallelism_over_four_gpus_hardly_fits() -> None:
    figures = read_figures(read_rows(COMMITTED / "results.jsonl"))
    four = figures.third_plans()
    assert {(row["instance"], row["expert_parallelism"]) for row in four} == {("h100-128-ep4", 4)}
    instance = load_instance(COMMITTED / "instances" / "h100-128-ep4.yaml")
    assert four[0]["instance_sha256"] == instance.sha256
    held = 16 * 58 * figures.plan["expert_gb"] + figures.plan["resident_gb"]
    assert [row["weights_bytes"] / 1e9 for row in four] == pytest.approx([held] * len(four), rel=1e-6)
    assert {row["tokens_per_gpu"]: row["fits"] for row in four} == {64.0: True, 1024.0: False}
    steps = {row["tokens_per_gpu"]: row["latency_us"] for row in four}
    small, large = figures.at_batch(64.0), figures.at_batch(1024.0)
    assert small is not None
    assert large is not None
    assert small < 0.5 * steps[64.0]
    assert 0.9 * steps[1024.0] < large < steps[1024.0]
    (sentence,) = (words for number, _, words in judge(figures) if number == 33)
    assert f"at 64 tokens per GPU this plan's step is {100 * (1 - small / steps[64.0]):.0f}% shorter" in sentence


def test_a_plan_that_sends_nothing_between_nodes_is_the_same_on_every_network() -> None:
    rows = [json.loads(line) for line in (COMMITTED / "results.jsonl").read_text().splitlines()]
    swept = [
        row for row in rows if "sweep" in row and row["instance"] == "ep8-traditional" and row["phase"] == "prefill"
    ]
    steps: dict[tuple[float, float, str], set[float]] = {}
    for row in swept:
        key = row["context"], row["tokens_per_gpu"], row["sweep"] == "Sweep"
        steps.setdefault(key, set()).add(round(row["latency_us"], 6))
    assert len(swept) > len(steps)
    assert all(len(found) == 1 for found in steps.values())


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 80 s of CPU time, on a machine that may be shared
def test_the_reference_plan_measured_anew_is_judged_alike(tmp_path: Path) -> None:
    """Solved and simulated again, every statement gets the verdict that is committed."""
    assert run("solve", SEED_PLAN, "-o", tmp_path, "--no-dag", "-q").returncode == 0
    files = SEED_PLAN, tmp_path / "placement.json"
    sweeps = COMMITTED / "sweeps" / "results.jsonl"
    assert run("plan-report", *files, "-o", tmp_path / "report", "--sweeps", sweeps).returncode == 0
    again, before = (
        {n: verdict for n, verdict, _ in judge(read_figures(read_rows(folder / "results.jsonl")))}
        for folder in (tmp_path / "report", COMMITTED)
    )
    assert again == before
