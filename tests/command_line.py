"""The command line for tests of any room: in this process, which saves its start, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

from forked import Forks

from moe_placer.cli import main

REPO = Path(__file__).parents[1]
TINY = REPO / "instances" / "tiny.yaml"
SEED_PLAN = REPO / "instances" / "h100-128.yaml"
COMMAND = [sys.executable, "-c", "from moe_placer.cli import main; main()"]


def run(*arguments: Any, folder: Path | None = None, apart: bool | Forks = False) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder: by calling what its process would call, or ``apart``, in a new or a forked one."""
    words = list(map(str, arguments))
    if isinstance(apart, Forks):
        return apart.run(*words, folder=folder)
    if apart:
        return subprocess.run([*COMMAND, *words], capture_output=True, text=True, cwd=folder, timeout=240)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))
    code: Any = 0
    here: contextlib.AbstractContextManager[None] = (
        contextlib.nullcontext() if folder is None else contextlib.chdir(folder)
    )
    with here, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code
    out.seek(0)
    err.seek(0)
    return subprocess.CompletedProcess([*COMMAND, *words], code, out.read(), err.read())


def fails(code: int, *arguments: Any, says: str, apart: bool | Forks = False) -> None:
    done = run(*arguments, apart=apart)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
