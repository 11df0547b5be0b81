"""Tutorials do what they say: their code runs, and prints the figures that the prose is about."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

REPO = Path(__file__).parent.parent
with_outputs = runpy.run_path(str(REPO / "docs" / "site" / "tutorials.py"))["with_outputs"]


def outputs(page: str) -> str:
    text = with_outputs((REPO / "docs" / f"{page}.md").read_text(), REPO)
    return "".join(re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def test_a_bound_is_checked_without_our_code() -> None:
    text = (REPO / "docs" / "tutorial-proof.md").read_text()
    _, check = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert "moe_placer" not in check
    assert len([line for line in check.splitlines() if line and not line.startswith(("import", "from"))]) <= 20
    found = re.findall(r"(z|bound) ([\d.]+), in the file ([\d.]+)", outputs("tutorial-proof"))
    assert [kind for kind, _, _ in found] == ["z", "bound"] * 2
    figures = [float(here) for _, here, _ in found]
    assert all(here == in_file for _, here, in_file in found)
    assert all(bound <= z <= 1.005 * bound for z, bound in zip(figures[::2], figures[1::2], strict=True))


def test_an_own_method_is_compared_with_the_others() -> None:
    head, *rows = [line.split() for line in outputs("tutorial-own-method").splitlines()]
    assert head == ["instance", "snake", "contiguous", "eplb", "greedy"]
    ratios = {name: list(map(float, values)) for name, *values in rows}
    assert len(ratios) == 4
    assert all(ratio >= 1 for values in ratios.values() for ratio in values)
    assert ratios["plan-4"][0] == max(ratios["plan-4"])
