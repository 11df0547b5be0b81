"""Every field of a DAG's file is checked: whatever is changed, left out or put in, in both files alike, is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from dag_examples import example

from moe_placer.dag.texts import to_json
from moe_placer.dag.views import VIEWS
from moe_placer.verifier.dags.dag_checks import _rules
from moe_placer.verifier.dags.read_back import read_dag
from moe_placer.verifier.deployment import Deployment

Content = dict[str, Any]
ADDED: dict[str, Any] = {
    "experts": [[0, 0]], "moved": {"network": 1}, "routes": ["0>1"], "hot": 0.5, "tensor": "t", "layer": 1, "group": 0,
    "repeats": 2, "batch": 0, "batches": 2, "contracted": True, "key": 0, "extra": 1,
}  # fmt: skip


def others(value: Any) -> Iterator[Any]:
    """Yield values that are a little, but more than rounding, different."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield value + max(1, abs(value) // 1000)
    elif isinstance(value, str):
        yield f"{value}x"
    elif isinstance(value, list):
        yield [*value, value[-1] if value else 0]
        if value:
            yield value[:-1]
            yield from ([other, *value[1:]] for other in others(value[0]))
    elif isinstance(value, dict):
        yield {**value, "other": next(iter(value.values()), 1)}
        if value:
            last = next(reversed(value))
            yield {key: kept for key, kept in value.items() if key != last}
            yield from ({**value, last: other} for other in others(value[last]))


def changes_of(row: Content, fixed: set[str]) -> Iterator[tuple[str, Content]]:
    """Yield which field of a row is changed, and the row with it changed, left out or put in."""
    for key in row.keys() - fixed:
        for other in others(row[key]):
            yield key, {**row, key: other}
        yield key, {field: value for field, value in row.items() if field != key}
    for key in ADDED.keys() - row.keys():
        yield key, {**row, key: ADDED[key]}


def changed_files(content: Content) -> Iterator[tuple[str, Content]]:
    """Yield what is changed and the file's content: every field of the whole, and of one row of each kind."""
    for key, changed in changes_of(content, {"graph", "nodes", "edges"}):
        yield f"file {key}", changed
    for key, changed in changes_of(content["graph"], set()):
        yield f"facts {key}", {**content, "graph": changed}
    for part, kind in (("nodes", "kind"), ("edges", "travel")):
        seen: set[tuple[Any, ...]] = set()
        for place, row in enumerate(content[part]):
            sort = (row[kind], *sorted(row))
            if sort not in seen:
                seen.add(sort)
                for key, changed in changes_of(row, {"id", "source", "target"}):
                    rows = [*content[part][:place], changed, *content[part][place + 1 :]]
                    yield f"{part} {row[kind]} {key}", {**content, part: rows}


@cache
def deployment(name: str) -> Deployment:
    return Deployment(*example(name))


def texts_of_rows(content: Content) -> dict[int, str]:
    """Write every row once, by the row's identity: of many files, all rows but one are those of the first."""
    return {id(row): json.dumps(row) for part in ("nodes", "edges") for row in content[part]}


def text_of(content: Content, known: dict[int, str]) -> str:
    """Return a file's text; ``known`` are the texts of rows that are there as long as it is."""
    head = json.dumps({key: value for key, value in content.items() if key not in {"nodes", "edges"}})
    parts = (
        f'"{part}": [{", ".join(known.get(id(row)) or json.dumps(row) for row in content[part])}]'
        for part in ("nodes", "edges")
    )
    return f"{head[:-1]}, {', '.join(parts)}}}"


@pytest.fixture
def passes(tmp_path: Path) -> Callable[[str, str, str], bool]:
    def passed(name: str, view: str, text: str) -> bool:
        file = tmp_path / f"{view}.json"
        file.write_text(text)
        dag = read_dag(file)
        return not (dag.wrong or _rules(dag, deployment(name)))

    return passed


CASES = [(name, view) for name in ("small", "redundant", "sharded-experts", "once-per-node") for view in VIEWS]
QUICK = {("small", "simplified_moe_dag"), ("small", "detailed_expert_dag")}


@pytest.mark.parametrize(
    ("name", "view"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_whatever_is_changed_in_both_files_alike_is_refused(name: str, view: str, passes: Any) -> None:
    content = json.loads(to_json(VIEWS[view].build(*example(name)), view))
    known = texts_of_rows(content)
    assert json.loads(text_of(content, known)) == content
    assert passes(name, view, text_of(content, known))
    survived = [what for what, changed in changed_files(content) if passes(name, view, text_of(changed, known))]
    assert survived == []
