"""The plug-in as it behaves without vLLM: idle, light, and never in the way. test_engine_loaders.py has vLLM's side."""

from __future__ import annotations

import importlib.metadata
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from moe_placer.engines.vllm_plugin import VARIABLE, mismatch, plan_rows, register

ROWS = [[0, 1, 2, 0], [2, 1, 0, 1]]


def test_vllm_finds_it_by_its_entry_point() -> None:
    (found,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="moe_placer")
    assert found.load() is register


def test_without_a_plan_nothing_is_imported() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "from moe_placer.engines.vllm_plugin import register\n"
        "register()\n"
        "added = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(added - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={})
    assert done.stdout.strip() == "['moe_placer']", done.stderr


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", "[[0, 1], [0]]", "[[0, 1.5]]", '{"a": 1}', "[true]", "[" * 10**5]
)
def test_a_plan_that_cannot_be_read_is_logged_and_vllm_goes_on(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "plan.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv(VARIABLE, str(file))
    with caplog.at_level(logging.INFO, "vllm.moe_placer"):
        register()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "vLLM's own policy stays" in record.message


def test_a_vllm_without_policies_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "plan.json"
    file.write_text("[[0, 1]]")
    monkeypatch.setenv(VARIABLE, str(file))
    monkeypatch.setitem(sys.modules, "vllm", None)  # import vllm fails
    register()
    assert "has no EPLB policies" in caplog.text


def test_rows_are_one_for_all_layers_or_one_for_each() -> None:
    assert plan_rows(b"[0, 1, 2]") == [[0, 1, 2]]
    assert plan_rows(b"[[0, 1], [1, 0]]") == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ((2, 3, 4, 2), ""),
        ((3, 3, 4, 2), "2 rows, and the model 3 MoE layers"),
        ((2, 3, 6, 2), "4 slots in a layer, and vLLM 6 physical experts"),
        ((2, 3, 4, 3), "no multiple of 3 ranks"),
        ((2, 2, 4, 2), "row 0 names an expert that is not among 0 to 1"),
        ((2, 4, 4, 2), "row 0 lacks 1 of 4 experts"),
    ],
)
def test_what_does_not_fit_is_named(asked: tuple[int, int, int, int], reason: str) -> None:
    assert reason in mismatch(ROWS, *asked)
    assert bool(mismatch(ROWS, *asked)) == bool(reason)
    assert mismatch([[-1, 1, 2, 0]], 1, 3, 4, 2).startswith("row 0 names")
