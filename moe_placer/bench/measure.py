"""Measures a run in a process of its own, so that its peak memory is its own and a crash is one failed row."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moe_placer.bench.job import Job

__all__ = ["measure"]

CHILD = (sys.executable, "-P", "-m", "moe_placer.bench.child")
_SAMPLE_S = 0.05
_PATIENCE = 3.0  # times the time limit, and a minute, before a run counts as hung
_SHOWN = 300


def measure(job: Job, child: Sequence[str] = CHILD, patience_s: float | None = None) -> dict[str, Any]:
    """Run a job and return its row; where it fails, dies or hangs, ``failed`` says so.

    Parameters
    ----------
    child : sequence of str
        Command that reads the job and writes the row.
    patience_s : float, optional
        Seconds after which the run is ended; absent: by its time limit.
    """
    begun, busy, own = time.monotonic(), _busy_s(), _children_s()
    patience = patience_s if patience_s is not None else _PATIENCE * job.time_limit_s + 60
    with tempfile.TemporaryDirectory(prefix="moe-placer-") as folder:
        output, errors = Path(folder) / "row.json", Path(folder) / "errors"
        with errors.open("wb") as stream:
            # A session of its own: ending the group ends its workers too.
            process = subprocess.Popen(  # noqa: S603
                [*child, str(output)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                start_new_session=True,
            )
            try:
                together, hung = _watch(process, json.dumps(asdict(job)).encode(), patience)
            finally:
                _end(process)
        failed = _why(process.returncode, hung, patience, errors)
        if failed is None:
            row: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        else:
            row = job.settings() | {"failed": failed}
    others = None
    if busy is not None:
        others = max(0.0, (_busy_s() or 0.0) - busy - (_children_s() - own)) / (time.monotonic() - begun)
    return row | {"all_processes_bytes": together, "cores_used_by_others": others}


def _watch(process: subprocess.Popen[bytes], text: bytes, patience: float) -> tuple[int | None, bool]:
    """Wait for a run; return the largest memory of all its processes together, and whether it hung."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(text)
        process.stdin.close()
    begun, largest = time.monotonic(), 0
    while time.monotonic() - begun < patience:
        largest = max(largest, sum(map(_resident, _family(process.pid))))
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SAMPLE_S)
            return largest or None, False
    return largest or None, True


def _busy_s() -> float | None:
    """Return processor seconds that the whole machine has spent; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        user, nice, system = map(int, Path("/proc/stat").read_text(encoding="utf-8").split()[1:4])
        return (user + nice + system) / os.sysconf("SC_CLK_TCK")
    return None


def _children_s() -> float:
    """Return processor seconds of this process and of all that it has waited for."""
    return sum(os.times()[:4])


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _family(pid: int) -> list[int]:
    """Return a process and all below it, where the system tells (Linux)."""
    found = [pid]
    for one in found:
        with suppress(OSError):
            for file in Path(f"/proc/{one}/task").glob("*/children"):
                found += map(int, file.read_text().split())
    return found


def _resident(pid: int) -> int:
    """Return a process's resident bytes; 0 where it is gone or the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def _why(code: int, hung: bool, patience: float, errors: Path) -> str | None:
    """Say why a run failed; None where it did not."""
    if code == 0 and not hung:
        return None
    if hung:
        return f"ended after {patience:g} s without an answer"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    # Reports are public: of a path, only the last part is told.
    last = re.sub(r"(?:/[^\s/:'\"]+)+/([^\s/:'\"]+)", r"\1", lines[-1])[:_SHOWN] if lines else "nothing was said"
    return f"exit code {code}: {last}"
