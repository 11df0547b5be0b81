"""The command line at a terminal, in a pipe that closes, on a full disk, and when interrupted again and again."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from forked import Forks

from moe_placer.cli.summary import _share

REPO = Path(__file__).parents[2]
TINY = REPO / "instances" / "tiny.yaml"
SEED_PLAN = REPO / "instances" / "h100-128.yaml"
ENVIRONMENT = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}


def at_terminal(forks: Forks, *arguments: Any, **environment: str) -> str:
    """What a terminal of 100 columns receives on stderr and stdout."""
    ours, theirs = pty.openpty()
    process = forks.start(*arguments, out=theirs, err=theirs, env={**ENVIRONMENT, **environment})
    os.close(theirs)
    received, give_up = b"", time.monotonic() + 240
    while time.monotonic() < give_up:
        if not select.select([ours], [], [], 0.2)[0]:
            continue
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux: the other end was closed
            break
        if not part:
            break
        received += part
    os.close(ours)
    assert process.wait() == 0, received.decode()
    return received.decode()


def test_progress_is_drawn_and_cleared_at_a_terminal(forks: Forks, tmp_path: Path) -> None:
    shown = at_terminal(forks, "solve", TINY, "-o", tmp_path, "--time-limit", 5, "--workers", 1, "--no-dag")
    assert "\x1b[" in shown
    assert "layers" in shown
    assert "\x1b[?25h" in shown  # the cursor is shown again
    assert "Verified independently" in shown


def test_no_color_and_dumb_terminals_are_respected(forks: Forks, tmp_path: Path) -> None:
    plain = at_terminal(forks, "inspect", TINY, NO_COLOR="1")
    assert "\x1b[3" not in plain
    dumb = at_terminal(forks, "solve", TINY, "-o", tmp_path, "--time-limit", 5, "--workers", 1, "--no-dag", TERM="dumb")
    assert "\x1b" not in dumb


def ended_with(out: Any, *arguments: Any) -> tuple[int, str]:
    """Run in a fresh interpreter, whose end is looked at too: how it flushes its streams differs by version."""
    command = [sys.executable, "-m", "moe_placer", *map(str, arguments)]
    done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False, timeout=240)
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_told_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        told = "moe-placer: output cannot be written: No space left on device\n"
        assert ended_with(full, "schema") == (1, told)


@pytest.mark.parametrize("arguments", [["schema"], ["solvers"], ["inspect", SEED_PLAN]])
def test_a_reader_that_goes_away_ends_it_quietly(arguments: list[Any]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        assert ended_with(out, *arguments) == (1, "")  # as all of click's programs


def children_of(parent: int) -> list[int]:
    """Processes whose parent, or its parent, and so on, is ``parent``."""
    up = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            up[int(stat.parent.name)] = int(fields[1])
    found, wave = [], {parent}
    while wave:
        wave = {child for child, above in up.items() if above in wave}
        found += sorted(wave)
    return found


def gone(processes: list[int]) -> bool:
    return not any(Path(f"/proc/{number}").exists() for number in processes)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(("number", "again"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGINT, True)])
def test_interrupts_keep_the_best_so_far_and_no_worker(
    forks: Forks, tmp_path: Path, number: signal.Signals, again: bool
) -> None:
    # Nine layers of the seed plan: too much to be done before the signal comes.
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text(SEED_PLAN.read_text().replace("layers: 61", "layers: 9", 1))
    arguments = ["solve", plan, "-o", out, "--gap", "0", "--no-dag", "--json", "--workers", "2"]
    with (tmp_path / "told").open("w") as told, (tmp_path / "err").open("w") as err:
        process = forks.start(*arguments, out=told, err=err)
    give_up = time.monotonic() + 240
    while len(children_of(process.pid)) < 2 and time.monotonic() < give_up:
        time.sleep(0.1)
    workers = children_of(process.pid)
    assert workers
    process.send_signal(number)
    if again:
        time.sleep(0.3)
        process.send_signal(number)
    process.wait()
    assert "Traceback" not in (tmp_path / "err").read_text()
    files = [path.name for path in out.iterdir()] if out.exists() else []
    if process.returncode == 0:
        assert json.loads((tmp_path / "told").read_text())["verified"] is True
        assert files == ["placement.json"]
        assert run("verify", plan, out / files[0]).returncode == 0
    else:  # a second interrupt may come before anything is written: then nothing is, not even half
        assert again
        assert process.returncode == 130
        assert files == []
    give_up = time.monotonic() + 120
    while not gone(workers) and time.monotonic() < give_up:
        time.sleep(0.2)
    assert gone(workers)


def test_a_gap_without_a_bound_is_not_known() -> None:
    assert _share(float("inf")) == "not known"
    assert _share(0.00125) == "0.125%"
