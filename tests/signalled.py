"""Runs the command line, and sends it signals at chosen steps: the same ones in every run, however busy the machine.

    python signalled.py SIGNAL@STEP ... -- ARGUMENT ...
    python signalled.py RUNS.json

A step is ``import:NAME`` (when a module begins to be imported), ``enter:MODULE:FUNCTION`` (when a function is first
entered), ``call:N`` (when the N-th different function of moe_placer is, since signals are heeded) or ``exit`` (while
the interpreter shuts down); signals are sent one after the other. ``impatient`` takes any two signals for two wishes,
however soon one follows the other.

RUNS.json lists runs, each with ``steps``, ``arguments`` and the ``folder`` to run in; files of the folder's name get
the exit code, the number of functions entered, and what was said. They are forked off a process that has everything
loaded.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

LOADED = (
    *("cli.commands", "cli.summary", "dag.draw_simplified", "dag.draw_detailed", "dag.draw_comprehensive"),
    *("dag.draw_complete", "solve.solve", "solve.estimate", "solve.folder", "verifier.dags", "solvers.greedy"),
)


def heeded() -> bool:
    """Whether signals are heeded by now: before, Python's own start-up does."""
    state = getattr(sys.modules.get("moe_placer.cli.interrupts"), "_State", None)
    return state is not None and state.installed


class Injector:
    """Sends what is due when its step is reached, each signal once and in order."""

    def __init__(self, words: list[str]) -> None:
        pairs = [word.split("@") for word in words if word != "impatient"]
        self.steps = [(signal.Signals[name], step) for name, step in pairs]
        self.entered: dict[CodeType, int] = {}
        if "impatient" in words:
            from moe_placer.cli import interrupts

            interrupts._ONE_WISH_S = 0.0

    def reach(self, step: str) -> None:
        """Send signals that wait for this step."""
        while self.steps and self.steps[0][1] == step:
            number, _ = self.steps.pop(0)
            if not self.steps:
                sys.setprofile(None)  # nothing is looked for any more, and looking at every call takes time
            os.kill(os.getpid(), number)

    def watch(self) -> None:
        """Look at every import and every call from now on."""
        sys.addaudithook(self._audit)
        sys.setprofile(self._profile)
        atexit.register(self.reach, "exit")

    def _audit(self, event: str, details: tuple[Any, ...]) -> None:
        if event == "import" and heeded():
            self.reach(f"import:{details[0]}")

    def _profile(self, frame: FrameType, event: str, _detail: Any) -> None:
        if event != "call" or frame.f_code in self.entered or not heeded():
            return
        module = frame.f_globals.get("__name__", "")
        if module.startswith("moe_placer"):
            self.entered[frame.f_code] = number = len(self.entered)
            self.reach(f"call:{number}")
            self.reach(f"enter:{module}:{frame.f_code.co_name}")


def run(words: list[str], arguments: list[str]) -> Injector:
    """Run the command line in this process; return where it was, should it come back."""
    sys.argv = ["moe-placer", *arguments]
    injector = Injector(words)
    from moe_placer.cli import main

    injector.watch()
    try:
        main()
    except SystemExit as ended:
        sys.setprofile(None)
        if not os.environ.get("SIGNALLED_FORK"):
            raise
        injector.code = int(ended.code or 0)
    return injector


def run_here(steps: list[str], arguments: list[str], folder: Path) -> None:
    """Run in a process of this run's own, and write down how far it came."""
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(f"{folder}.{name}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    injector = run(steps, arguments)
    sys.stdout.flush()
    Path(f"{folder}.calls").write_text(str(len(injector.entered)))
    os._exit(injector.code)


def run_all(file: str) -> None:
    """Run everything that a file lists."""
    for module in LOADED:
        __import__(f"moe_placer.{module}")
    os.environ["SIGNALLED_FORK"] = "1"
    for one in json.loads(Path(file).read_text()):
        if not (child := os.fork()):
            try:
                run_here(one["steps"], one["arguments"], Path(one["folder"]))
            finally:
                os._exit(99)  # it did not come back as it should
        _, status = os.waitpid(child, 0)
        Path(f"{one['folder']}.code").write_text(str(os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    if "--" in sys.argv:
        at = sys.argv.index("--")
        run(sys.argv[1:at], sys.argv[at + 1 :])
    else:
        run_all(sys.argv[1])
