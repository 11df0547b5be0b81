"""Tutorials run when the site is built, and print the figures that their prose is about."""

from __future__ import annotations

import html
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from command_line import run

REPO = Path(__file__).parent.parent
with_outputs = runpy.run_path(str(REPO / "docs" / "site" / "tutorials.py"))["with_outputs"]


def outputs(site: Path, page: str) -> str:
    """Return what the blocks of a tutorial printed, as the site shows it."""
    text = (site / "docs" / f"{page}.html").read_text()
    blocks = re.findall(r'<div class="highlight-text.*?<pre>(.*?)</pre>', text, re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", "".join(blocks)))


def figures(text: str, name: str) -> list[float]:
    """Return the numbers of the first row of a table that begins with a name."""
    (row, *_) = re.findall(rf"^ *{re.escape(name)} +([-+\d.,% ]+)$", text, re.MULTILINE)
    return [float(word.strip("%").replace(",", "")) for word in row.split()]


def test_blocks_run_in_order_and_print_below(tmp_path: Path) -> None:
    page = (
        "```python\nx = 2\n```\n\n```sh\n# a comment\nmoe-placer \\\n  --version\n```\n\n```python\nprint(x + 1)\n```\n"
    )
    made = with_outputs(page + "\n```bash\nfalse\n```\n", tmp_path)
    assert re.findall(r"```text\n(.*?)\n```", made) == [*re.findall(r"moe-placer, version [\d.]+", made), "3"]
    with pytest.raises(RuntimeError, match=r"ended with 1: moe-placer: none\.yaml: found no such file"):
        with_outputs("```sh\nmoe-placer inspect none.yaml\n```\n", tmp_path)
    with pytest.raises(ValueError, match="runs rm, expected moe-placer only"):
        with_outputs("```sh\nrm -r none\n```\n", tmp_path)


def test_the_counts_of_the_first_tutorial_are_those_of_the_recordings(tmp_path: Path) -> None:
    traces = [REPO.parent / "shared" / "traces" / f"esft_deepseek-v2-lite_{text}.npz" for text in ("intent", "summary")]
    if not all(trace.exists() for trace in traces):
        pytest.skip("no real traces")
    (dump,) = (REPO / "examples" / "first-plan").glob("*.pt")
    assert run("import", dump, "-o", tmp_path / "recording.npz").returncode == 0
    windows = np.load(tmp_path / "recording.npz")["window_load"]
    for text, trace in enumerate(traces):
        assert np.array_equal(windows[2 * text : 2 * text + 2].sum(axis=0), np.load(trace)["load"])


@pytest.mark.site
def test_a_dump_becomes_a_plan_with_a_verdict(site: Path) -> None:
    text = outputs(site, "tutorial-first-plan")
    step = {plan: figures(text, plan)[-1] for plan in ("contiguous", "eplb", "auto")}
    assert step["auto"] < 0.85 * step["contiguous"]
    assert abs(step["auto"] / step["eplb"] - 1) < 0.02
    assert "Verdict: placing does not pay here" in text
    _, under_the_rule = text.split("routing sglang-static, dispatch per-expert")
    near, eplb, plan = (figures(under_the_rule, name) for name in ("greedy", "eplb", "the placement"))
    assert near[0] < 0.85 * eplb[0]
    assert near[4] < 0.9 * plan[4]
    assert "--init-expert-location plan.json" in text
    assert "plan.json: good." in text


@pytest.mark.site
def test_vllm_is_planned_anew_after_drift_and_a_failure(site: Path) -> None:
    text = outputs(site, "tutorial-vllm")
    current, within, fresh = (figures(text, name) for name in ("current", "within the budget", "fresh plan (auto)"))
    assert within[0] <= 150 < 0.1 * fresh[0]
    assert current[2] - within[2] > 0.5 * (current[2] - fresh[2])
    assert "thursday/placement.json: good." in text
    assert "Out of service: 624 replicas (8 GPUs failed)" in text
    assert re.findall(r'"num_redundant_experts": (\d+)', text) == ["32", "32", "8"]


@pytest.mark.site
def test_fabrics_are_compared_each_with_its_plan(site: Path) -> None:
    text = outputs(site, "tutorial-fabric")
    four, two, rails = (figures(text, name) for name in ("fat tree, 4:1", "fat tree, 2:1", "one pod of rails"))
    assert two[1] < 0.6 * four[1]
    assert four[2] < 2 < two[2] < 10 < rails[2]
    assert rails[0] < 0.95 * two[0]
    assert rails[1] < 0.85 * two[1]
    assert rails[0] / two[0] > rails[1] / two[1] + 0.05
    assert max(row[3] for row in (four, two, rails)) <= 0.1


@pytest.mark.site
def test_a_bound_is_checked_without_our_code(site: Path) -> None:
    text = (REPO / "docs" / "tutorial-proof.md").read_text()
    _, check = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert "moe_placer" not in check
    assert len([line for line in check.splitlines() if line and not line.startswith(("import", "from"))]) <= 20
    found = re.findall(r"(z|bound) ([\d.]+), in the file ([\d.]+)", outputs(site, "tutorial-proof"))
    assert [kind for kind, _, _ in found] == ["z", "bound"] * 2
    assert all(here == in_file for _, here, in_file in found)
    values = [float(here) for _, here, _ in found]
    assert all(bound <= z <= 1.005 * bound for z, bound in zip(values[::2], values[1::2], strict=True))


@pytest.mark.site
def test_an_own_method_is_compared_with_the_others(site: Path) -> None:
    head, *rows = [line.split() for line in outputs(site, "tutorial-own-method").splitlines()]
    assert head == ["instance", "snake", "contiguous", "eplb", "greedy"]
    ratios = {name: list(map(float, values)) for name, *values in rows}
    assert len(ratios) == 4
    assert all(ratio >= 1 for values in ratios.values() for ratio in values)
    assert ratios["plan-4"][0] == max(ratios["plan-4"])
