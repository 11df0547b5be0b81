"""A result folder appears whole, or stays as it was; one run at a time writes to it.

Results are written to a folder beside it, which then takes its place in one step of the file system (`renameat2` with
RENAME_EXCHANGE, Linux). Whoever looks, at any time and after any crash, sees all of the old result or all of the new.

Some folders cannot change places: a mount point, the folder that a shell is in, one with other folders in it, one whose
parent cannot be written to, and all where the system has no such step. There files are replaced one by one, in an order
in which none of them is ever beside another result's: the old ones that hang on the head (DAGs) go, the head (the
placement) is replaced, the new ones come.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from moe_placer.errors import UsageError
from moe_placer.files import is_unfinished, removed_at_the_end, unfinished, unwritable

__all__ = ["only_writer", "replaced_folder"]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux' fcntl.h and fs.h
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other runs from writing to a folder, as long as this process lives, where the file system knows locks.

    Raises
    ------
    UsageError
        Another run is writing to it.
    InputError
        It cannot be written to, whoever does.
    """
    with ExitStack() as stack:
        try:
            target = folder.resolve()
            if target.exists() and not target.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            for path in reversed((target.parent, *target.parent.parents)):
                if not path.exists():
                    stack.enter_context(removed_at_the_end(path, only_if_empty=True))
            target.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock_of(target, folder))
        except (OSError, UnicodeEncodeError) as error:
            raise unwritable(folder, error) from None
        yield


@contextmanager
def _lock_of(target: Path, shown: Path) -> Iterator[None]:
    """Lock a file beside the folder, or in it where nothing can be made beside it."""
    file = target.with_name(f".{target.name[:200]}.lock")
    try:
        stream = _locked(file, shown)
    except OSError as error:
        if error.errno not in _FORBIDDEN or not target.is_dir():
            raise
        file = target / ".lock"
        stream = _locked(file, shown)
    try:
        with removed_at_the_end(file):  # while it is locked: what others lock later is another file
            yield
    finally:
        os.close(stream)


def _locked(file: Path, shown: Path) -> int:
    while True:
        stream = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream), file.stat()):
                    return stream
        except BlockingIOError:
            os.close(stream)
            raise UsageError(f"another run is writing to {shown}; wait for it, or choose another folder") from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return stream
            os.close(stream)
            raise
        os.close(stream)  # the run before has removed it meanwhile


@contextmanager
def replaced_folder(folder: Path, head: str, ours: Callable[[str], bool]) -> Iterator[Path]:
    """Give an empty folder whose files take the place of those in ``folder`` in the end; on an error, nothing changes.

    To be called by its `only_writer`.

    Parameters
    ----------
    head : str
        Name of the file that the others hang on.
    ours : callable
        Whether a file of this name belongs to a result; others are kept.

    Raises
    ------
    InputError
        It cannot be written to.
    """
    with ExitStack() as stack:
        try:
            target = folder.resolve()
            beside = not os.path.ismount(target) and os.access(target.parent, os.W_OK)
            if not beside:
                target.mkdir(exist_ok=True)
            place = target if beside else target / "result"
            _remove_left_over(place)
            new = stack.enter_context(unfinished(place))
            new.mkdir()
        except (OSError, UnicodeEncodeError) as error:
            raise unwritable(folder, error) from None
        yield new
        try:
            _sync(new)
            if not (beside and _take_place(new, target, ours)):
                _replace_files(new, target, head, ours)
        except OSError as error:
            raise unwritable(folder, error) from None


def _remove_left_over(place: Path) -> None:
    """Remove what runs that were killed have left beside it: nobody else is writing to it."""
    for path in place.parent.iterdir():
        if is_unfinished(path.name) and path.name.startswith(f".{place.name[:200]}.moe-placer-"):
            shutil.rmtree(path, ignore_errors=True)


def _take_place(new: Path, target: Path, ours: Callable[[str], bool]) -> bool:
    """Have the new folder change places with the old one; False where that cannot be."""
    if not target.exists():
        new.rename(target)
        _sync(target.parent)
        return True
    if _is_work_folder(target) or not _link_others(target, new, ours):
        return False
    new.chmod(stat.S_IMODE(target.stat().st_mode))
    if not _exchange(new, target):
        return False
    _sync(target.parent)
    return True


def _is_work_folder(target: Path) -> bool:
    """Whether this process, and so most likely a shell, is in the folder: it would find itself in the old one."""
    with suppress(OSError):
        return Path.cwd().is_relative_to(target)
    return False


def _link_others(target: Path, new: Path, ours: Callable[[str], bool]) -> bool:
    """Link what else is in a folder into the new one; False where something cannot be in two places."""
    linked = []
    try:
        for path in target.iterdir():
            if not (ours(path.name) or is_unfinished(path.name)):
                (new / path.name).hardlink_to(path)
                linked.append(new / path.name)
    except OSError:
        for path in linked:
            path.unlink()
        return False
    return True


def _exchange(new: Path, target: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    return not rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE)


def _replace_files(new: Path, target: Path, head: str, ours: Callable[[str], bool]) -> None:
    """Replace files one by one, so that every file there is is of the head that is there."""
    for path in target.iterdir():
        if ours(path.name) and path.name != head and not path.is_dir():
            path.unlink()
    _sync(target)
    for name in sorted((path.name for path in new.iterdir()), key=lambda name: (name != head, name)):
        (new / name).replace(target / name)
        _sync(target)


def _sync(folder: Path) -> None:
    """Wait until what was renamed in a folder is on disk."""
    stream = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(stream)
    finally:
        os.close(stream)
