"""The command line: ``moe-placer``.

What is here is all that runs before signals are heeded; commands load what they need only when they run.
"""

from __future__ import annotations

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with a documented code; no input of a user's gives a traceback.

    Parameters
    ----------
    arguments : list of str, optional
        Absent: those of this process, which ends with the command, and whose interrupts are heeded from here on.
    """
    from moe_placer.cli import interrupts

    if arguments is None:
        interrupts.install()
    from moe_placer.cli.commands import run

    run(arguments)
