"""Fetches what the tests of engine files need of the engines' own packages: ``python tests/fetch_engines.py FOLDER``.

Packages come from the package index as archives of sources; none is installed, and only the modules named here are
unpacked, into ``FOLDER/<package>-<version>``. pip asks a source archive for its metadata, which needs the tools that
build it; the variables below keep these from looking for devices.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

# The released version that messages name, and the one before it.
VERSIONS = {"sglang": ("0.5.23", "0.5.22"), "vllm": ("0.33.0", "0.32.0"), "vllm-ascend": ("0.23.0.post1", "0.23.0")}
WANTED = {
    "sglang": ("sglang/srt/eplb/", "sglang/srt/arg_groups/fields/"),
    "vllm": ("vllm/distributed/eplb/", "vllm/plugins/__init__.py", "vllm/envs.py", "vllm/engine/arg_utils.py"),
    "vllm-ascend": ("vllm_ascend/eplb/core/",),
}
BUILD_TOOLS = ("setuptools>=77,<81", "setuptools-scm", "setuptools-rust", "wheel", "packaging", "jinja2")


def fetch(package: str, version: str, folder: Path) -> None:
    """Download one version, and unpack what is wanted of it."""
    target = folder / f"{package}-{version}"
    if all((target / wanted).exists() for wanted in WANTED[package]):
        return
    source = [] if package == "sglang" else ["--no-binary", ":all:", "--no-build-isolation"]
    environment = {
        **os.environ,
        "VLLM_TARGET_DEVICE": "empty",
        "VLLM_VERSION_OVERRIDE": version,
        "SETUPTOOLS_SCM_PRETEND_VERSION": version,
        "SOC_VERSION": "ascend910b1",
    }
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, *source, "-d", scratch, f"{package}=={version}"], check=True, env=environment)
        (archive,) = Path(scratch).iterdir()
        unpacked = Path(scratch) / "unpacked"
        unpack(archive, unpacked, WANTED[package])
        folder.mkdir(parents=True, exist_ok=True)
        copy(unpacked, target)
    print(f"{package} {version}: {sum(1 for path in target.rglob('*.py'))} modules")


def copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())


def unpack(archive: Path, folder: Path, wanted: tuple[str, ...]) -> None:
    """Unpack Python modules; a source archive has one folder around everything."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.startswith(wanted) and name.endswith(".py"):
                    write(folder / name, wheel.read(name))
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            if member.isfile() and name.startswith(wanted) and name.endswith(".py"):
                stream = tar.extractfile(member)
                assert stream is not None
                write(folder / name, stream.read())


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    tools = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*tools, *BUILD_TOOLS], check=True)
    for name, versions in VERSIONS.items():
        for number in versions:
            fetch(name, number, Path(sys.argv[1]))
