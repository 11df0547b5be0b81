"""Drawings of examples, made once for all tests that look at them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from dag_examples import Written, example, reference
from shared_files import made_once

from moe_placer.dag import write_dags


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Write the files of an example's view, in one process of this test run; the seed plan's take seconds."""

    @cache
    def write(name: str, view: str) -> tuple[Path, ...]:
        def draw(folder: Path) -> None:
            parts = reference() if name == "reference" else example(name)
            assert {path.parent for path in write_dags(*parts, folder, [view])} == {folder}

        return tuple(sorted(made_once(tmp_path_factory, f"{name}-{view}", draw).iterdir()))

    return write
