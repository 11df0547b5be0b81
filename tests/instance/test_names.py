"""Control and direction characters in names: refused where a file has them, spelled out where a system gives them."""

from __future__ import annotations

import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import honest, level_traffic, tiny_instance, tiny_traffic
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moe_placer.cli.json_text import as_json
from moe_placer.errors import InputError, Mistake, visible
from moe_placer.files import parse_json
from moe_placer.placement import Placement, load_placement
from moe_placer.traffic.readers import read_load
from moe_placer.verifier.dags.dag_rules import DagViolation
from moe_placer.verifier.dags.read_back import read_dag
from moe_placer.verifier.verification import Violation

# ESC, BEL, NUL, DEL, a C1 control, line separator, override to the left, isolate, mark.
ACTING = ["\x1b", "\x07", "\x00", "\x7f", "\x9b", "\u2028", "\u202e", "\u2066", "\u200f", "\u061c"]


@given(st.text())
def test_visible_text_has_nothing_that_acts_and_loses_nothing(text: str) -> None:
    shown = visible(text)
    assert not any(unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"} for letter in shown)
    assert not any(unicodedata.bidirectional(letter) in {"LRE", "RLE", "LRO", "RLO", "PDF"} for letter in shown)
    assert not any(unicodedata.bidirectional(letter) in {"LRI", "RLI", "FSI", "PDI"} for letter in shown)
    if shown == text:
        return
    assert visible(shown) == shown
    if "\\" not in text and text.isascii():
        assert shown.encode().decode("unicode_escape") == text


@pytest.mark.parametrize("letter", ACTING)
@pytest.mark.parametrize("escaped", [True, False], ids=["escape", "raw"])
def test_json_with_such_text_is_refused(tmp_path: Path, letter: str, escaped: bool) -> None:
    if not escaped and letter < " ":
        pytest.skip("JSON itself forbids it")
    file = tmp_path / "x.json"
    for content in ({"name": f"a{letter}b"}, {f"a{letter}": 1}, [[{"x": [letter]}]]):
        raw = json.dumps(content, ensure_ascii=escaped).encode()
        with pytest.raises(InputError) as caught:
            parse_json(raw, "a file", file)
        assert visible(str(caught.value)) == str(caught.value)
        assert "control or direction characters in" in str(caught.value)


@pytest.mark.parametrize(
    "content", [{"a": "b\n\tc\r\n"}, {"é": "日本 \U0001f600"}, ["\\u001b", "\\x1b"], {"a": "/ \u2014"}]
)
def test_other_json_is_read(tmp_path: Path, content: Any) -> None:
    for ascii_only in (True, False):
        assert parse_json(json.dumps(content, ensure_ascii=ascii_only).encode(), "a file", tmp_path) == content


@pytest.mark.parametrize("letter", [*ACTING, "\t", "\n"])
def test_an_instance_and_its_gpu_are_not_named_so(letter: str) -> None:
    for changes in ({"name": f"a{letter}b"}, {"name": letter}, {"cluster": {"gpu": {"name": f"H{letter}"}}}):
        with pytest.raises(ValidationError, match="name"):
            tiny_instance(**changes)
    assert tiny_instance(name="Größe 1 [x]").name == "Größe 1 [x]"


@pytest.mark.parametrize("letter", ACTING)
def test_a_placement_does_not_state_such_names(tmp_path: Path, letter: str) -> None:
    instance = tiny_instance()
    data = honest(instance, tiny_traffic(instance))
    data["layers"][0]["worst_link"] = f"node0{letter}->leaf0"
    file = tmp_path / "placement.json"
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match="control or direction characters"):
        load_placement(file)


def test_a_dag_with_such_an_id_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x_dag.json"
    file.write_text(json.dumps({"graph": {}, "nodes": [{"id": "\u202egpj"}], "edges": []}))
    with pytest.raises(InputError, match="control or direction characters"):
        read_dag(file)


def test_what_a_file_system_names_is_spelled_out(tmp_path: Path) -> None:
    instance = tiny_instance()
    file = tmp_path / "a\x1b[31m\u202e.npy"
    stream = io.BytesIO()
    np.save(stream, np.ones((2, 4)))
    file.write_bytes(stream.getvalue())
    assert read_load(file, instance).name == r"a\x1b[31m\u202e.npy"
    file.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        read_load(file, instance)
    assert r"a\x1b[31m\u202e.npy: found" in str(caught.value)


def test_messages_spell_out_what_they_quote() -> None:
    assert str(Mistake("\x1b[2J", "a\u202eb", "x\x00")) == r"x\x00: found \x1b[2J, expected a\u202eb"
    assert str(Violation("z", "\x9b", layer=1)) == r"[z] layer 1: \x9b"
    assert str(DagViolation("dag-form", "d", "\x07", "m")) == r"[dag-form] d, \x07: m"


def test_printed_json_spells_out_and_says_the_same() -> None:
    content = {"a\u202e": ["\x9b31m", "\x1b", "é"], "b": float("inf")}
    text = as_json(content)
    assert visible(text.replace("\n", "")) == text.replace("\n", "")
    assert "é" in text
    assert json.loads(text) == {**content, "b": None}


def test_a_name_with_markup_is_printed_as_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """``[]`` and ``[red]`` were taken for markup, and ``{0}`` ended the progress bar with an IndexError."""
    from moe_placer import solve
    from moe_placer.cli.plans import measure_plans
    from moe_placer.cli.progress_display import show_progress
    from moe_placer.cli.summary import print_summary

    instance = tiny_instance(name="[red]a[x] [] {0}")
    solution = solve(instance, level_traffic(instance, [[4, 3, 2, 1]] * 2, 10), solver="greedy")
    print_summary(instance, solution, measure_plans(instance, solution), None, [tmp_path / "[/b]\x1b"])
    said = capsys.readouterr().out
    assert said.startswith("[red]a[x] [] {0}: 2 MoE layers")
    assert said.rstrip().endswith(r"[/b]\x1b")
    assert Placement.model_validate_json(solution.placement.to_json()).instance.name == instance.name
    with show_progress(instance.name, 1.0, quiet=False):
        pass


def test_the_live_bar_prints_a_name_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from moe_placer.cli.progress_display import _live

    monkeypatch.setenv("FORCE_COLOR", "1")
    with _live("[red]a[x] [] {0}"):
        pass
    assert "[red]a[x] [] {0}" in capsys.readouterr().err
