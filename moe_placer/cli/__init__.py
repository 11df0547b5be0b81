"""The command line: ``moe-placer``.

What is here is all that runs before signals are heeded; commands load what they need only when they run.
"""

from __future__ import annotations

import gc
import os

__all__ = ["main"]

# New objects between two searches for unused ones that refer to each other: few do, and every 700 objects, as is the
# default, these searches take up to a tenth of a command's time.
_COLLECT_EVERY = 100_000
# Processes share the work; what they start inherits this. A user's own settings stay.
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with a documented code; no input of a user's gives a traceback.

    Parameters
    ----------
    arguments : list of str, optional
        Absent: those of this process, which ends with the command, and whose interrupts are heeded from here on.
    """
    from moe_placer.cli import interrupts

    for variable in ONE_THREAD:  # of matrices: these are small, and a second thread mostly waits for the first
        os.environ.setdefault(variable, "1")
    if arguments is None:
        gc.set_threshold(_COLLECT_EVERY, *gc.get_threshold()[1:])
        interrupts.install()
    from moe_placer.cli.commands import run

    run(arguments)
