"""Processes for tests, forked off one that has everything loaded: most of a command's processor time is its imports.

A command runs here as in a process of its own: with the files, environment and folder that it is given, with signals
that reach nobody else, and with the interpreter's own shutdown. What depends on how an interpreter starts (locale,
hash seed, few open files, ``import`` itself) needs a fresh one: `command_line.run(..., apart=True)`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

LOADED = (
    *("cli.commands", "cli.summary", "cli.plans", "dag.draw_simplified", "dag.draw_detailed", "dag.draw_comprehensive"),
    *("dag.draw_complete", "solve.solve", "solve.estimate", "solve.folder", "verifier.dags", "solvers.greedy"),
)
SPENT_S = [0.0]  # processor time of commands that ended, and of what they waited for: children of another process
_MOST_BYTES = 200_000  # of a request: its environment, mostly


class Fork:
    """A command that runs in a process of its own, as `subprocess.Popen` would have it."""

    def __init__(self, status: int) -> None:
        self._status = os.fdopen(status, "rb", buffering=0)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 240.0) -> int:
        """Return its exit code, or minus the signal that ended it."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.returncode, spent_s = json.loads(self._status.readline())
            self._status.close()
            SPENT_S[0] += spent_s
        return self.returncode


class Forks:
    """The process that commands are forked off; it is started for the first of them."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def start(
        self,
        *words: Any,
        folder: Path | None = None,
        env: Mapping[str, str] | None = None,
        out: Any = None,
        err: Any = None,
        steps: Sequence[str] = (),
        most_files: int | None = None,
    ) -> Fork:
        """Start a command.

        Parameters
        ----------
        words : any
            The command line's arguments.
        folder : path, optional
            Where it runs.
        env : mapping, optional
            Its environment; absent: that of this process.
        out, err : file or int, optional
            Where its output goes, and what it complains of; absent: nowhere.
        steps : sequence of str
            Signals that it is sent, and when: see `signalled`.
        most_files : int, optional
            Files that it may have open.
        """
        request: dict[str, Any] = {"words": list(map(str, words)), "env": dict(env or os.environ), "steps": list(steps)}
        request |= {"folder": str(folder or Path.cwd()), "most_files": most_files}
        read, write = os.pipe()
        with Path(os.devnull).open("r+b") as nothing:
            given = [nothing, *(nothing if stream is None else stream for stream in (out, err)), write]
            numbers = [stream if isinstance(stream, int) else stream.fileno() for stream in given]
            socket.send_fds(self._server(), [json.dumps(request).encode()], numbers)
        os.close(write)
        return Fork(read)

    def run(self, *words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; options are those of `start`."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            code = self.start(*words, out=out, err=err, **options).wait()
            said = []
            for stream in (out, err):
                stream.seek(0)
                said.append(stream.read().decode("utf-8", "replace"))
        return subprocess.CompletedProcess(list(map(str, words)), code, *said)

    def close(self) -> None:
        """End the process; what was forked off ends by itself."""
        if self._socket is not None:
            self._socket.close()
            self._process.wait(timeout=60)

    def _server(self) -> socket.socket:
        if self._socket is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            command = [sys.executable, __file__, str(theirs.fileno())]
            env = {"OPENBLAS_NUM_THREADS": "1", **os.environ}  # a process with threads cannot be forked
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env)
            theirs.close()
        return self._socket


def serve(descriptor: int) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for every request; return one in the process that shall run it, and None when there are no more."""
    for module in LOADED:
        importlib.import_module(f"moe_placer.{module}")
    for module in ("scipy.optimize", "ortools.linear_solver.python.model_builder_helper"):  # loaded when needed
        importlib.import_module(module)
    gc.freeze()
    with socket.socket(fileno=descriptor) as requests:
        while True:
            message, files, _, _ = socket.recv_fds(requests, _MOST_BYTES, 4)
            with suppress(ChildProcessError):
                while os.waitpid(-1, 0 if not message else os.WNOHANG)[0]:
                    pass
            if not message:
                return None
            if not os.fork():
                break
            for number in files:
                os.close(number)
    *files, status = files
    if child := os.fork():  # this process only waits
        for number in (0, 1, 2, *files):
            os.close(number)
        os.write(status, b"%d\n" % child)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        os.write(status, json.dumps([code, spent.ru_utime + spent.ru_stime]).encode() + b"\n")
        os._exit(0)
    os.close(status)
    return json.loads(message), files


def become(request: dict[str, Any], files: list[int]) -> None:
    """Make this process what a request asks for."""
    for place, number in enumerate(files):
        os.dup2(number, place)
    for number in files:
        os.close(number)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    if request["most_files"] is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (request["most_files"], request["most_files"]))
    sys.path[1:1] = [entry for entry in request["env"].get("PYTHONPATH", "").split(os.pathsep) if entry]
    by_line = 1 if os.isatty(1) else -1
    encoding = request["env"].get("PYTHONIOENCODING", "utf-8")
    sys.stdout = open(1, "w", by_line, encoding, closefd=False)  # noqa: SIM115 - as the interpreter does
    sys.stderr = open(2, "w", 1, encoding, "backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]  # keep them to the very end
    sys.argv = ["moe-placer", *request["words"]]


if __name__ == "__main__":
    if asked := serve(int(sys.argv[1])):
        become(*asked)
        if asked[0]["steps"]:
            import signalled

            signalled.run(asked[0]["steps"], asked[0]["words"])
        else:
            from moe_placer.cli import main

            main()
