"""What a command told: its exit code, its JSON, its log lines."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from command_line import run


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


def told(*arguments: Any, code: int = 0) -> Told:
    """Run a command in this process, and return what it told; fail unless it ended with a code."""
    done = run(*arguments)
    assert done.returncode == code, done
    return Told(code, done.stdout, done.stderr)
