"""Runs commands with the code of this checkout or of an earlier commit, each in a process of its own."""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

__all__ = ["Checkout", "Ran", "Solved", "earlier_checkout", "this_checkout"]

REPOSITORY = Path(__file__).parents[1]
# An installed package of the same name would be measured twice, without a word.
_COMMAND = (
    "import os, pathlib, moe_placer;"
    "assert pathlib.Path(moe_placer.__file__).is_relative_to(os.environ['PYTHONPATH']), moe_placer.__file__;"
    "from moe_placer.cli import main; main()"
)


@dataclass(frozen=True)
class Ran:
    """What one run of a command took and printed: CPU seconds of its processes, and the peak of the largest one.

    Linux counts the peak of the process that started it as well, so a smaller one is not seen.
    """

    code: int
    seconds: float
    cpu_s: float
    peak_bytes: int
    out: str
    err: str


@dataclass(frozen=True)
class Solved:
    """What one run gave: CPU seconds of the process and its children, and the placement file, or why there is none."""

    cpu_s: float
    placement: Path | None
    error: str = ""


@dataclass(frozen=True)
class Checkout:
    """A tree of source files, and the commit that they are of."""

    commit: str
    folder: Path

    def run(self, arguments: Sequence[str], directory: Path) -> Ran:
        """Run a command of moe-placer in a directory, with one thread for linear algebra."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "OPENBLAS_NUM_THREADS": "1"}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            command = [sys.executable, "-c", _COMMAND, *arguments]
            began = time.perf_counter()
            child = subprocess.Popen(command, env=environment, cwd=directory, stdout=out, stderr=err)  # noqa: S603
            _, status, usage = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - began
            child.returncode = os.waitstatus_to_exitcode(status)
            said = []
            for stream in (out, err):
                stream.seek(0)
                said.append(stream.read().decode(errors="replace"))
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Ran(child.returncode, seconds, usage.ru_utime + usage.ru_stime, peak, *said)

    def solve(self, instance: Path, output: Path) -> Solved:
        """Solve an instance with the default solver, on one core, until it is within its gap."""
        options = ["-o", str(output), "--no-dag", "--time-limit", "120", "--workers", "1", "--seed", "0"]
        ran = self.run(["solve", str(instance.resolve()), *options], output.parent)
        file = output / "placement.json"
        if ran.code or not file.exists():
            return Solved(ran.cpu_s, None, (ran.out + ran.err)[-300:])
        return Solved(ran.cpu_s, file)


def this_checkout() -> Checkout:
    """Return this checkout; a plus after the commit says that files differ from it."""
    changed = _git("status", "--porcelain", "--untracked-files=no")
    commit = _git("rev-parse", "--short=9", "HEAD").decode().strip()
    return Checkout(commit + "+" * bool(changed), REPOSITORY)


@contextmanager
def earlier_checkout(commit: str) -> Iterator[Checkout]:
    """Unpack an earlier commit or tag into a folder that is removed at the end."""
    name = _git("rev-parse", "--short=9", f"{commit}^{{commit}}").decode().strip()
    packed = _git("archive", name, "moe_placer", "solvers")
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=BytesIO(packed)) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:  # before Python 3.11.4; the archive is our own
            archive.extractall(folder)  # noqa: S202
        compileall.compile_dir(folder, quiet=2)
        yield Checkout(name, Path(folder))


def _git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=REPOSITORY, check=True, capture_output=True).stdout  # noqa: S603, S607
