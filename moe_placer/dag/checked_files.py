"""Moves the files of one graph to their folder once they are whole and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from moe_placer.files import move_files, unfinished, write_atomically

__all__ = ["put_files"]


def put_files(
    name: str,
    contents: Iterable[tuple[str, str | bytes]],
    directory: Path,
    *,
    check: Callable[[Path], None] | None = None,
    wrote: Callable[[Path], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Path]:
    """Write a graph's files in a folder of their own, check them there, and move them; return what was moved.

    Parameters
    ----------
    name : str
        Of the files, without suffix.
    contents : iterable of (str, str or bytes)
        Suffix and content.
    directory : Path
        Where they go.
    check : callable, optional
        Given the folder of their own; what it raises keeps them from ``directory``.
    wrote : callable, optional
        Told of every file that is there.
    stopped : callable
        Asked before each file; once it says True, none is moved.
    """
    moved: list[Path] = []
    with unfinished(directory / name) as stage:
        for suffix, content in contents:
            if stopped():
                return moved
            write_atomically(stage / f"{name}.{suffix}", content)
        if check is not None:
            check(stage)
        for path in move_files(stage, directory):
            moved.append(path)
            if wrote is not None:
                wrote(path)
    return moved
