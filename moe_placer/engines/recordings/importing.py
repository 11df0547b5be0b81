"""What ``moe-placer import`` does, as a function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moe_placer.engines.recordings.import_options import Options, Progress
from moe_placer.engines.recordings.read_recording import read_recording
from moe_placer.engines.recordings.recorded import Recorded, write_recording
from moe_placer.errors import UsageError

__all__ = ["import_recording"]


def import_recording(
    files: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    tokens: int = 100_000,
    experts: int | None = None,
    progress: Progress | None = None,
) -> Recorded:
    """Read what an inference engine recorded of its router; write it as an .npz that instances can name.

    Parameters
    ----------
    files : sequence of paths
        One recording: the files of all ranks, or their folder. Their content tells which engine wrote them.
    output : path, optional
        The .npz to write; absent, nothing is written.
    tokens : int
        Whole tokens to keep at most, drawn with equal chances; all are counted.
    experts : int, optional
        Experts of a layer, for recordings that do not say.
    progress : callable, optional
        Called now and then with what is done, of how much, and what that is (``bytes``, ``tokens``).

    Returns
    -------
    Recorded
        Counts and choices, and what was found (``about``).

    Raises
    ------
    InputError
        A file is missing, damaged, or of no format that is known; nothing is written.
    UsageError
        The output's name does not end in .npz.
    """
    path = None if output is None else Path(output)
    if path is not None and path.suffix.lower() != ".npz":
        raise UsageError(f"--output {path}, expected a name that ends in .npz")
    recorded = read_recording([Path(file) for file in files], Options(tokens, experts, progress))
    if path is not None:
        write_recording(path, recorded)
    return recorded
