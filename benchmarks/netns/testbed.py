"""Hosts, switches and shaped links, as namespaces, pairs of virtual Ethernet devices and token bucket filters."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.netns.namespaces import Namespaces

__all__ = ["PAYLOAD", "PORT", "Testbed", "fat_tree", "one_switch"]

PORT = 9000
# Bytes of payload of the bytes that a filter counts: 1,448 of 1,514 in a frame.
PAYLOAD = 1448 / 1514
_HASHED = 200  # last part of the address whose flows the leaves hash
_FORWARD = {"ipv4/ip_forward": "1", "ipv4/fib_multipath_hash_policy": "1", "ipv4/conf/all/rp_filter": "0"}
# Nothing is dropped, as on fabrics with credits: a queue holds all that the flows of a link may have under way.
_QUEUE = "4mb"
_HOST = {"ipv4/tcp_early_retrans": "0", "ipv4/tcp_recovery": "0"}  # so nothing needs to be sent again,
_ROUTE = "initcwnd 4 rto_min 10s"  # however long queues are
_WINDOW = 4096  # bytes that a connection may have under way, about
_BURST = "10kb"
_FRAMES = 8192  # bytes that the kernel hands over at once


@dataclass(frozen=True, eq=False)
class Testbed:
    """Hosts that are up and listen.

    Attributes
    ----------
    spaces : Namespaces
        Each host's is ``host<i>``.
    listening : tuple of socket
        Of each host.
    spines : int
        Equal paths between hosts of different leaves; 1 where there is one switch.
    """

    spaces: Namespaces
    listening: tuple[socket.socket, ...]
    spines: int

    def connect(self, source: int, target: int, path: int | None) -> tuple[socket.socket, socket.socket]:
        """Connect two hosts and return both ends, the sender's first.

        Parameters
        ----------
        source, target : int
            Hosts.
        path : int or None
            Spine that the packets of this connection take; None: the one that the leaf's hash gives it.
        """
        with self.spaces.inside(f"host{source}"):
            sends = socket.socket()
        sends.bind((_address(source, path), 0))
        sends.settimeout(10)
        sends.connect((_address(target, path), PORT))
        receives, _ = self.listening[target].accept()
        for end in (sends, receives):
            end.setblocking(False)
        return sends, receives


def _address(host: int, path: int | None) -> str:
    return f"10.77.{host}.{_HASHED if path is None else 2 + path}"


@contextmanager
def fat_tree(hosts: int, per_leaf: int, spines: int, host_mbit: float, uplink_mbit: float) -> Iterator[Testbed]:
    """Build two levels: hosts on leaves, every leaf linked to every spine.

    Parameters
    ----------
    hosts, per_leaf, spines : int
    host_mbit, uplink_mbit : float
        Of a host's link, and of one between a leaf and a spine, in each direction, in Mbit/s.
    """
    leaves = -(-hosts // per_leaf)
    with Namespaces() as spaces:
        for name in (*(f"leaf{leaf}" for leaf in range(leaves)), *(f"spine{spine}" for spine in range(spines))):
            spaces.add(name)
            spaces.set(name, _FORWARD)
        for host in range(hosts):
            _add_host(spaces, host, f"leaf{host // per_leaf}", spines, host_mbit)
        for leaf in range(leaves):
            for spine in range(spines):
                ends = (f"leaf{leaf}", f"up{spine}"), (f"spine{spine}", f"down{leaf}")
                net = f"10.78.{leaf * spines + spine}"
                _link(spaces, ends, (f"{net}.1/24", f"{net}.2/24"), uplink_mbit)
        for leaf in range(leaves):
            others = [host for host in range(hosts) if host // per_leaf != leaf]
            via = [f"10.78.{leaf * spines + spine}.2" for spine in range(spines)]
            lines = [f"route add 10.77.{h}.{2 + s}/32 via {via[s]}" for h in others for s in range(spines)]
            hops = " ".join(f"nexthop via {gateway}" for gateway in via)
            spaces.run(f"leaf{leaf}", "ip", lines + [f"route add 10.77.{host}.{_HASHED}/32 {hops}" for host in others])
        for spine in range(spines):
            lines = [
                f"route add 10.77.{host}.0/24 via 10.78.{host // per_leaf * spines + spine}.1" for host in range(hosts)
            ]
            spaces.run(f"spine{spine}", "ip", lines)
        with _listening(spaces, hosts, spines) as testbed:
            yield testbed


@contextmanager
def one_switch(hosts: int, host_mbit: float) -> Iterator[Testbed]:
    """Build hosts with one link each to one switch that never blocks.

    Parameters
    ----------
    hosts : int
    host_mbit : float
        Of a host's link, in each direction, in Mbit/s.
    """
    with Namespaces() as spaces:
        spaces.add("switch")
        spaces.set("switch", _FORWARD)
        for host in range(hosts):
            _add_host(spaces, host, "switch", 1, host_mbit)
        with _listening(spaces, hosts, 1) as testbed:
            yield testbed


def _add_host(spaces: Namespaces, host: int, switch: str, paths: int, mbit: float) -> None:
    name, net = f"host{host}", f"10.77.{host}"
    spaces.add(name)
    spaces.set(name, _HOST)
    _link(spaces, ((name, "eth0"), (switch, f"to{host}")), (f"{net}.2/24", f"{net}.1/24"), mbit)
    more = [f"address add {net}.{last}/24 dev eth0" for last in (*range(3, 2 + paths), _HASHED)]
    spaces.run(name, "ip", [*more, f"route add default via {net}.1 {_ROUTE}"])


def _link(
    spaces: Namespaces, ends: tuple[tuple[str, str], tuple[str, str]], addresses: tuple[str, str], mbit: float
) -> None:
    """Join two namespaces, and shape both directions.

    Parameters
    ----------
    spaces : Namespaces
    ends : pair of (namespace, device)
    addresses : pair of str
        With the length of the prefix.
    mbit : float
        Mbit/s.
    """
    (here, device), (there, other) = ends
    spaces.run(here, "ip", [f"link add {device} type veth peer name {other} netns {spaces.path(there)}"])
    for (name, own), address in zip(ends, addresses, strict=True):
        spaces.run(name, "ip", [f"address add {address} dev {own}", f"link set dev {own} up gso_max_size {_FRAMES}"])
        shape = f"qdisc add dev {own} root tbf rate {round(mbit * 1000)}kbit burst {_BURST} limit {_QUEUE}"
        spaces.run(name, "tc", [shape])


@contextmanager
def _listening(spaces: Namespaces, hosts: int, spines: int) -> Iterator[Testbed]:
    sockets: list[socket.socket] = []
    try:
        for host in range(hosts):
            with spaces.inside(f"host{host}"):
                sockets.append(socket.socket())
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW)  # taken on by what it accepts
            sockets[-1].bind(("0.0.0.0", PORT))  # noqa: S104 - of a namespace that nothing else is in
            sockets[-1].listen(512)
            sockets[-1].settimeout(10)
        yield Testbed(spaces, tuple(sockets), spines)
    finally:
        for one in sockets:
            one.close()
