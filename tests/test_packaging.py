"""The package as others install and import it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import moe_placer

REPO = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())


def test_every_package_on_disk_is_listed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in (REPO / "moe_placer").rglob("__init__.py")}
    found = {".".join(folder.relative_to(REPO).parts) for folder in folders} | {"moe_placer.solvers"}
    assert listed == found


def test_every_public_name_is_there() -> None:
    assert sorted(moe_placer.__all__) == list(moe_placer.__all__) == dir(moe_placer)
    for name in moe_placer.__all__:
        assert getattr(moe_placer, name).__doc__
    assert (REPO / "moe_placer" / "py.typed").exists()


def test_functions_stay_functions_whatever_is_imported_first() -> None:
    code = """if True:
        import moe_placer.solve.base, moe_placer.solve.solve, moe_placer.verifier, moe_placer as m
        print(callable(m.solve), callable(m.verify))"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True True\n"


def test_importing_prints_nothing_and_sets_up_no_logging() -> None:
    code = "import logging, moe_placer; moe_placer.solve; assert not logging.getLogger().handlers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
