"""The command line: ``moe-placer``. Commands load what they need only when they run, so help answers at once."""

from moe_placer.cli.main import main

__all__ = ["main"]
