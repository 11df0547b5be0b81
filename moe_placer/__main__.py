"""``python -m moe_placer``: the command line, for where a module is named instead of a command, as with MPI."""

from __future__ import annotations

from moe_placer.cli import main

if __name__ == "__main__":
    main()
