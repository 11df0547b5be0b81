"""Result folders: whole or as they were, whatever happens at any step, and one writer at a time."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from moe_placer.errors import InputError, UsageError
from moe_placer.files import write_atomically
from moe_placer.solve import folder as folders
from moe_placer.solve.folder import only_writer, replaced_folder

# Children of a fork write files and die; no lock that another thread of the test runner may have held is asked for.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

FORK = multiprocessing.get_context("fork")
OLD, NEW = {"head": "old", "a": "old", "gone": "old"}, {"head": "new", "a": "new", "b": "new"}


def ours(name: str) -> bool:
    return name in {"head", "a", "b", "gone"}


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        write_atomically(folder / name, text)


def replace(folder: Path) -> None:
    with only_writer(folder), replaced_folder(folder, "head", ours) as new:
        fill(new, NEW)


@contextmanager
def nothing_else_in(parent: Path) -> Iterator[None]:
    before = {path.name for path in parent.iterdir()}
    yield
    assert {path.name for path in parent.iterdir()} - before <= {"out"}


def test_a_folder_appears_with_all_its_files(tmp_path: Path) -> None:
    with nothing_else_in(tmp_path):
        replace(tmp_path / "out")
    assert content(tmp_path / "out") == NEW


def test_folders_above_are_made_and_go_again_if_nothing_comes(tmp_path: Path) -> None:
    replace(tmp_path / "x" / "y" / "out")
    assert content(tmp_path / "x" / "y" / "out") == NEW
    with only_writer(tmp_path / "z" / "y" / "out"):
        assert (tmp_path / "z" / "y").is_dir()
    assert not (tmp_path / "z").exists()


def test_old_files_of_a_result_go_and_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, {**OLD, "notes": "mine"})
    (out / "link").symlink_to("nowhere")
    out.chmod(0o2750)
    inode = (out / "notes").stat().st_ino
    with nothing_else_in(tmp_path):
        replace(out)
    assert content(out) == {**NEW, "notes": "mine"}
    assert (out / "link").is_symlink()
    assert (out / "notes").stat().st_ino == inode
    assert out.stat().st_mode & 0o7777 == 0o2750


def apart(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing hinders: the folder changes places with the new one."""


def inside(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out)


def with_folders(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out / "folder").mkdir()


def at_a_mount(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.path.ismount
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out or real(path))


def on_another_system(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_exchange", lambda new, target: False)


PLACES = [apart, inside, with_folders, at_a_mount, on_another_system]
Place = Callable[[Path, pytest.MonkeyPatch], None]


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_that_cannot_change_places_gets_the_same_files(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    fill(out, {**OLD, "notes": "mine"})
    place(out, monkeypatch)
    inode = out.stat().st_ino
    with nothing_else_in(tmp_path):
        replace(out)
    assert content(out) == {**NEW, "notes": "mine"}
    assert (out.stat().st_ino == inode) == (place is not apart)
    assert {path.name for path in out.iterdir() if path.is_dir()} == ({"folder"} if place is with_folders else set())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ZeroDivisionError()])
def test_what_fails_before_the_end_changes_nothing(
    error: Exception, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    fill(out, OLD)
    place(out, monkeypatch)

    def fails() -> None:
        with only_writer(out), replaced_folder(out, "head", ours) as new:
            fill(new, {"head": "new"})
            raise error

    with nothing_else_in(tmp_path), pytest.raises(type(error)):
        fails()
    assert content(out) == OLD


def test_a_disk_that_fills_up_is_said_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    fill(out, OLD)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with nothing_else_in(tmp_path), only_writer(out):
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left on device"), replaced_folder(out, "head", ours) as new:
            fill(new, NEW)
    assert content(out) == OLD


def dies_at(step: int, out: Path, prepare: Place) -> None:
    """Replace a folder in this process, which is killed when it is about to take the given step of the file system."""
    steps = [0]

    def note(event: str, _details: tuple[Any, ...]) -> None:
        if event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "open", "ctypes.dlsym"}:
            steps[0] += 1
            if steps[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)

    prepare(out, pytest.MonkeyPatch())
    sys.addaudithook(note)
    replace(out)
    os._exit(0)


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_at_any_step_leaves_no_mixture_and_the_next_run_cleans_up(place: Place, tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []
    for step in range(1, 200):
        out = tmp_path / str(step) / "out"
        fill(out, {**OLD, "notes": "mine"})
        child = FORK.Process(target=dies_at, args=(step, out, place))
        child.start()
        child.join()
        found = content(out)
        assert found.pop("notes") == "mine"
        found = {name: text for name, text in found.items() if ours(name)}
        if place is apart:
            assert found in (OLD, NEW)
        assert len(set(found.values())) == 1  # every file is of the same result
        assert "head" in found
        seen.append(found)
        with only_writer(out), replaced_folder(out, "head", ours) as new:
            fill(new, OLD)
        assert content(out) == {**OLD, "notes": "mine"}
        assert {path.name for path in out.parent.iterdir()} == {"out"}
        if child.exitcode == 0:
            break
    assert seen[0] == OLD
    assert seen[-1] == NEW
    assert len(seen) > 20


WRITER = """if True:
    import sys
    from pathlib import Path
    from moe_placer.solve.folder import only_writer
    with only_writer(Path(sys.argv[1])):
        print("writing", flush=True)
        sys.stdin.read()
"""


@contextmanager
def another_writer(out: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WRITER, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    out, link = tmp_path / "out", tmp_path / "link"
    link.symlink_to(out)
    with another_writer(out) as process:
        for name in (out, link, tmp_path / "x" / ".." / "out"):
            with pytest.raises(UsageError, match=f"another run is writing to {name}"), only_writer(name):
                pass
        with only_writer(tmp_path / "other"):
            pass
        process.kill()  # nothing of its own can run any more
        process.wait()
        replace(out)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link"}


def test_the_lock_goes_with_its_writer(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        with only_writer(out):
            assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
        assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_made_beside_a_folder_the_lock_is_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    fill(out, OLD)
    real, access = os.open, os.access

    def forbidden(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path).parent == tmp_path and Path(path).name.startswith("."):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", forbidden)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    with only_writer(out):
        assert (out / ".lock").exists()
        with replaced_folder(out, "head", ours) as new:
            assert new.parent == out
            fill(new, NEW)
    assert content(out) == NEW
    with pytest.raises(InputError, match="Permission denied"), only_writer(tmp_path / "new"):
        pass


def test_a_file_system_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_stream: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unknown)
    replace(tmp_path / "out")
    assert content(tmp_path / "out") == NEW


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(InputError, match="cannot be written to"), only_writer(path):
            pass


def test_names_that_the_locale_cannot_write_are_said() -> None:
    code = """if True:
        from pathlib import Path
        from moe_placer.errors import InputError
        from moe_placer.solve.folder import only_writer
        try:
            with only_writer(Path("t\\u00efny")):
                print("made")
        except InputError as error:
            print(ascii(str(error)))"""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "a name that cannot be written in ascii" in told.stdout, told.stderr
    assert "a locale such as C.UTF-8" in told.stdout
