"""The command line in the test's own process: what it prints, and its exit code, without starting an interpreter."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

from moe_placer.cli import main


class Told(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.err.splitlines()]


def told(*arguments: Any, code: int | None = 0) -> Told:
    """Run a command and return what it told; fail unless it ended with a code (None: with any)."""
    out, err, ended = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            ended = int(exit_.code or 0)
    found = Told(ended, out.getvalue(), err.getvalue())
    assert code is None or found.code == code, found
    return found
