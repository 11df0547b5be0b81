"""Runs the command line, and sends it signals at chosen steps: the same ones in every run, however busy the machine.

    python signalled.py SIGNAL@STEP ... -- ARGUMENT ...

A step is ``import:NAME`` (when a module begins to be imported), ``enter:MODULE:FUNCTION`` (when a function is first
entered), ``call:N`` (when the N-th different function of moe_placer is, since signals are heeded) or ``exit`` (while
the interpreter shuts down); signals are sent one after the other. ``impatient`` takes any two signals for two wishes,
however soon one follows the other; ``calls:FILE`` writes into a file how many functions of moe_placer were entered.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


def heeded() -> bool:
    """Whether signals are heeded by now: before, Python's own start-up does."""
    state = getattr(sys.modules.get("moe_placer.cli.interrupts"), "_State", None)
    return state is not None and state.installed


class Injector:
    """Sends what is due when its step is reached, each signal once and in order."""

    def __init__(self, words: list[str]) -> None:
        pairs = [word.split("@") for word in words if "@" in word]
        self.steps = [(signal.Signals[name], step) for name, step in pairs]
        self.entered: dict[CodeType, int] = {}
        self.calls = next((word.removeprefix("calls:") for word in words if word.startswith("calls:")), None)
        if "impatient" in words:
            from moe_placer.cli import interrupts

            interrupts._ONE_REQUEST_S = 0.0

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
        if self.calls or any(not step.startswith("import:") for _, step in self.steps):
            sys.setprofile(self._profile)
        atexit.register(self._exit)

    def _exit(self) -> None:
        self.reach("exit")
        sys.setprofile(None)  # of modules that shut down, too little is left to look at
        if self.calls:
            Path(self.calls).write_text(str(len(self.entered)))

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


def run(words: list[str], arguments: list[str]) -> None:
    """Run the command line in this process, which ends with it."""
    sys.argv = ["moe-placer", *arguments]
    injector = Injector(words)
    from moe_placer.cli import main

    injector.watch()
    main()


if __name__ == "__main__":
    at = sys.argv.index("--")
    run(sys.argv[1:at], sys.argv[at + 1 :])
