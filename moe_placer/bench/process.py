"""Runs one task in a process of its own, so that its memory is its own, and a crash or a hang harms nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

__all__ = ["Ended", "run_child", "without_paths"]

_SAMPLE_S = 0.05
_SHOWN = 300


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes
    ----------
    output : str or None
        What it wrote to its file; None where it failed.
    failed : str or None
        Why there is no output.
    hung : bool
        Whether patience ran out.
    all_processes_bytes : int or None
        Peak resident memory of it and all below it together, as sampled; None where the system does not tell.
    seconds : float
        From start to end.
    """

    output: str | None
    failed: str | None
    hung: bool
    all_processes_bytes: int | None
    seconds: float


def run_child(command: Sequence[str], text: str, patience_s: float, stop: Event | None = None) -> Ended:
    """Run a command with ``text`` on standard input; its last argument is the file to write its answer to.

    Whatever happens, no process of its is left behind.

    Parameters
    ----------
    patience_s : float
        Seconds after which it is ended.
    stop : Event, optional
        Once set, it is ended at once.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="moe-placer-") as folder:
        output, errors = Path(folder) / "row.json", Path(folder) / "errors"
        with errors.open("wb") as stream:
            # A session of its own: ending the group ends its workers too.
            process = subprocess.Popen(  # noqa: S603
                [*command, str(output)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                start_new_session=True,
            )
            try:
                together, hung = _watch(process, text.encode(), patience_s, stop or Event())
            finally:
                _end(process)
        failed = _why(process.returncode, hung, patience_s, errors)
        if failed is None and not output.exists():
            failed = "ended without an answer"
        answer = output.read_text(encoding="utf-8") if failed is None else None
    return Ended(answer, failed, hung, together, time.monotonic() - begun)


def _watch(process: subprocess.Popen[bytes], text: bytes, patience: float, stop: Event) -> tuple[int | None, bool]:
    """Wait for a run; return the largest memory of all its processes together, and whether it hung."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(text)
        process.stdin.close()
    begun, largest = time.monotonic(), 0
    while time.monotonic() - begun < patience and not stop.is_set():
        largest = max(largest, sum(map(_resident, _family(process.pid))))
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SAMPLE_S)
            return largest or None, False
    return largest or None, not stop.is_set()


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
    return f"exit code {code}: {without_paths(lines[-1])[:_SHOWN] if lines else 'nothing was said'}"


def without_paths(text: str) -> str:
    """Keep only the last part of every path: reports are public."""
    return re.sub(r"(?:/[^\s/:'\"]+)+/([^\s/:'\"]+)", r"\1", text)
