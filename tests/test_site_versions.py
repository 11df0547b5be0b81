"""Sites of releases stand beside the present one, and every page links to all of them without a script."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from test_site import SIZES, serious

REPO = Path(__file__).parent.parent
listed = runpy.run_path(str(REPO / "docs" / "site" / "versions.py"))["listed"]
INDEX = "# Documentation\n\n**Start**\n\n| page | question |\n|---|---|\n| [page](page.md) | what? |\n"


def test_paths_lead_from_each_version_to_the_others() -> None:
    assert listed({}) == ("", [])
    releases = {"DOCS_VERSIONS": '["v0.3.0", "v0.2.0"]'}
    here, starts = listed(releases)
    assert (here, starts[0]) == ("", ("", "index.html"))
    assert starts[2] == ("v0.2.0", "versions/v0.2.0/index.html")
    here, starts = listed(releases | {"DOCS_VERSION": "v0.2.0"})
    assert here == "v0.2.0"
    assert starts == [("", "../../index.html"), *((f"v0.{n}.0", f"../../versions/v0.{n}.0/index.html") for n in (3, 2))]


@pytest.mark.site
def test_a_release_is_built_from_its_own_sources_beside_the_present_site(
    tmp_path: Path, new_tab: Callable[..., Any]
) -> None:
    if find_spec("sphinx") is None:
        pytest.skip("Sphinx is not installed: make docs")
    repository = tmp_path / "repository"
    shutil.copytree(REPO / "docs" / "site", repository / "docs" / "site", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README", "CHANGELOG", "CONTRIBUTING", "docs/page"):
        (repository / f"{name}.md").write_text(f"# {name}, first\n")
    (repository / "docs" / "README.md").write_text(INDEX)

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *words], cwd=repository, check=True, capture_output=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "without a site")
    git("tag", "v0.1.0")
    git("add", ".")
    git("commit", "-q", "-m", "with one")
    git("tag", "v0.2.0")
    (repository / "docs" / "page.md").write_text("# page, second\n")
    made = runpy.run_path(str(REPO / "docs" / "site" / "build_versions.py"))
    site = repository / "build" / "site"
    assert made["build"](repository, site) == ["v0.2.0"]
    for folder, word, links in (
        (site, "second", ("../index.html", "../versions/v0.2.0/index.html")),
        (site / "versions" / "v0.2.0", "first", ("../../../index.html", "../../../versions/v0.2.0/index.html")),
    ):
        page = folder / "docs" / "page.html"
        text = page.read_text()
        assert f"page, {word}" in text
        for link in links:
            assert f'href="{link}"' in text
            assert (page.parent / link).is_file()
    for size in SIZES.values():
        page = new_tab(viewport=size).open(site / "docs" / "page.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert serious(page) == []
