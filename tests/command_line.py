"""The command line in a process of its own, for tests of any room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[1]
TINY = REPO / "instances" / "tiny.yaml"
SEED_PLAN = REPO / "instances" / "h100-128.yaml"
COMMAND = [sys.executable, "-c", "from moe_placer.cli import main; main()"]


def run(*arguments: Any, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)


def fails(code: int, *arguments: Any, says: str) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
