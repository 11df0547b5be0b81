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

ASCII = {
    "C": {"LANG": "C"},
    "strictly C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "streams only": {"PYTHONIOENCODING": "ascii"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
}


def run(
    folder: Path, *arguments: Any, files: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that may open so many files, in an environment without a locale of ours."""
    return start(folder, [*COMMAND, *map(str, arguments)], files, **environment)


def start(
    folder: Path, command: list[str], files: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program so."""
    kept = {key: value for key, value in os.environ.items() if key not in {"LANG", "LC_ALL", "LC_CTYPE"}}

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    return subprocess.run(
        command,
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        preexec_fn=limit,
        timeout=240,
    )


def test_sixteen_open_files_are_enough_for_workers_and_drawings(tmp_path: Path) -> None:
    done = run(tmp_path, "solve", TINY, "-o", "out", "--workers", "2", "--json", files=16)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["verified"], told["workers_died_of"]) == (True, [])
    assert run(tmp_path, "verify", TINY, "out/placement.json", files=16).returncode == 0


@pytest.mark.parametrize("files", [5, 6, 7, 8])
def test_fewer_are_said_to_be_too_few(files: int, tmp_path: Path) -> None:
    done = run(tmp_path, "solve", TINY, "-o", "out", "--workers", "2", "-q", files=files)
    if done.returncode:
        assert done.returncode in {1, 4}
        assert "Too many open files" in done.stderr
        assert "defect" not in done.stderr
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []


# Runs commands one after the other, as a shell would, but loads the libraries once; each part of the output is marked.
ALL = """import json, sys
from moe_placer.cli import main
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as ended:
        print(f"\\n== {ended.code or 0} ==")
"""


@pytest.mark.parametrize("locale", ASCII)
def test_names_beyond_ascii_are_printed_in_any_locale(locale: str, tmp_path: Path) -> None:
    name = "größe-机→" if locale != "Latin-1" else "größe"
    (tmp_path / "named.yaml").write_text(TINY.read_text().replace("name: tiny", f"name: {name}"), encoding="utf-8")
    solve = ["solve", "named.yaml", "-o", "out", "--solver", "greedy"]
    commands = [solve, ["verify", "named.yaml", "out/placement.json"], ["inspect", "named.yaml"], [*solve, "--json"]]
    done = start(tmp_path, [sys.executable, "-c", ALL, json.dumps(commands)], **ASCII[locale])
    assert "defect" not in done.stderr, done.stderr
    solved, *others, told, end = done.stdout.split("\n== 0 ==\n")
    assert (len(others), end) == (2, ""), done.stdout
    assert locale == "Latin-1" or name in solved
    assert locale == "Latin-1" or json.loads(told)["instance"]["name"] == name


def test_a_folder_that_the_locale_cannot_name_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "named.yaml").write_text(TINY.read_text().replace("name: tiny", "name: größe"), encoding="utf-8")
    done = run(tmp_path, "solve", "named.yaml", "-q", **ASCII["strictly C"])
    assert done.returncode == 1
    assert "a name that cannot be written in ascii" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"named.yaml"}
