"""Runs one task in a process of its own, so that its memory is its own, and a crash or a hang harms nothing else."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from moe_placer.files import temporary_folder

__all__ = ["Ended", "end_with_parent", "presentable", "run_child"]

_SAMPLE_S = 0.05
_SHOWN = 300
_MARK = "MOE_PLACER_RUN"  # environment variable by which a run's processes are known, whatever group they are in


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


def run_child(
    command: Sequence[str],
    text: str,
    patience_s: float,
    stopped: Callable[[], bool] = lambda: False,
    most_bytes: float = float("inf"),
) -> Ended:
    """Run a command with ``text`` on standard input; its last argument is the file to write its answer to.

    Whatever happens, no process of its is left behind, as far as the system tells which those are (Linux), or they
    stay in its process group (elsewhere).

    Parameters
    ----------
    command : sequence of str
        Program and arguments.
    text : str
        What it reads on standard input.
    patience_s : float
        Seconds after which it is ended.
    stopped : callable
        Asked now and then; once it says True, the run is ended at once.
    most_bytes : float
        Resident memory of all its processes together beyond which it is ended.
    """
    begun, mark = time.monotonic(), f"{os.getpid()}-{secrets.token_hex(16)}"
    with temporary_folder() as folder:
        output, errors = folder / "row.json", folder / "errors"
        with errors.open("wb") as stream:
            # A session of its own: ending the group ends its workers too.
            process = subprocess.Popen(  # noqa: S603
                [*command, str(output)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                start_new_session=True,
                env={**os.environ, _MARK: mark},
            )
            try:
                together, hung = _watch(process, text.encode(), patience_s, stopped, most_bytes)
            finally:
                _end(process, mark)
        if together is not None and together > most_bytes:
            failed: str | None = f"ended at {together / 1e9:,.1f} GB of memory, of {most_bytes / 1e9:,.1f} GB allowed"
        else:
            failed = _why(process.returncode, hung, patience_s, errors)
        if failed is None and not output.exists():
            failed = "ended without an answer"
        answer = output.read_text(encoding="utf-8") if failed is None else None
    return Ended(answer, failed, hung, together, time.monotonic() - begun)


def end_with_parent() -> None:
    """Have this run and all its processes end once the one that started it is gone, even if that was killed."""
    mark = os.environ.get(_MARK)
    if mark is None:
        return
    parent = int(mark.partition("-")[0])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        _end_marked(mark, but=os.getpid())
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _watch(
    process: subprocess.Popen[bytes], text: bytes, patience: float, stopped: Callable[[], bool], most: float
) -> tuple[int | None, bool]:
    """Wait for a run; return the largest memory of all its processes together, and whether it hung."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(text)
        process.stdin.close()
    begun, largest = time.monotonic(), 0
    while time.monotonic() - begun < patience and not stopped():
        largest = max(largest, sum(map(_resident, _family(process.pid))))
        if largest > most:
            return largest, False
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SAMPLE_S)
            return largest or None, False
    return largest or None, not stopped()


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _end_marked(mark)


def _end_marked(mark: str, but: int = 0) -> None:
    """End what went into a session of its own and so left the group; it inherited the mark (Linux)."""
    wanted = f"{_MARK}={mark}".encode()
    for file in Path("/proc").glob("[0-9]*/environ"):
        pid = int(file.parent.name)
        with suppress(OSError):
            if pid != but and wanted in file.read_bytes():
                os.kill(pid, signal.SIGKILL)


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
    return f"exit code {code}: {presentable(lines[-1])[:_SHOWN] if lines else 'nothing was said'}"


def presentable(text: str) -> str:
    """Return text fit for a public row: the last part of every path, and nothing that cannot be printed."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return re.sub(r"(?:/[^\s/:'\"]+)+/([^\s/:'\"]+)", r"\1", shown)
