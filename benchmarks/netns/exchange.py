"""All-to-alls of real bytes between hosts: one process, one loop over the sockets that can go on."""

from __future__ import annotations

import os
import random
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from benchmarks.netns.testbed import Testbed

__all__ = ["MAX_BYTES", "MAX_SECONDS", "Exchange", "exchange"]

Ints = npt.NDArray[np.int64]

MAX_BYTES = 200_000_000  # of one exchange
MAX_SECONDS = 60.0
_CHUNK = 16_384  # handed to the kernel at once, and what may wait there unsent
_TCP_INFO, _RETRANSMITTED = 11, slice(100, 104)  # struct tcp_info: tcpi_total_retrans
_NOTSENT_LOWAT = 25


@dataclass(frozen=True)
class Exchange:
    """What an exchange took.

    Attributes
    ----------
    seconds : float
        From the first byte that is sent to the last that is received.
    retransmitted : int
        Segments that were sent again.
    cpu_seconds : float
        Of this process.
    waited : float
        Share of the time in which this process could have gone on but had no core: what it measures then is the
        machine, not the links.
    """

    seconds: float
    retransmitted: int
    cpu_seconds: float
    waited: float


@dataclass(eq=False)
class _Pair:
    """Bytes of one transfer between two hosts: those not yet handed to a connection, and those not yet received."""

    unsent: int
    missing: int


@dataclass(eq=False)
class _Connection:
    sends: socket.socket
    receives: socket.socket
    pair: _Pair
    own: list[int] = field(default_factory=list)  # what this connection alone sends, where its pair does not share


def exchange(
    testbed: Testbed, transfers: Sequence[Ints], *, uplinks: Literal["spray", "hashed"], flows_per_pair: int, seed: int
) -> Exchange:
    """Send all transfers at once and wait until the last byte has arrived.

    Parameters
    ----------
    testbed : Testbed
    transfers : sequence of int arrays [hosts, hosts]
        Bytes from each host to each other.
    uplinks : "spray" or "hashed"
        Whether each pair has a connection over every spine, which take its bytes as each has room, or so many flows of
        equal bytes, each on the spine that its hash gives it.
    flows_per_pair : int
        Of each transfer, for hashed.
    seed : int
        Of the order in which connections are made and served.

    Raises
    ------
    ValueError
        More bytes than an exchange may send.
    TimeoutError
        Not all bytes arrived in time.
    """
    if (total := sum(int(sent.sum()) for sent in transfers)) > MAX_BYTES:
        raise ValueError(f"{total:,} bytes: an exchange sends at most {MAX_BYTES:,}")
    connections: list[_Connection] = []
    try:
        _connect(connections, testbed, transfers, flows_per_pair if uplinks == "hashed" else None)
        random.Random(seed).shuffle(connections)  # noqa: S311 - an order, no secret
        with _before_others():
            cpu, waited = time.process_time(), _waited_s()
            seconds = _run(connections)
            cpu, waited = time.process_time() - cpu, _waited_s() - waited
        again = sum(_retransmitted(one.sends) for one in connections)
        return Exchange(seconds, again, cpu, waited / seconds)
    finally:
        for one in connections:
            one.sends.close()
            one.receives.close()


@contextmanager
def _before_others() -> Iterator[None]:
    """Run this thread before all that others run, as long as it is asked to: bytes must not wait for a core.

    It needs a third of one core. Where the kernel does not allow it, `Exchange.waited` tells how long bytes waited.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(os.sched_get_priority_min(os.SCHED_FIFO)))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def _waited_s() -> float:
    """Seconds in which this thread could run and had no core, since it began; 0 where the kernel does not count."""
    file = Path("/proc/thread-self/schedstat")
    return int(file.read_text().split()[1]) / 1e9 if file.exists() else 0.0


def _connect(made: list[_Connection], testbed: Testbed, transfers: Sequence[Ints], hashed: int | None) -> None:
    paths = [None] * hashed if hashed else list(range(testbed.spines))
    for sent in transfers:
        for source, target in np.argwhere(sent > 0).tolist():
            if source == target:
                continue
            size = int(sent[source, target])
            pair = _Pair(size, size)
            for number, path in enumerate(paths):
                one = _Connection(*testbed.connect(source, target, path), pair)
                made.append(one)
                if hashed:
                    one.own = [size // hashed + (number < size % hashed)]
                one.sends.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
                one.sends.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _CHUNK)


def _run(connections: Sequence[_Connection]) -> float:
    chunk, buffer = memoryview(bytes(_CHUNK)), memoryview(bytearray(1 << 18))
    pairs = {id(one.pair): one.pair for one in connections}
    waiting = sum(pair.missing > 0 for pair in pairs.values())
    with selectors.EpollSelector() as selector:
        for one in connections:
            selector.register(one.sends, selectors.EVENT_WRITE, (one, True))
            selector.register(one.receives, selectors.EVENT_READ, (one, False))
        start = time.perf_counter()
        while waiting:
            if time.perf_counter() - start > MAX_SECONDS:
                missing = sum(pair.missing for pair in pairs.values())
                raise TimeoutError(f"{missing:,} bytes have not arrived within {MAX_SECONDS:g} s")
            for key, _ in selector.select(1.0):
                one, sending = key.data
                if sending:
                    if not _send(one, chunk):
                        selector.unregister(one.sends)
                else:
                    waiting -= _receive(one, buffer)
        return time.perf_counter() - start


def _send(one: _Connection, chunk: memoryview) -> bool:
    """Hand bytes to the kernel; return whether there are more for this connection."""
    left = one.own[0] if one.own else one.pair.unsent
    if left:
        try:
            sent = one.sends.send(chunk[: min(left, _CHUNK)])
        except BlockingIOError:
            return True
        left -= sent
        if one.own:
            one.own[0] = left
        else:
            one.pair.unsent = left
    return left > 0


def _receive(one: _Connection, buffer: memoryview) -> int:
    """Take what has arrived; return 1 where that was the last of its pair."""
    try:
        size = one.receives.recv_into(buffer)
    except BlockingIOError:
        return 0
    one.pair.missing -= size
    return int(size > 0 and one.pair.missing == 0)


def _retransmitted(sender: socket.socket) -> int:
    info = sender.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 104)
    return int.from_bytes(info[_RETRANSMITTED], "little")
