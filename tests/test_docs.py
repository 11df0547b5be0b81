"""What the documents promise exists."""

from __future__ import annotations

import contextlib
import io
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import click
import pytest
import yaml
from command_line import run

from moe_placer.cli.commands import cli
from moe_placer.solve.registry import BUILT_IN

REPO = Path(__file__).parent.parent
README = (REPO / "README.md").read_text()
ENTRY_POINTS = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["entry-points"]
METHODS = (REPO / "docs" / "methods.md").read_text()
PAGES = sorted((REPO / "docs").glob("*.md"))
DOCUMENTS = [REPO / "README.md", REPO / "CONTRIBUTING.md", REPO / "CHANGELOG.md", *PAGES]
WRAPPED = [*(REPO / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *PAGES]
COLUMNS = 100


def test_readme_stays_one_page() -> None:
    assert len(README.splitlines()) <= 130


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_headings_lead_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*\.md|)#([^)]+)\)", document.read_text()):
        if not target.startswith("http"):
            assert anchor in _anchors(document.parent / target if target else document), f"{target}#{anchor}"


@pytest.mark.parametrize("page", WRAPPED, ids=lambda path: str(path.relative_to(REPO)))
def test_pages_are_wrapped(page: Path) -> None:
    long = [line for line in _prose(page.read_text()) if len(line) > COLUMNS]
    assert not long, f"{len(long)} lines above {COLUMNS} columns, the first: {long[0]}"


def test_prose_is_neither_tables_nor_code() -> None:
    text = "a\n\n| b |\n\n    c\n\n- d\n  e\n\n      f\n\n  g\n\n```sh\nh\n```\ni\n"
    assert [line.strip() for line in _prose(text) if line] == ["a", "- d", "e", "g", "i"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_index_has_every_page(page: Path) -> None:
    assert page.name == "README.md" or f"]({page.name})" in (REPO / "docs" / "README.md").read_text()


def test_the_citation_page_names_this_version() -> None:
    version = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    assert f"version = {{{version}}}" in (REPO / "docs" / "citing.md").read_text()


def test_the_readme_leads_to_the_index() -> None:
    assert "](docs/README.md)" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_modules_and_files_named_in_the_docs_exist(page: Path) -> None:
    text = page.read_text()
    for file in re.findall(r"`((?:benchmarks|instances|moe_placer|solvers|tests)/[\w./-]+)`", text):
        assert (REPO / file).exists(), file
    for name in re.findall(r"\b((?:moe_placer|benchmarks)(?:\.\w+)+)", text):
        assert _resolves(name) or name in ENTRY_POINTS, name


def _prose(text: str) -> list[str]:
    """Return the lines that are neither in a table nor in a block of code."""
    lines, fenced, after_blank = [], False, True
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        code = after_blank and line.startswith("    ")
        after_blank = code or not line.strip()
        if not (fence or fenced or code or line.startswith("|")):
            lines.append(line)
    return lines


def _anchors(page: Path) -> set[str]:
    """Return what GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _resolves(name: str) -> bool:
    """Whether a dotted name is a module of this repository, or an attribute of one."""
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_commands_named_in_the_readme_exist() -> None:
    for command in set(re.findall(r"`?moe-placer ([a-z-]+)", README)):
        assert run(command, "--help").returncode == 0, command


def test_every_command_has_its_line_on_its_page_and_a_place_in_the_readme() -> None:
    page = (REPO / "docs" / "commands.md").read_text()
    assert set(re.findall(r"^\| `moe-placer ([a-z-]+)", page, re.MULTILINE)) == set(cli.commands)
    (table,) = re.findall(r"\| for \| commands \|\n(.*?)\n\n", README, re.DOTALL)
    assert set(re.findall(r"`([a-z-]+)`", table)) == set(cli.commands)


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_blocks_of_code_have_the_options_that_they_are_given(page: Path) -> None:
    for words in _commands(page.read_text()):
        command: click.Command = cli
        for depth, name in enumerate(words, 1):
            if not isinstance(command, click.Group) or name.startswith("-"):
                break
            assert name in command.commands, " ".join(words[:depth])
            command = command.commands[name]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.partition("=")[0] for word in words if word.startswith("-") and len(word) > 1}
        assert given <= known | {"-h", "--help"}, f"{' '.join(words)}: {sorted(given - known)}"


def test_commands_are_found_over_several_lines() -> None:
    text = "```sh\nmoe-placer solve a.yaml \\\n    --json | jq .\n  moe-placer inspect b  # --no\n```\nmoe-placer x\n"
    assert list(_commands(text)) == [["solve", "a.yaml", "--json"], ["inspect", "b"]]


def _commands(text: str) -> Iterator[list[str]]:
    """Yield the words after `moe-placer` of every command in blocks of shell code."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"[|;&]+", line.partition(" #")[0]):
                words = command.split()
                if words and words[0] == "moe-placer":
                    yield words[1:]


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
    said = io.StringIO()
    with contextlib.chdir(REPO), contextlib.redirect_stdout(said):
        exec(quick, {"__name__": "__main__"})
    assert len(said.getvalue().split()) == 2
