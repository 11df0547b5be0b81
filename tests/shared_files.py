"""What is expensive and several tests look at, made once for all processes of a test run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

__all__ = ["made_once"]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of this test run, which ``make`` filled in the first process that asked for it.

    Parameters
    ----------
    factory : TempPathFactory
        Pytest's.
    name : str
        The folder's; the same name means the same content.
    make : callable
        Fills the folder that it is given.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all workers of this run
    folder, done = base / "shared" / name, base / "shared" / f"{name}.made"
    folder.mkdir(parents=True, exist_ok=True)
    with (base / "shared" / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(folder)
            done.touch()
    return folder
