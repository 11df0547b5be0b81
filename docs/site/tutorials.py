"""Runs the Python and the commands of a tutorial, and puts what each block printed below it."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tempfile
from pathlib import Path

from moe_placer.cli import main

_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def with_outputs(text: str, root: Path) -> str:
    """Return a page with the output of its blocks, which run one after the other in a folder of their own.

    Of commands it is what they print on standard output; progress and what was written go to standard error.

    Parameters
    ----------
    text : str
        Markdown; a block that fails ends the build. Blocks of `sh` hold commands of `moe-placer` and nothing else;
        those of other shells are not run.
    root : Path
        The checkout, whose `examples`, `library` and `instances` the blocks find in their folder.
    """
    names: dict[str, object] = {"__name__": "tutorial"}

    def run(block: re.Match[str]) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            if block[1] == "sh":
                _run_commands(block[2])
            else:
                exec(compile(block[2], "<tutorial>", "exec"), names)  # noqa: S102 - the page's own code
        printed = out.getvalue().replace(f"{Path.cwd()}/", "")
        return block[0] + (f"\n```text\n{printed}```\n" if printed else "")

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name in ("examples", "library", "instances"):
            Path(name).symlink_to(root / name)
        return _BLOCK.sub(run, text)


def _run_commands(block: str) -> None:
    commands = [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]
    for program, *words in filter(None, commands):
        if program != "moe-placer":
            raise ValueError(f"a block of sh runs {program}, expected moe-placer only")
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                main(words)
        except SystemExit as ended:
            if ended.code:
                raise RuntimeError(
                    f"{program} {shlex.join(words)} ended with {ended.code}: {said.getvalue()}"
                ) from None
