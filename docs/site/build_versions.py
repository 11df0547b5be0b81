"""Builds the site of every release beside the present one: ``python docs/site/build_versions.py build/site``.

A release is a tag ``v...`` whose tree has ``docs/site/conf.py``. Its pages are made by its own code from its own
sources, into ``versions/TAG`` of the site. What a page links to is known when it is built, so that no script has to
ask for it, and a site on a disk works as one on a server.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGURATION = "docs/site"


def releases(repository: Path) -> list[str]:
    """Return the tags that have a site, the latest first."""
    tags = _git(repository, "tag", "--list", "v*", "--sort=-version:refname").decode().split()
    return [tag for tag in tags if _git(repository, "ls-tree", "--name-only", tag, f"{CONFIGURATION}/conf.py")]


def build(repository: Path, site: Path) -> list[str]:
    """Build the present site and those of all releases; return the releases."""
    names = releases(repository)
    listed = {"DOCS_VERSIONS": json.dumps(names)}
    _sphinx(repository, site, repository / "build" / "doctrees", listed)
    for tag in names:
        with tempfile.TemporaryDirectory() as folder, _archive(repository, tag) as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(folder, filter="data")
            else:  # before Python 3.11.4; the archive is our own
                archive.extractall(folder)  # noqa: S202
            settings = listed | {"DOCS_VERSION": tag, "PYTHONPATH": folder}
            _sphinx(Path(folder), site / "versions" / tag, Path(folder) / "build" / "doctrees", settings)
    return names


def _archive(repository: Path, tag: str) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(_git(repository, "archive", tag)))


def _sphinx(source: Path, site: Path, doctrees: Path, settings: Mapping[str, str]) -> None:
    options = ["-q", "-E", "-W", "--keep-going", "-c", CONFIGURATION, "-d", str(doctrees), ".", str(site.resolve())]
    environment = {**os.environ, **settings}
    subprocess.run([sys.executable, "-m", "sphinx", *options], cwd=source, env=environment, check=True)  # noqa: S603


def _git(repository: Path, *words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=repository, check=True, capture_output=True).stdout  # noqa: S603, S607


if __name__ == "__main__":
    print("\n".join(build(REPOSITORY, Path(sys.argv[1])) or ["no release has a site yet"]))  # noqa: T201
