"""What the documents promise exists."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from moe_placer.solve.registry import BUILT_IN

REPO = Path(__file__).parent.parent
README = (REPO / "README.md").read_text()
METHODS = (REPO / "docs" / "methods.md").read_text()
DOCUMENTS = [REPO / "README.md", REPO / "CONTRIBUTING.md", REPO / "CHANGELOG.md", *sorted((REPO / "docs").glob("*.md"))]


def test_readme_stays_one_page() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_commands_named_in_the_readme_exist() -> None:
    for command in set(re.findall(r"`?moe-placer ([a-z-]+)", README)):
        done = subprocess.run(
            [sys.executable, "-c", "from moe_placer.cli import main; main()", command, "--help"], capture_output=True
        )
        assert done.returncode == 0, command


def test_make_targets_named_in_the_readme_exist() -> None:
    makefile = (REPO / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_instances_named_in_the_readme_exist() -> None:
    for name in set(re.findall(r"instances/[a-z0-9-]+\.yaml", README)):
        assert (REPO / name).exists()


def test_every_method_is_described() -> None:
    described = re.findall(r"`([a-z-]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", METHODS, re.MULTILINE)))
    assert set(BUILT_IN) <= set(described)


def test_the_changelog_knows_this_version() -> None:
    version = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    assert f"\n## {version} " in (REPO / "CHANGELOG.md").read_text()


def test_the_citation_names_this_version() -> None:
    version = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (REPO / "CITATION.cff").read_text()


@pytest.mark.parametrize("file", sorted((REPO / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_files_for_the_forge_are_valid_yaml(file: Path) -> None:
    assert isinstance(yaml.safe_load(file.read_text()), dict)


def test_the_readmes_python_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    quick = code.replace("h100-128", "tiny").replace("time_s=60, workers=2", "time_s=5").replace("[17]", "[2]")
    done = subprocess.run([sys.executable, "-c", quick], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2
