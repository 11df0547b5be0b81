"""Names of hosts, as people have them: one on each line, or Slurm's short form ``node[01-16,20],gpu7``."""

from __future__ import annotations

import re
from pathlib import Path

from moe_placer.errors import InputError, Mistake
from moe_placer.files import read_bounded

__all__ = ["expand_hosts", "read_hosts"]

MAX_BYTES = 1_000_000
MAX_HOSTS = 16_384
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?$")


def read_hosts(file: Path, nodes: int) -> tuple[str, ...]:
    """Return the hosts of a file, the i-th for node i of the plan.

    Parameters
    ----------
    file : Path
        Names separated by lines or commas; what follows ``#`` is a comment.
    nodes : int
        How many there must be.

    Raises
    ------
    InputError
        A name is none, stands twice, or there are too few or too many.
    """
    expected = f"{nodes} host names, one for each node of the instance, in its order"
    try:
        text = read_bounded(file, MAX_BYTES, expected).decode()
    except UnicodeDecodeError:
        raise InputError(Mistake("bytes that are not UTF-8 text", expected, file=file)) from None
    hosts: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            hosts += expand_hosts(line.partition("#")[0].strip())
        except ValueError as error:
            raise InputError(Mistake(str(error), expected, file=file, line=number)) from None
    repeated = [host for host in dict.fromkeys(hosts) if hosts.count(host) > 1] if len(hosts) <= MAX_HOSTS else []
    if repeated:
        raise InputError(Mistake(f"host {repeated[0]} twice", expected, file=file))
    if len(hosts) != nodes:
        raise InputError(Mistake(f"{len(hosts)} host names", expected, file=file))
    return tuple(hosts)


def expand_hosts(text: str) -> list[str]:
    """Return the names in Slurm's short form; leading zeros stay: ``a[08-10]`` is a08, a09, a10.

    Raises
    ------
    ValueError
        It is not of that form.
    """
    hosts: list[str] = []
    for part in _split(text):
        names = [""]
        for fixed, choices in re.findall(r"([^\[\]]+)|\[([^\[\]]*)\]", part):
            endings = [fixed] if fixed else _numbers(choices)
            if len(names) * len(endings) > MAX_HOSTS:
                raise ValueError(f"more than {MAX_HOSTS:,} hosts")
            names = [name + ending for name in names for ending in endings]
        for name in names:
            if not _HOST.match(name) or len(name) > 253:
                raise ValueError(f"{part[:60]!r}, which is no host name")
        hosts += names
    return hosts


def _split(text: str) -> list[str]:
    """Split at commas and blanks that are outside brackets."""
    parts, depth, begun = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if depth not in (0, 1):
            raise ValueError(f"brackets that do not match in {text[:60]!r}")
        if depth == 0 and letter in ", \t":
            parts.append(text[begun:at])
            begun = at + 1
    if depth:
        raise ValueError(f"a bracket without an end in {text[:60]!r}")
    return [part for part in (*parts, text[begun:]) if part]


def _numbers(choices: str) -> list[str]:
    found: list[str] = []
    for choice in choices.split(","):
        match = _RANGE.match(choice)
        if match is None:
            raise ValueError(f"{choice[:60]!r} in brackets, which is no number or range")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first) or int(last) - int(first) >= MAX_HOSTS:
            raise ValueError(f"the range {choice[:60]!r}")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found
