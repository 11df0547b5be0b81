"""Host lists as Slurm writes them: ``node[01-03,7],gpu-[1-2]-x``."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["MOST_HOSTS", "compress", "expand"]

MOST_HOSTS = 100_000
_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?$")
_NUMBERED = re.compile(r"(.*?)(\d{1,18})$")


def expand(text: str) -> list[str]:
    """Return the hosts of a list, in its order; numbers keep their leading zeros.

    Raises
    ------
    ValueError
        The text is no host list, or names too many hosts.
    """
    hosts: list[str] = []
    for part in _split(text):
        hosts += _expand_one(part, MOST_HOSTS - len(hosts))
    return hosts


def _split(text: str) -> list[str]:
    """Split at commas that are outside brackets."""
    parts, start, depth = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if depth not in {0, 1}:
            raise ValueError(f"brackets that do not match in {text[:60]!r}")
        if letter == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    if depth:
        raise ValueError(f"brackets that do not match in {text[:60]!r}")
    parts.append(text[start:])
    stripped = [part.strip() for part in parts]
    if not all(stripped):
        raise ValueError(f"an empty name in {text[:60]!r}")
    return stripped


def _expand_one(part: str, most: int) -> list[str]:
    hosts = [""]
    for index, piece in enumerate(re.split(r"\[([^\[\]]*)\]", part)):
        endings = _numbers(piece) if index % 2 else [piece]
        if len(hosts) * len(endings) > most:
            raise ValueError(f"more than {MOST_HOSTS:,} hosts")
        hosts = [host + ending for host in hosts for ending in endings]
    if any(re.search(r"[\s\[\]]", host) for host in hosts):
        raise ValueError(f"a name with blanks or brackets in {part[:60]!r}")
    return hosts


def _numbers(ranges: str) -> list[str]:
    numbers: list[str] = []
    for text in ranges.split(","):
        match = _RANGE.match(text.strip())
        if not match:
            raise ValueError(f"the range {text[:40]!r}")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first) or int(last) - int(first) >= MOST_HOSTS:
            raise ValueError(f"the range {text[:40]!r}")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        if len(numbers) > MOST_HOSTS:
            raise ValueError(f"more than {MOST_HOSTS:,} hosts")
    return numbers


def compress(hosts: Sequence[str]) -> str:
    """Write hosts as a list, in order: neighbours that count up share brackets. `expand` undoes it."""
    groups: list[tuple[str, list[list[str]]]] = []  # prefix, ranges of its numbers
    for host in hosts:
        match = _NUMBERED.match(host)
        prefix, number = (match[1], match[2]) if match else (host, "")
        ranges = groups[-1][1] if groups and groups[-1][0] == prefix and number and groups[-1][1] else None
        if ranges is None:
            groups.append((prefix, [[number, number]] if number else []))
        elif str(int(ranges[-1][1]) + 1).zfill(len(ranges[-1][0])) == number and len(number) == len(ranges[-1][1]):
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(prefix + _brackets(ranges) for prefix, ranges in groups)


def _brackets(ranges: Sequence[Sequence[str]]) -> str:
    if not ranges:
        return ""
    text = ",".join(first if first == last else f"{first}-{last}" for first, last in ranges)
    return text if len(ranges) == 1 and ranges[0][0] == ranges[0][1] else f"[{text}]"
