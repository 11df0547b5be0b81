"""Fixtures for tests of any module."""

from __future__ import annotations

import gc
import json
import os

# Before numpy is loaded: tests run side by side, and so do the threads of matrix libraries otherwise.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, so that no verdict depends on luck: `make test`, and CI. `make test-all` draws others
# (--hypothesis-profile=random) from a seed that it prints; with --hypothesis-seed, its run is repeated. Neither has a
# memory between runs, nor a clock: other work on the machine fails no test.
_ALIKE: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("repeatable", derandomize=True, **_ALIKE)
settings.register_profile("random", derandomize=False, **_ALIKE)
settings.load_profile("repeatable")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Print what a run with random examples is repeated with."""
    seed = config.getoption("--hypothesis-seed")
    return None if seed is None else f"random examples from seed {seed}; repeat them with: make test-all SEED={seed}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Run one more worker than there are cores: a fifth of the time, tests wait for processes that they started."""
    return (os.cpu_count() or 1) + 1


def pytest_configure() -> None:
    """Collect no garbage while tests are read: what is made then lives as long as they do."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leave what is there when tests begin out of garbage collections, and have fewer of these."""
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


@pytest.fixture(scope="session")
def forks() -> Iterator[Any]:
    """Run commands in processes that have everything loaded: ``forks.run(...)``, or ``forks.start(...)``."""
    from forked import Forks

    running = Forks()
    yield running
    running.close()


@pytest.fixture(scope="session")
def site() -> Path:
    """The documentation site as `make docs` leaves it; what it left is built upon."""
    if find_spec("sphinx") is None:
        pytest.skip("Sphinx is not installed: make docs")
    repo = Path(__file__).parent.parent
    options = ["-q", "-W", "--keep-going", "-c", "docs/site", "-d", "build/doctrees", ".", "build/site"]
    done = subprocess.run([sys.executable, "-m", "sphinx", *options], cwd=repo, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return repo / "build" / "site"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium, started once; without one on the machine, tests that ask for it are skipped."""
    from browser import find_chromium, launched

    if find_chromium() is None:
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium; or set CHROMIUM to its path)")
    with launched() as running:
        yield running


@pytest.fixture
def new_tab(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Open tabs, with options such as ``viewport=`` or ``color_scheme=``; the test fails if a page complained."""
    from browser import Tab

    tabs: list[Any] = []

    def opened(**options: Any) -> Any:
        tabs.append(Tab(chromium.new_context(**options).new_page()))
        return tabs[-1]

    yield opened
    for tab in tabs:
        tab.page.context.close()
    assert [tab.complaints for tab in tabs if tab.complaints] == []


@pytest.fixture
def tab(new_tab: Callable[..., Any]) -> Any:
    """One tab of 1600 by 1000 pixels: ``tab.open(path)`` opens a file, ``tab.page`` is Playwright's page."""
    return new_tab(viewport={"width": 1600, "height": 1000})


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Rows of a comparison, solved once."""
    from shared_files import made_once

    def solve(folder: Path) -> None:
        from report_rows import drawn_rows

        (folder / "rows.json").write_text(json.dumps(drawn_rows()))

    found: list[dict[str, Any]] = json.loads((made_once(tmp_path_factory, "rows", solve) / "rows.json").read_text())
    return found


@pytest.fixture(scope="session")
def made(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report folder of these rows, with page, Markdown and pictures, for tests to read."""
    from shared_files import made_once

    def draw(folder: Path) -> None:
        from report_rows import draw_here, write_folder

        draw_here(write_folder(folder, rows))

    return made_once(tmp_path_factory, "drawn", draw)
