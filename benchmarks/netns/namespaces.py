"""Network namespaces without names: the kernel removes them, and all that is in them, when this process has ended.

No end of the process leaves anything behind, SIGKILL included, so there are no leftovers to look for.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

__all__ = ["Namespaces", "why_not"]

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_OWN = "/proc/thread-self/ns/net"
_PATIENCE_S = 30.0  # for one call of ip or tc


def why_not() -> str | None:
    """Say why this machine or user cannot have namespaces with shaped links; None where nothing speaks against it."""
    if not Path(_OWN).exists():
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces and shape their links"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        return f"needs {' and '.join(missing)} (Debian: iproute2)"
    try:
        with Namespaces() as spaces:
            spaces.add("probe")
            spaces.run("probe", "tc", ["qdisc add dev lo root tbf rate 1mbit burst 10kb limit 100kb"])
    except (OSError, RuntimeError) as error:
        return f"cannot make a network namespace with a shaped link: {error}"
    return None


class Namespaces:
    """Namespaces by name; only this process knows them, and closing this, or its end, removes them.

    The thread that makes one is never left in it: `inside` returns home.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        self._files: dict[str, int] = {}

    def __enter__(self) -> Namespaces:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all namespaces; sockets that are still open keep theirs until they are closed."""
        for file in (*self._files.values(), self._home):
            os.close(file)
        self._files.clear()

    def add(self, name: str) -> None:
        """Make a namespace, with its loopback up."""
        try:
            self._check(self._libc.unshare(_NEW_NETWORK), "unshare")
            self._files[name] = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            self._enter(self._home)
        self.run(name, "ip", ["link set lo up"])

    def path(self, name: str) -> str:
        """Return a path that other programs can open while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._files[name]}"

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Make sockets, or start programs, in a namespace: what this thread does here is done there."""
        self._enter(self._files[name])
        try:
            yield
        finally:
            self._enter(self._home)

    def run(self, name: str, program: str, lines: Sequence[str]) -> None:
        """Run lines of ``ip`` or ``tc`` in a namespace.

        Raises
        ------
        RuntimeError
            A line failed, or the program was killed.
        """
        with self.inside(name):
            done = subprocess.run(  # noqa: S603 - ip or tc, with lines of our own
                [shutil.which(program) or program, "-batch", "-"],
                input="".join(line + "\n" for line in lines),
                capture_output=True, text=True, check=False, timeout=_PATIENCE_S,
            )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} in {name}: exit code {done.returncode}: {done.stderr.strip()}")

    def set(self, name: str, settings: Mapping[str, str]) -> None:
        """Write kernel settings below /proc/sys/net of a namespace."""
        with self.inside(name):
            for key, value in settings.items():
                Path("/proc/sys/net", key).write_text(value)

    def _enter(self, file: int) -> None:
        self._check(self._libc.setns(file, _NEW_NETWORK), "setns")

    @staticmethod
    def _check(result: int, call: str) -> None:
        if result:
            number = ctypes.get_errno()
            raise OSError(number, f"{call}: {os.strerror(number)}")
