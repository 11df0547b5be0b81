"""Files are read no further than they may go, and written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.errors import InputError
from moe_placer.files import read_bounded, write_atomically


@given(content=st.one_of(st.binary(max_size=100), st.text(max_size=100).filter(lambda s: s.isascii())))
@settings(deadline=None)
def test_what_is_written_is_read(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / "new" / "folder" / "file"
    write_atomically(file, content)
    assert read_bounded(file, 100, "anything") == (content if isinstance(content, bytes) else content.encode())
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_a_limit_is_the_last_size_that_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_bounded(file, 5, "a file") == b"12345"
    with pytest.raises(InputError, match=r"found more than 4e-06 MB, expected a file"):
        read_bounded(file, 4, "a file")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_an_endless_device_ends() -> None:
    with pytest.raises(InputError, match="more than 1 MB"):
        read_bounded(Path("/dev/zero"), 1_000_000, "a file")


@pytest.mark.parametrize(("name", "found"), [("absent", "no such file"), (".", "a folder"), ("a\0b", "cannot be read")])
def test_what_is_no_file_is_named(tmp_path: Path, name: str, found: str) -> None:
    with pytest.raises(InputError, match=found):
        read_bounded(tmp_path / name, 10, "a file")


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    file = tmp_path / "file"
    write_atomically(file, "old")
    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_files_get_the_permissions_that_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to .*writable folder"):
        write_atomically(tmp_path / "file" / "below", "x")
