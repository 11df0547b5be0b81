"""Names of hosts, as people have them: one on each line, or Slurm's short form ``node[01-16,20],gpu7``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from moe_placer.engines.topology.hostlist import MOST_HOSTS, expand
from moe_placer.errors import InputError, Mistake
from moe_placer.files import read_bounded

__all__ = ["expand_hosts", "find_hosts", "read_hosts"]

MAX_BYTES = 1_000_000
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")


def find_hosts(text: str, nodes: int) -> tuple[str, ...]:
    """Return the hosts of a file, or of a list such as ``node[01-16]`` where there is no such file.

    Parameters
    ----------
    text : str
        A path, or names in Slurm's short form.
    nodes : int
        How many there must be.

    Raises
    ------
    InputError
        As `read_hosts`, or the text is neither.
    """
    file = Path(text)
    if file.exists() or not set(text) & {"[", ","}:
        return read_hosts(file, nodes)
    expected = _expected(nodes)
    try:
        hosts = expand_hosts(text)
    except ValueError as error:
        raise InputError(Mistake(f"no such file, and {error}", expected, "--hosts")) from None
    return _checked(hosts, nodes, Mistake("", expected, "--hosts"))


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
    expected = _expected(nodes)
    try:
        text = read_bounded(file, MAX_BYTES, expected).decode()
    except UnicodeDecodeError:
        raise InputError(Mistake("bytes that are not UTF-8 text", expected, file=file)) from None
    hosts: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            hosts += expand_hosts(line.partition("#")[0])
            if len(hosts) > MOST_HOSTS:
                raise ValueError(f"more than {MOST_HOSTS:,} hosts")
        except ValueError as error:
            raise InputError(Mistake(str(error), expected, file=file, line=number)) from None
    return _checked(hosts, nodes, Mistake("", expected, file=file))


def _expected(nodes: int) -> str:
    return f"{nodes} host names, one for each node of the instance, in its order"


def _checked(hosts: Sequence[str], nodes: int, where: Mistake) -> tuple[str, ...]:
    """Return as many different hosts as nodes, or refuse them."""
    repeated = next((host for host, times in Counter(hosts).items() if times > 1), None)
    if repeated is not None:
        raise InputError(Mistake(f"host {repeated} twice", where.expected, where.path, where.file))
    if len(hosts) != nodes:
        raise InputError(Mistake(f"{len(hosts)} host names", where.expected, where.path, where.file))
    return tuple(hosts)


def expand_hosts(text: str) -> list[str]:
    """Return the names in Slurm's short form, also separated by blanks; leading zeros stay: ``a[08-10]``.

    Raises
    ------
    ValueError
        It is not of that form.
    """
    words = [word.strip(",") for word in text.split()]
    hosts = [host for word in words if word for host in expand(word)]
    for host in hosts:
        if not _HOST.match(host) or len(host) > 253:
            raise ValueError(f"{host[:60]!r}, which is no host name")
    return hosts
