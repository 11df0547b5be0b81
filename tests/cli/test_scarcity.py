"""The command line where the system gives little: few files, no shared memory, a locale of ASCII."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, TINY
from forked import Forks

LOCALE = {"LANG", "LC_ALL", "LC_CTYPE"}
ASCII = {
    "C": {"LANG": "C"},
    "strictly C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
STREAMS = {"streams only": {"PYTHONIOENCODING": "ascii"}, "Latin-1": {"PYTHONIOENCODING": "latin-1"}}
# Runs commands one after the other, as a shell would, but loads the libraries once; each part of the output is marked.
ALL = """import json, sys
from moe_placer.cli import main
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as ended:
        print(f"\\n== {ended.code or 0} ==")
"""


def without_locale(**environment: str) -> dict[str, str]:
    """Return an environment that has no locale but this one."""
    return {key: value for key, value in os.environ.items() if key not in LOCALE} | environment


def run(
    folder: Path, *arguments: Any, files: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that may open so many files, in an environment without a locale of ours."""
    return start(folder, [*COMMAND, *map(str, arguments)], files, **environment)


def start(
    folder: Path, command: list[str], files: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program so."""

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    return subprocess.run(
        command,
        cwd=folder,
        env=without_locale(**environment),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        preexec_fn=limit,
        timeout=240,
    )


def test_sixteen_open_files_are_enough_for_workers_and_drawings(tmp_path: Path) -> None:
    solve = ["solve", str(TINY), "-o", "out", "--workers", "2", "--json"]
    commands = [solve, ["verify", str(TINY), "out/placement.json"]]
    done = start(tmp_path, [sys.executable, "-c", ALL, json.dumps(commands)], files=16)
    assert done.stderr == ""
    told, _, end = done.stdout.split("\n== 0 ==\n")
    assert (json.loads(told)["verified"], json.loads(told)["workers_died_of"], end) == (True, [], "")


@pytest.mark.parametrize("files", [5, 6, 7, 8])
def test_fewer_are_said_to_be_too_few(files: int, forks: Forks, tmp_path: Path) -> None:
    solve = ("solve", TINY, "-o", "out", "--workers", "2", "-q")
    fresh = files == 5  # enough to import everything, one file after the other
    done = run(tmp_path, *solve, files=files) if fresh else forks.run(*solve, folder=tmp_path, most_files=files)
    if done.returncode:
        assert done.returncode in {1, 4}
        assert "Too many open files" in done.stderr
        assert "defect" not in done.stderr
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("locale", [*ASCII, *STREAMS])
def test_names_beyond_ascii_are_printed_in_any_locale(locale: str, forks: Forks, tmp_path: Path) -> None:
    name = "größe-机→" if locale != "Latin-1" else "größe"
    (tmp_path / "named.yaml").write_text(TINY.read_text().replace("name: tiny", f"name: {name}"), encoding="utf-8")
    solve = ["solve", "named.yaml", "-o", "out", "--solver", "greedy"]
    commands = [solve, ["verify", "named.yaml", "out/placement.json"], ["inspect", "named.yaml"], [*solve, "--json"]]
    if locale in ASCII:  # which an interpreter obeys from its start
        done = start(tmp_path, [sys.executable, "-c", ALL, json.dumps(commands)], **ASCII[locale])
        assert "defect" not in done.stderr, done.stderr
        solved, *others, told, end = done.stdout.split("\n== 0 ==\n")
        assert (len(others), end) == (2, ""), done.stdout
    else:
        env = without_locale(**STREAMS[locale])
        every = [forks.run(*words, folder=tmp_path, env=env) for words in commands]
        assert [(one.returncode, "defect" in one.stderr) for one in every] == [(0, False)] * 4, every
        solved, told = every[0].stdout, every[-1].stdout
    assert locale == "Latin-1" or name in solved
    assert locale == "Latin-1" or json.loads(told)["instance"]["name"] == name


def test_a_folder_that_the_locale_cannot_name_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "named.yaml").write_text(TINY.read_text().replace("name: tiny", "name: größe"), encoding="utf-8")
    done = run(tmp_path, "solve", "named.yaml", "-q", **ASCII["strictly C"])
    assert done.returncode == 1
    assert "a name that cannot be written in ascii" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"named.yaml"}
