"""What pages of experiments have in common."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from shared_files import made_once


@pytest.fixture(scope="session", autouse=True)
def _vega_made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Bundle the Vega program of pages in one process of this test run: that takes two seconds."""
    if find_spec("vl_convert") is None:
        yield
        return
    import vl_convert

    bundle = vl_convert.javascript_bundle

    @cache
    def bundled(snippet: str) -> str:
        def make(folder: Path) -> None:
            (folder / "vega.js").write_text(bundle(snippet), encoding="utf-8")

        return (made_once(tmp_path_factory, "vega", make) / "vega.js").read_text(encoding="utf-8")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vl_convert, "javascript_bundle", bundled)
        yield
