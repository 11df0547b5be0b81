"""Runs the Python of a tutorial, and puts what each block printed below it."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from pathlib import Path

_BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def with_outputs(text: str, root: Path) -> str:
    """Return a page with the output of its blocks, which run one after the other in a folder of their own.

    Parameters
    ----------
    text : str
        Markdown; a block that fails ends the build.
    root : Path
        The checkout, whose `library` and `instances` the blocks find in their folder.
    """
    names: dict[str, object] = {"__name__": "tutorial"}

    def run(block: re.Match[str]) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block[1], "<tutorial>", "exec"), names)  # noqa: S102 - the page's own code
        return block[0] + (f"\n```text\n{out.getvalue()}```\n" if out.getvalue() else "")

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name in ("library", "instances"):
            Path(name).symlink_to(root / name)
        return _BLOCK.sub(run, text)
