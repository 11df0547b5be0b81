"""Drawings of examples, made once for all tests that look at them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from dag_examples import Written, example, reference

from moe_placer.dag import write_dags


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Write the files of an example's view; the seed plan's take seconds."""

    @cache
    def write(name: str, view: str) -> tuple[Path, ...]:
        parts = reference() if name == "reference" else example(name)
        return tuple(write_dags(*parts, tmp_path_factory.mktemp(view), [view]))

    return write
