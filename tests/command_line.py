"""The command line for tests of any room: in this process, which saves its start, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

from moe_placer.cli import main

REPO = Path(__file__).parents[1]
TINY = REPO / "instances" / "tiny.yaml"
SEED_PLAN = REPO / "instances" / "h100-128.yaml"
COMMAND = [sys.executable, "-c", "from moe_placer.cli import main; main()"]


def run(*arguments: Any, folder: Path | None = None, apart: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder; ``apart``, as a process of its own, else by calling what that would call."""
    words = list(map(str, arguments))
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


def fails(code: int, *arguments: Any, says: str, apart: bool = False) -> None:
    done = run(*arguments, apart=apart)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
