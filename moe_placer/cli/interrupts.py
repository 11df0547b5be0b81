"""Ctrl-C and SIGTERM: one handler for the whole life of the process, which never raises.

An exception that a handler raises can come between any two steps of any code, and no code is right everywhere then: not
the import of a library, and not the end of another handler. So a signal here sets a flag, which somebody looks at now
and then, or ends the process at once, or does nothing:

    heeding    before anybody listens: the first signal ends the process; while somebody listens: the first one is a
               request, which `StopRequest` tells, and the next one ends the process
    finished   the result is there and about to be told: signals are ignored, once and for all
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any

from moe_placer.cli import log

__all__ = ["StopRequest", "finish", "install", "listen"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ONE_REQUEST_S = 0.2  # `timeout` and job managers signal a process and its group: twice, but one request
_SHOW_CURSOR = "\x1b[?25h"
_INTERRUPTED = "interrupted; files that are there are whole"


class StopRequest:
    """A request to stop, by Ctrl-C or SIGTERM; calling the object returns whether it was made.

    Attributes
    ----------
    said : str
        What is told when a signal comes.
    number : int
        Of the signal; 0 as long as none came.
    """

    def __init__(self, said: str) -> None:
        self.said, self.number = said, 0

    def __call__(self) -> bool:
        """Whether a signal came since."""
        return self.number > 0

    @property
    def exit_code(self) -> int:
        """What shells expect of a process that a signal has ended."""
        return 128 + self.number


class _State:
    stop_request: StopRequest | None = None
    last = -float("inf")  # when a signal last counted, s
    finished = False
    installed = False


def install() -> None:
    """Heed signals from now on, in the main thread of a process of our own."""
    for number in SIGNALS:
        signal.signal(number, _handle)
    _State.installed = True


def listen(said: str) -> StopRequest:
    """Take the next signal as a request to stop, and call ``said`` then; an earlier request is forgotten."""
    stop_request = StopRequest(said)
    _State.stop_request = stop_request
    return stop_request


def finish() -> None:
    """Ignore signals from now on: called once a result is written, and before its first byte is printed.

    This holds while the interpreter shuts down, which takes a while with solver libraries in it: in place of a handler
    of ours it puts the default action, and a late Ctrl-C would kill a process that has done its work.
    """
    _State.finished = True
    if not _State.installed or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        return
    told = sys.unraisablehook

    def tell(unraisable: Any) -> None:
        # One that arrives while its handler is being replaced: Python finds none, and says so.
        late = isinstance(unraisable.exc_value, OSError) and "race condition" in str(unraisable.exc_value)
        if not late:
            told(unraisable)

    sys.unraisablehook = tell
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _handle(number: int, _frame: FrameType | None) -> None:
    if _State.finished:
        return
    now, before = time.monotonic(), _State.last
    if now - before < _ONE_REQUEST_S:
        return
    _State.last = now
    stop_request = _State.stop_request
    if stop_request is not None and not stop_request.number:
        stop_request.number = number
        _tell(f"{log.as_json_line('warning', stop_request.said)}\n" if log.is_json() else f"\n{stop_request.said}\n")
        return
    _end(number)


def _end(number: int) -> None:
    """End this process now: what it was writing goes, what is there is whole."""
    files = sys.modules.get("moe_placer.files")
    if files is not None:
        files.remove_unfinished()
    if os.isatty(2):
        _tell(_SHOW_CURSOR)
    line = log.as_json_line("error", _INTERRUPTED, exit_code=128 + number)
    _tell(f"{line}\n" if log.is_json() else f"moe-placer: {_INTERRUPTED}\n")
    os._exit(128 + number)


def _tell(text: str) -> None:
    """Write to standard error past its buffer, which the code that was interrupted may be in the middle of."""
    with suppress(OSError):
        os.write(2, text.encode())
