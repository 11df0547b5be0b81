"""Worker processes: how many make sense, and who hears Ctrl-C."""

from __future__ import annotations

import os
import signal

__all__ = ["leave_interrupts_to_parent", "usable_cores"]


def usable_cores() -> int:
    """Count the cores that this process may use: more workers than these only take memory and time to start."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leave_interrupts_to_parent() -> None:
    """Ignore Ctrl-C in a worker: the terminal sends it to all processes, and the parent decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
